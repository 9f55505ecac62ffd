"""One flow, several deployments: each night, at an interval, on demand.

Teaches: when something runs is said in prefect.yaml, not in the code; a run knows when it was due
(`scheduled_start_time`), which is the date to work for: a late run then still does its own day.
"""

from prefect import flow, get_run_logger
from prefect.runtime import deployment, flow_run


@flow
def report(days: int = 1) -> str:
    """Report on the days before the time at which the run was due."""
    due = flow_run.scheduled_start_time
    line = f"{deployment.name or 'local'}: {days} day(s) until {due:%Y-%m-%d %H:%M} UTC"
    get_run_logger().info(line)
    return line


if __name__ == "__main__":
    report()
