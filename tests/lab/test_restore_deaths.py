"""Killed at each of its steps, and with the power cut, a restore leaves a system that serves the old data or the new.

Nobody does anything after a death: systemd takes back what was begun, or finishes it. The marker tells which data are
served then; a table at the end says so for each step, and how long it took. Each death begins a restore where the
one before has left the system, so each is also a further restore that works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import restores
from tests.lab.restores import back_up, databases, halted, leftovers, mark, marker, restore, restored, until
from tests.lab.test_resilience import Knocking
from tests.lab.vps.vps import Vps

# In their order; "NAME:end" is where a step ends.
STEPS = (
    "checks",
    "safety",
    "store",  # of the safety backup
    "fetch",
    "load",
    "compare",
    "analyze",
    "stop workers",
    "stop server",
    "swap",
    "swap:end",
    "start server",
    "order",
    "start workers",
    "end",
    "smoke",
)
SWAPPED = STEPS[STEPS.index("swap:end") :]
OF_THE_SAFETY_BACKUP = ("safety", "store")


@dataclass
class Row:
    """What was seen after a death; seconds."""

    death: str
    served: str
    # For which nobody could use the API, the restore's own short stop among them.
    away: float
    # From the death until the data are served, workers run and nothing is left over.
    well: float

    def __str__(self) -> str:
        return f"{self.death:<40}{self.served:>8}{self.away:>8.1f}{self.well:>8.1f}"


HEADING = f"{'death of a restore':<40}{'serves':>8}{'API away':>9}{'well, s':>8}"


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        yield


@pytest.fixture(scope="module")
def backup(vps: Vps, endpoint: Any, no_timers: None) -> str:
    """The new data: its marker says "backup"."""
    mark(endpoint, "backup")
    restores.until_state(endpoint, restores.start_run(endpoint, "smoke/smoke"), "Completed")
    return back_up(vps)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """The rows of the table that is printed after the last test."""
    rows: list[Row] = []
    yield rows
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", HEADING, *rows, sep="\n")


def completed(endpoint: Any) -> int:
    """Completed runs of the smoke flows, the kit's own included, which nobody starts here."""
    body = {
        "flows": {"name": {"any_": ["smoke", "prefect-kit"]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
    }
    return endpoint.post("/api/flow_runs/count", body).raise_for_status().json()


@dataclass
class Death:
    """Which data were served before, and after all is over."""

    before: tuple[str, int]
    after: tuple[str, int]


@pytest.fixture
def survived(vps: Vps, endpoint: Any, table: list[Row]) -> Callable[[str, Callable[[], float]], Death]:
    """`survived("name", die)` waits after a death, whose moment `die` gives, until all is well again by itself."""

    def live_on(name: str, die: Callable[[], float]) -> Death:
        before = (marker(endpoint), completed(endpoint))
        knocking = Knocking(endpoint)
        knocking.start()
        try:
            died = die()
            until(f"the end of what {name} has left", lambda: leftovers(vps))
            after = (marker(endpoint), completed(endpoint))
            well = time.monotonic() - died
        finally:
            knocking.stop()
        table.append(Row(name, "old" if after == before else "new", knocking.seconds_away, well))
        return Death(before, after)

    return live_on


def killed_at(vps: Vps, step: str, *arguments: str) -> float:
    """A restore that dies at a step; gives when."""
    died = restore(vps, *arguments, PREFECT_BACKUPS_FAILPOINT=f"kill:{step}")
    assert died.exit == 255, died.said
    assert died.said.endswith(
        "It was killed. systemd takes it back or finishes it; look at: journalctl -u prefect-restore\n"
    )
    return time.monotonic()


@pytest.mark.parametrize("step", STEPS)
def test_a_death_at_each_step(vps: Vps, endpoint: Any, backup: str, survived: Any, step: str) -> None:
    mark(endpoint, f"before {step}")
    safety = step in OF_THE_SAFETY_BACKUP
    more = () if safety else ("--without-safety-backup",)
    there = restores.backups(vps) if safety else []
    death = survived(f"kill -9 at: {step}", lambda: killed_at(vps, step, "--id", backup, *more))
    if step in SWAPPED:
        assert death.after[0] == "backup"
    else:
        assert death.after == death.before
    if safety:
        # Half a one is none.
        assert restores.backups(vps) == there


@pytest.mark.parametrize(("step", "swapped"), [("stop server", False), ("swap:end", True)])
def test_a_death_of_an_undo(vps: Vps, endpoint: Any, backup: str, survived: Any, step: str, swapped: bool) -> None:
    """The deaths before have left a database to go back to."""
    assert databases(vps) == {"prefect", "prefect_previous"}
    mark(endpoint, "backup")
    death = survived(f"undo, kill -9 at: {step}", lambda: killed_at(vps, step, "--undo"))
    assert (death.after != death.before) is swapped
    assert databases(vps) == {"prefect", "prefect_previous"}


@pytest.mark.parametrize(("step", "swapped"), [("analyze", False), ("swap:end", True)])
def test_a_power_cut(vps: Vps, endpoint: Any, backup: str, survived: Any, step: str, swapped: bool) -> None:
    mark(endpoint, f"before {step}")

    def cut() -> float:
        with halted(vps, step, "--id", backup, "--without-safety-backup"):
            moment = time.monotonic()
            # Waits until systemd says that all is started and nothing has failed.
            vps.reboot(hard=True)
        return moment

    death = survived(f"power cut at: {step}", cut)
    assert death.after[0] == ("backup" if swapped else f"before {step}")


def test_postgres_dies_in_the_short_stop(vps: Vps, endpoint: Any, backup: str, survived: Any) -> None:
    """The restore itself lives, and can neither swap nor take back: systemd does it when Postgres is there again."""
    mark(endpoint, "before")

    def crash() -> float:
        with halted(vps, "swap", "--id", backup, "--without-safety-backup"):
            vps.ssh("docker stop prefect-postgres")
        return time.monotonic()

    death = survived("Postgres stopped at: swap", crash)
    assert death.after == death.before


def test_after_all_that_a_restore_works(vps: Vps, endpoint: Any, backup: str) -> None:
    mark(endpoint, "before")
    outcome = restored(vps, "--id", backup)
    assert outcome.facts["smoke"].startswith("flow run Completed with 3 task runs")
    assert marker(endpoint) == "backup"
    assert vps.ssh("systemctl --failed --plain --no-legend").stdout == ""
