"""A flow to begin with: a task that is tried again, a parameter, and a secret that nobody sees in the UI."""

from datetime import date, timedelta

from prefect import flow, get_run_logger, task
from prefect.blocks.system import Secret


@task(retries=2, retry_delay_seconds=10)
def fetch(day: date, token: Secret) -> int:
    """Stand for a request to another system, which would carry `token.get()`."""
    return day.toordinal() % 100 if token.get() else 0


@flow
def report(days: int = 1, block: str = "report-token") -> int:
    """Add up the numbers of the last days. `block` names a Secret block (UI: Blocks, +, Secret) with the token."""
    token = Secret.load(block)
    total = sum(fetch(date.today() - timedelta(days=back), token) for back in range(days))
    get_run_logger().info("%s day(s): %s", days, total)
    return total


if __name__ == "__main__":
    report()
