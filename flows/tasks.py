"""Tasks: the steps of a flow, seen one by one in the UI; in turn or at the same time.

Teaches: calling a task runs it and gives its value; `.submit` starts it and gives a future; `.map` starts one
for each item; `wait_for` orders tasks that hand nothing on.
"""

import time

from prefect import flow, get_run_logger, task
from prefect.task_runners import ThreadPoolTaskRunner


@task
def fetch(number: int) -> int:
    """Stand for something slow that waits for others, such as a request."""
    time.sleep(0.5)
    return number


@task
def square(number: int) -> int:
    """Stand for a step of work."""
    return number * number


@task
def announce(total: int) -> None:
    """Stand for an effect that has to come last."""
    get_run_logger().info("announced %s", total)


@flow
def steps(number: int = 3) -> int:
    """One task after the other: a plain call waits and returns the value."""
    result = square(fetch(number))
    get_run_logger().info("the square is %s", result)
    return result


# Threads suit tasks that wait (network, database, other programs). For work that burns CPU, see shell.py:
# start a process. `max_workers` bounds how many tasks of one run go on at once.
@flow(task_runner=ThreadPoolTaskRunner(max_workers=4))
def parallel(numbers: list[int] | None = None) -> int:
    """Many tasks at the same time, then one that needs them all."""
    numbers = numbers or [1, 2, 3, 4]
    logger = get_run_logger()

    # .submit starts at once and returns a future: both fetches are under way before either is waited for.
    left, right = fetch.submit(10), fetch.submit(20)
    logger.info("two submitted: %s", left.result() + right.result())

    # .map makes one task run for each item. A future handed to a task is waited for and replaced by its
    # value.
    squares = square.map(fetch.map(numbers))
    total = sum(squares.result())
    logger.info("sum of squares: %s", total)

    # wait_for: an order without data. result() is what raises if the task failed, so ask for it before the
    # end.
    announce.submit(total, wait_for=squares).result()
    return total


if __name__ == "__main__":
    parallel()
