"""A flow that calls flows.

Teaches: a flow called inside another becomes a run of its own (own parameters, own retries, own place in the
UI), in the same process; its failure is an exception here like any other.
"""

from prefect import flow, get_run_logger, task


@task
def load(region: str) -> list[int]:
    """Read the figures of one region."""
    return list(range(len(region)))


@flow(flow_run_name="region-{region}")
def region_report(region: str) -> int:
    """Sum up one region: a part worth seeing, and starting, by itself."""
    if not region:
        raise ValueError("a region needs a name")
    return sum(load(region))


@flow
def subflows(regions: list[str] | None = None) -> dict[str, int]:
    """Run a subflow for each region; one that fails does not take the others down."""
    logger = get_run_logger()
    totals: dict[str, int] = {}
    for region in regions or ["north", "south", ""]:
        try:
            totals[region] = region_report(region)
        except ValueError as error:
            logger.warning("region %r left out: %s", region, error)
    logger.info("totals: %s", totals)
    return totals


if __name__ == "__main__":
    subflows()
