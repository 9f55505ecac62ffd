"""What to do when things go wrong: try again, give up in time, tell a passing fault from a lasting one.

Teaches: `retries` with growing delays and jitter; `retry_condition_fn`; `timeout_seconds` of a task and of a
flow. A retry repeats the whole function, so what it does has to be safe to do twice (database.py shows how).
"""

import time

from prefect import flow, get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task


class Unreachable(Exception):
    """A fault that may pass: worth another try."""


class Rejected(Exception):
    """A fault that stays: trying again changes nothing."""


def may_pass(_task: Task, _run: TaskRun, state: State) -> bool:
    """Tell whether a failed try is worth repeating."""
    return not isinstance(state.result(raise_on_failure=False), Rejected)


# Seconds before each further try. The jitter spreads many runs that failed together, up to half as long
# again.
@task(retries=3, retry_delay_seconds=[1, 2, 4], retry_jitter_factor=0.5, retry_condition_fn=may_pass)
def call_service(good_at_try: int, rejected: bool) -> int:
    """Fail until the given try, or for good."""
    if rejected:
        raise Rejected("the service refuses this request")
    if task_run.run_count < good_at_try:
        raise Unreachable(f"no answer at try {task_run.run_count}")
    return task_run.run_count


@flow
def retries(good_at_try: int = 3, rejected: bool = False) -> int:
    """Call an unreliable service: good at the third try, unless it rejects us, which is not tried again."""
    tries = call_service(good_at_try, rejected)
    get_run_logger().info("answered at try %s", tries)
    return tries


@task(timeout_seconds=1)
def wait_for_answer(seconds: float) -> None:
    """Wait longer than is allowed."""
    time.sleep(seconds)


@flow
def task_timeout(seconds: float = 60) -> str:
    """Give up on a slow task after a second, and go on without it."""
    # return_state: the outcome as a value to look at, where a plain call would raise.
    state = wait_for_answer(seconds, return_state=True)
    get_run_logger().info("the task ended %s", state.name)
    return state.name


# The last net: the run ends TimedOut (a kind of Failed) rather than holding its slot for ever. Set the limit
# on the flow or on its tasks: within a flow that has one, a task's own limit cannot interrupt a call that
# blocks, nor can it in a task that was submitted (Prefect interrupts by a signal, which only the main thread
# gets, and only once).
@flow(timeout_seconds=5)
def flow_timeout(seconds: float = 60) -> None:
    """Take longer than five seconds, and end TimedOut."""
    get_run_logger().info("working for %s s", seconds)
    time.sleep(seconds)


if __name__ == "__main__":
    retries()
    task_timeout()
    flow_timeout(seconds=1)
