"""A flow to count by: it shows that a worker, the API, logs and events all work together.

Task runs and log lines come to the server by websocket, and a proxy that drops those loses task runs while the flow run
still ends Completed. So their numbers are fixed: one task run and one line
"smoke: task N of M" for each, then one line "smoke: done".
"""

from prefect import flow, get_run_logger, task


@task
def check(number: int, count: int) -> None:
    """Write one line."""
    get_run_logger().info("smoke: task %s of %s", number, count)


@flow
def smoke(count: int = 3) -> None:
    """Run `count` tasks that write one log line each, then write one more."""
    check.map(range(1, count + 1), count).wait()
    get_run_logger().info("smoke: done")


if __name__ == "__main__":
    smoke()
