"""The kit's own units on this host: failures with their meaning, workers that should run, an unfinished restore."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect_backups.meanings import meaning_of
from prefect_backups.unit_names import UNITS
from prefect_backups.units import Units

from .finding import Finding, Level


def ended(name: str, unit: Mapping[str, str], newest: float) -> Finding:
    """How a unit ended that runs now and then."""
    state = unit.get("ActiveState", "")
    if state in ("activating", "deactivating", "reloading"):
        return Finding(name, Level.OK, "is running", "no failure", pending=True)
    # A backup that somebody has made by hand since is as good.
    over = name == UNITS[0] and newest > float(unit.get("ended") or 0)
    if state != "failed" or over:
        return Finding(name, Level.OK, "has not failed", "no failure")
    meaning = meaning_of(name, unit)
    measured = f"failed: {meaning.what} (result {unit.get('Result', '?')}, exit code {unit.get('ExecMainStatus', '?')}). {meaning.earlier}"
    mend = f"{meaning.do}; journalctl -u {name.removesuffix('.service')} -n 30"
    return Finding(name, Level.BAD, measured, "no failure", mend, unit.get("lines", "").strip())


def workers(found: Units) -> Finding:
    """Workers of this host that start at boot."""
    limit = "all that start at boot run"
    if found.down:
        verb = "does" if len(found.down) == 1 else "do"
        mend = f"systemctl start {' '.join(found.down)}"
        return Finding("workers on this host", Level.BAD, f"{', '.join(found.down)} {verb} not run", limit, mend)
    words = f"{', '.join(found.passing)} starting or stopping" if found.passing else f"{found.workers} run"
    return Finding("workers on this host", Level.OK, words, limit, pending=bool(found.passing))


def unfinished_restore(found: Units) -> Finding:
    """A restore that was cut off and needs a person's decision."""
    if not found.unfinished:
        return Finding("unfinished restore", Level.OK, "none", "none")
    mend = "prefect-restore --resume, prefect-restore --undo, or prefect-restore --latest (docs/restore.md)"
    return Finding("unfinished restore", Level.BAD, f"{found.unfinished} did not end", "none", mend)


def findings(found: Units) -> Sequence[Finding]:
    """All of them."""
    return [
        *(ended(name, unit, found.newest) for name, unit in found.units.items()),
        workers(found),
        unfinished_restore(found),
    ]
