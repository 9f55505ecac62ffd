"""Never two at once.

Teaches: runs of a deployment overlap by default; `concurrency_limit` in prefect.yaml bounds them, and its
`collision_strategy` says what a run does that finds the place taken: wait (ENQUEUE) or be cancelled
(CANCEL_NEW). A run that waits is not called, it looks again every half a minute; count on that between the
end of one and the start of the next.
"""

import time

from prefect import flow, get_run_logger


@flow
def exclusive(seconds: float = 5) -> None:
    """Hold something that only one run may hold."""
    logger = get_run_logger()
    logger.info("alone now")
    time.sleep(seconds)
    logger.info("done, next please")


if __name__ == "__main__":
    exclusive()
