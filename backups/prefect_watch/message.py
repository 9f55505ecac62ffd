"""The text of an alert: the fact, since when, and the command to type. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from prefect_backups.progress import duration
from prefect_doctor.finding import Level

from .alerts import News, Problem, passed

ORDER = (Level.BAD, Level.UNKNOWN, Level.WARNING)
WORDS = {Level.BAD: "bad", Level.UNKNOWN: "unknown", Level.WARNING: "warning"}


def title(news: News, host: str) -> str:
    """The subject of a mail, or the first line of a message on a telephone."""
    new = _worst_first([*news.began, *news.lasting])
    if new:
        first = " ".join(f"{new[0].check}: {new[0].measured}".split())
        # A line of its own, however long what was measured is.
        short = first if len(first) <= 90 else first[:89] + "…"
        more = f" (and {len(new) - 1} more)" if len(new) > 1 else ""
        return f"{host}: {WORDS[new[0].level]}: {short}{more}"
    checks = ", ".join(one.check for one in news.over)
    return f"{host}: resolved: {checks if len(checks) <= 90 else f'{len(news.over)} checks'}"


def body(news: News, left: Sequence[Problem], host: str, now: float, overview: str = "prefect-doctor --bad") -> str:
    """The message.

    Args:
        left: problems that people were alerted to earlier, and that last.
        host: this one.
        overview: the command that shows all problems on this host.
    """
    lines: list[str] = []
    for one in _worst_first(news.began):
        lines += _entry(one, now)
    if news.lasting:
        lines.append("Reported before, and still so:")
        for one in _worst_first(news.lasting):
            lines += _entry(one, now)
    if news.over:
        lines.append("Resolved:")
        lines += [
            f"  {one.check} (was {'a ' * (one.level is Level.WARNING)}{WORDS[one.level]} for {duration(max(0.0, one.well - one.since))})"
            for one in news.over
        ]
        lines.append("")
    if left:
        lines += ["Reported before, and still so: " + ", ".join(one.check for one in _worst_first(left)), ""]
    lines.append(f"All problems, on {host} as root: {overview}")
    if news.began or news.lasting:
        lines.append("No alerts while you work on it: prefect-watch pause 1h")
    return "\n".join(lines) + "\n"


def _worst_first(problems: Sequence[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda one: ORDER.index(one.level))


def _entry(one: Problem, now: float) -> list[str]:
    since = datetime.fromtimestamp(one.since, UTC).strftime("%Y-%m-%d %H:%M UTC")
    lines = [
        f"{WORDS[one.level].upper()}: {one.check}: {one.measured}",
        f"  since {since} ({duration(max(0.0, min(passed(one.since, now), now)))})",
    ]
    lines += [f"  what to do: {one.mend}"] if one.mend else []
    lines += ["  last log lines:", *(f"    {line}" for line in one.detail.splitlines())] if one.detail else []
    return [*lines, ""]
