"""What the server tells of the runs of a pool when it happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

CRASHED = "prefect.flow-run.Crashed"
NEWS = ["prefect.flow-run.Scheduled", "prefect.flow-run.Resuming", CRASHED]


async def listen(pool_id: str, due: Callable[[], None], crashed: Callable[[str], Awaitable[None]]) -> None:
    """Hear of new and of crashed runs of the pool, until the connection ends."""
    wanted = EventFilter(
        event=EventNameFilter(name=NEWS),
        any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}"]),
    )
    async with get_events_subscriber(filter=wanted) as news:
        # What happened before the connection stood is found by looking.
        due()
        async for event in news:
            if event.event == CRASHED:
                await crashed(event.resource.id.removeprefix("prefect.flow-run."))
            else:
                due()
