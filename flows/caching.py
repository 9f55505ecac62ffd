"""Don't do the same work twice.

Teaches: a cache policy says what makes two calls the same; `cache_expiration` says for how long; the result
has to be kept (`persist_result`) to be found again. A task run that found its result is Completed under the
name Cached. Results lie in the worker's local storage: another host has its own, unless a shared storage
block is set.
"""

import time
from datetime import timedelta

from prefect import flow, get_run_logger, task
from prefect.cache_policies import INPUTS, TASK_SOURCE


# INPUTS: same arguments. TASK_SOURCE: same code, so a new release does not read an old release's results.
# The default policy also has RUN_ID in it, and so forgets with each run; this one remembers across runs.
@task(cache_policy=INPUTS + TASK_SOURCE, cache_expiration=timedelta(hours=1), persist_result=True)
def expensive(report: str) -> int:
    """Stand for work that is worth keeping."""
    get_run_logger().info("really computed for %r", report)
    time.sleep(1)
    return len(report)


@flow
def caching(report: str = "monthly") -> int:
    """Ask for the same report twice: the second answer comes from the cache, and in later runs both do."""
    first = expensive(report)
    second = expensive(report)
    get_run_logger().info("both answers: %s and %s", first, second)
    return second


if __name__ == "__main__":
    caching()
