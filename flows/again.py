"""Run again from the beginning what was cut off.

Teaches: a run whose process is killed, or whose host goes down, becomes Crashed; the tag `rerun:2` of its
deployment asks for a new run then, at most twice. The new run begins at the beginning, so its steps must bear
to be done twice: here each item has a key of its own, and what an earlier run has done is found by it and not
done again. (That a flow fails by itself is another matter: see failures.py.)
"""

from pathlib import Path

from prefect import flow, get_run_logger, task

# The worker's own directory, which outlives the run. With several workers: a database, or an object store.
DONE = Path.home() / "done-by-again"


@task
def once(batch: str, item: int) -> bool:
    """Do one piece of work, unless it has been done; says whether it was done now."""
    mark = DONE / batch / str(item)
    if mark.exists():
        return False
    mark.parent.mkdir(parents=True, exist_ok=True)
    # The work goes here; the mark comes last, so a run that is cut off in between does the work again.
    mark.touch()
    return True


@flow
def again(batch: str = "2026-01-31", items: int = 3) -> int:
    """Work through a batch; a second run of the same batch does only what is missing."""
    now = sum([once(batch, item) for item in range(items)])
    get_run_logger().info("%s of %s items done now, the others before", now, items)
    return now


if __name__ == "__main__":
    again()
