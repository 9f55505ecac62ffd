"""Which alerts are sent, and when: pure decisions about what the doctor finds, run after run.

    ok ──bad──► new ──lasts PATIENCE──► alert sent ──ok for `calm`──► resolved, sent
                 └──ok──► forgotten        └──after again_hours──► sent again

A problem that comes and goes makes few messages: one that comes back before it was ok for `calm` seconds is still the same
problem, and `calm` doubles each time that it comes back soon after it was reported as resolved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from prefect_doctor.finding import Finding, Level

#: Seconds that a problem has to last before an alert: a restart of the server takes less, and runs are a minute apart.
PATIENCE = {Level.BAD: 55.0, Level.UNKNOWN: 55.0, Level.WARNING: 1800.0}
#: Runs that have to find it, whatever the time: while a host sleeps, no check runs.
LOOKS = 2
#: Seconds for which a check must be ok until it is reported as resolved, at first and at most.
CALM, CALM_MOST = 300.0, 3600.0
#: Seconds after "resolved" in which the same problem counts as one that comes and goes.
SOON = 7200.0


@dataclass(frozen=True)
class Looked:
    """What one group of checks has found in this run."""

    findings: Sequence[Finding]
    #: Whether the group failed as a whole: then nothing is known of its checks.
    failed: bool = False


@dataclass(frozen=True)
class Problem:
    """One check that is, or was a while ago, not ok. Times are seconds since 1970."""

    group: str
    check: str
    level: Level
    measured: str
    mend: str = ""
    detail: str = ""
    since: float = 0.0
    looks: int = 0
    #: When the last alert was sent, and at which level; 0: none yet.
    told: float = 0.0
    told_level: Level = Level.OK
    #: Since when it is ok; 0: it is not.
    well: float = 0.0
    #: When it was reported as resolved; 0: it was not.
    over: float = 0.0
    #: Seconds for which it has to be ok.
    calm: float = CALM


@dataclass(frozen=True)
class News:
    """The alerts that are due now."""

    began: list[Problem] = field(default_factory=list)
    #: Alerted before, and lasting.
    lasting: list[Problem] = field(default_factory=list)
    over: list[Problem] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.began or self.lasting or self.over)


def seen(known: Mapping[str, Problem], looks: Mapping[str, Looked], now: float) -> dict[str, Problem]:
    """The problems after a run of checks; sends nothing."""
    problems = dict(known)
    found: dict[str, Finding] = {}
    for group, looked in looks.items():
        for finding in looked.findings:
            found[finding.check] = finding
            before = problems.get(finding.check)
            if finding.pending:
                continue
            if finding.level is not Level.OK:
                problems[finding.check] = _not_well(before, group, finding, now)
            elif before:
                problems[finding.check] = _well(before, now)
    for check, problem in known.items():
        looked_at = looks.get(problem.group)
        # A check that no longer exists, such as that of a removed worker, is ok; one that could not run stays as it was.
        if check not in found and looked_at and not looked_at.failed:
            problems[check] = _well(problem, now)
    return {check: one for check, one in problems.items() if not _forgotten(one, now)}


def _not_well(problem: Problem | None, group: str, finding: Finding, now: float) -> Problem:
    if problem is None or (problem.well and not problem.told):
        # Reported as resolved a while ago: it comes and goes.
        calm = min(problem.calm * 2, CALM_MOST) if problem and problem.over else CALM
        problem = Problem(group, finding.check, finding.level, "", since=now, calm=calm)
    return replace(
        problem,
        group=group,
        level=finding.level,
        measured=finding.measured,
        mend=finding.mend,
        detail=finding.detail,
        looks=problem.looks + 1,
        well=0.0,
    )


def _well(problem: Problem, now: float) -> Problem:
    return problem if problem.well else replace(problem, well=now)


def _forgotten(problem: Problem, now: float) -> bool:
    """Whether it can be dropped: ok, reported as resolved, and so long ago that its return would be a new problem."""
    return bool(problem.well) and not problem.told and not (problem.over and passed(problem.over, now) < SOON)


def passed(since: float, now: float) -> float:
    """Seconds between two times; infinite where the clock was set back."""
    return now - since if now >= since else float("inf")


def news(problems: Mapping[str, Problem], now: float, again_hours: float) -> tuple[News, dict[str, Problem]]:
    """The alerts that are due now, and the problems once they are sent.

    Args:
        again_hours: hours until an alert is repeated; a warning is not repeated.
    """
    after = dict(problems)
    made = News()
    lasts = any(_is_news(one, now) for one in problems.values())
    for check, one in problems.items():
        if one.well:
            if one.told and passed(one.well, now) >= one.calm:
                made.over.append(one)
                after[check] = replace(one, told=0.0, told_level=Level.OK, over=now)
        elif not one.told or _worse(one):
            # Consequences that have not lasted long enough go into the same message, not into another one a minute later.
            if _is_news(one, now) or (lasts and one.level is not Level.WARNING):
                made.began.append(one)
                after[check] = replace(one, told=now, told_level=one.level)
        elif one.level is not Level.WARNING and passed(one.told, now) >= again_hours * 3600:
            made.lasting.append(one)
            after[check] = replace(one, told=now)
    return made, after


def _is_news(problem: Problem, now: float) -> bool:
    """Whether it has lasted long enough, and no alert was sent for it."""
    untold = not problem.well and (not problem.told or _worse(problem))
    return untold and problem.looks >= LOOKS and passed(problem.since, now) >= PATIENCE[problem.level]


def _worse(problem: Problem) -> bool:
    """Whether it was alerted as a warning, and is more than that now."""
    return problem.told_level is Level.WARNING and problem.level is not Level.WARNING


def worst(problems: Mapping[str, Problem]) -> Level:
    """The worst level of the current problems."""
    levels = {one.level for one in problems.values() if not one.well}
    return next((level for level in (Level.BAD, Level.UNKNOWN, Level.WARNING) if level in levels), Level.OK)
