"""Heartbeats of flow runs, and their ends: the automation "Crash detection" waits for one or the other.

Whoever sends an end, or a heartbeat, must think of the other: an end has to be the last word, or a window begins that
nobody ends, and a run that ended well is Crashed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import httpx

from .api import ALIVE, ENDED, Api, soon

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from .protocols import Worker
    from .runs import Run, Runs

#: Seconds between two heartbeats. The window of the automation is at least three of them.
SECONDS_BETWEEN_HEARTBEATS = 30
#: Seconds between two tries to send the first one of a run.
SECONDS_BETWEEN_FIRST_HEARTBEATS = 1
#: Seconds between two tries to send the others.
SECONDS_BETWEEN_TRIES = 5


class Heartbeats:
    """Sends them, and the ends that could not be sent yet. `pool_id` raises RuntimeError before the pool is known."""

    def __init__(self, runs: Runs, api: Api, worker: Worker, pool_id: Callable[[], str]) -> None:
        self._runs = runs
        self._api = api
        self._worker = worker
        self._pool_id = pool_id
        #: Ids of runs whose end is still to be sent.
        self._ended: set[str] = set()
        self._due = 0.0

    async def send_when_due(self) -> dict[str, FlowRun] | None:
        """A heartbeat for each run; gives what the server says of them, None when not all could be sent.

        What cannot be sent is tried again in some seconds, and not when the next ones are due: the window is short.
        """
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        runs = [run.id for run in self._runs.with_heartbeat]
        known = await soon(self._api.states_of(runs))
        living = [run_id for run_id in runs if run_id in known and not known[run_id].state.is_final()]
        inside = await soon(self._api.subflows_under_way(living))
        if not await self._send([*living, *(str(run.id) for run in inside)]):
            await asyncio.sleep(SECONDS_BETWEEN_TRIES)
            return None
        self._due = time.monotonic() + SECONDS_BETWEEN_HEARTBEATS
        # What has ended while this was on its way: its end has to be the last word, or a window begins that nobody ends.
        self._ended |= {run_id for run_id in living if run_id not in self._runs}
        if self._ended:
            await self._send()
        return {run_id: known[run_id] for run_id in runs if run_id in known}

    async def send_first(self, run: Run) -> None:
        """Send the first one of a run, which has no process yet; goes on trying in the background.

        When the host is lost before the server has had it, the run stays Running for ever.
        """
        if not await self._send([run.id]):
            self._worker.in_background(self._go_on_with_first(run))

    async def _go_on_with_first(self, run: Run) -> None:
        """Try until it is sent, or the run has ended: the next ones may be half a minute away."""
        while self._runs.is_running(run) and not await self._send([run.id]):
            await asyncio.sleep(SECONDS_BETWEEN_FIRST_HEARTBEATS)
        if run.id not in self._runs:
            # It has ended while this was on its way: its end has to be the last word.
            self._ended.add(run.id)
            await self._send()

    def note_end(self, run_id: str) -> None:
        """The end of a run goes with the next heartbeats."""
        self._ended.add(run_id)

    def send_end(self, run_id: str) -> None:
        """The end of a run goes now, and with the next heartbeats when it cannot."""
        self._ended.add(run_id)
        self._worker.in_background(self._send())

    async def _send(self, living: list[str] | tuple[()] = ()) -> bool:
        """Send heartbeats, and the ends that have not been sent; says whether that went well. Ends are sent later otherwise."""
        ended = set(self._ended)
        try:
            told = dict.fromkeys(living, ALIVE) | dict.fromkeys(ended, ENDED)
            await soon(self._api.send_heartbeats(told, self._worker.name, self._pool_id()))
        except (httpx.HTTPError, OSError, RuntimeError) as error:
            self._worker.log.debug("Heartbeats not sent: %s", error)
            return False
        self._ended -= ended
        return True
