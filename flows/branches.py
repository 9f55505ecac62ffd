"""Conditional steps and tags.

Teaches: a flow is Python, so `if` and `for` decide what runs, from what earlier tasks returned; what is not
called has no task run. Tags group runs: filter by them in the UI, or limit how many task runs with a tag run
at once (`prefect concurrency-limit create database 2`).
"""

from prefect import flow, get_run_logger, tags, task


@task
def count_new_rows(rows: int) -> int:
    """Look before working."""
    return rows


@task(tags=["database"])
def load_increment(rows: int) -> str:
    """The cheap way."""
    return f"increment of {rows} rows"


@task(tags=["database"])
def reload_everything() -> str:
    """The thorough way."""
    return "full reload"


@flow
def branches(rows: int = 10, full_from: int = 1000) -> str:
    """Choose the step by what there is to do: nothing, an increment, or all of it."""
    logger = get_run_logger()
    found = count_new_rows(rows)
    if found == 0:
        done = "nothing to do"
    elif found < full_from:
        done = load_increment(found)
    else:
        # Tags can be given where the task is called, too: for everything inside the block.
        with tags("slow"):
            done = reload_everything()
    logger.info("branch taken: %s", done)
    return done


if __name__ == "__main__":
    branches()
