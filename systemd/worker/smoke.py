"""The kit's own smoke flow: site.yml ends with a run of it, whichever flows the server has, and so does a restore.

Its deployment, `prefect-kit/smoke`, is made by the role checks and belongs to no release of flows. A worker runs it with
its own environment, which has Prefect and is on every host that has workers; so it imports nothing else.

Task runs and log lines are counted through the public endpoint, because a proxy that drops websockets loses task runs
while the flow run still ends Completed. So their numbers are fixed: one task run and one line "smoke: task N of M" for
each, then one line "smoke: done" (roles/checks/vars/main.yml).
"""

from prefect import flow, get_run_logger, task


@task
def check(number: int, count: int) -> None:
    """Write one line."""
    get_run_logger().info("smoke: task %s of %s", number, count)


@flow(name="prefect-kit")
def smoke(count: int = 3) -> None:
    """Run `count` tasks that write one log line each, then write one more."""
    check.map(range(1, count + 1), count).wait()
    get_run_logger().info("smoke: done")
