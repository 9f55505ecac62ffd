"""Three ways to write to a run's logs.

Teaches: `get_run_logger` is the usual one and knows the run; `print` needs `log_prints`; the standard
library's `logging` reaches the API only from loggers that PREFECT_LOGGING_EXTRA_LOGGERS names (prefect.yaml
sets it for this deployment), which is how a library of yours appears in the logs without knowing of Prefect.
"""

import logging

from prefect import flow, get_run_logger, task

library_logger = logging.getLogger("example_library")


@task(log_prints=True)
def speak() -> None:
    """Write one line in each way, from a task."""
    get_run_logger().info("by get_run_logger, from a task")
    library_logger.warning("by logging, from a task")
    print("by print, from a task")


@flow(log_prints=True)
def logs() -> None:
    """Write log lines in three ways, from the flow and from a task."""
    get_run_logger().info("by get_run_logger, from the flow")
    library_logger.warning("by logging, from the flow")
    print("by print, from the flow")
    speak()


if __name__ == "__main__":
    logs()
