"""The smallest flow: a Python function with a decorator.

Teaches: a flow is a function; its parameters become a form in the UI, checked against their types before a
run starts; `print` reaches the run's logs with `log_prints`.
"""

from prefect import flow


@flow(log_prints=True)
def hello(name: str = "world") -> str:
    """Greet somebody, in the run's logs."""
    greeting = f"Hello, {name}!"
    print(greeting)
    return greeting


# `python hello.py` runs it here and now, without a worker: the quickest way to try a flow.
if __name__ == "__main__":
    hello()
