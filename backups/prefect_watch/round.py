"""One run of prefect-watch: check, decide, alert, save; in this order, so that a crash in between alerts twice and not never."""

from __future__ import annotations

import fnmatch
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import psycopg
from prefect_backups import lock
from prefect_backups.errors import Failure
from prefect_backups.host import Host
from prefect_backups.progress import Report
from prefect_backups.settings import Settings
from prefect_doctor import samples
from prefect_doctor.cli import tried
from prefect_doctor.finding import Finding, Level
from prefect_doctor.registry import Group, Seen, groups
from prefect_metrics import figures

from . import alerts, datadog_queue, elsewhere, flow_runs, memory, message, outbox, pause, send, status
from .alerts import Looked
from .memory import Memory
from .settings import Watch

#: Seconds for the heartbeat's address to answer.
HEARTBEAT_SECONDS = 10.0
#: Seconds after which an expensive group of checks runs again when it has found something bad.
AGAIN = 120.0
#: Seconds for all groups of checks together; systemd ends a look after five minutes, and it would have told nobody.
PATIENCE = 100.0
#: Where node exporter's textfile collector finds the kit's figures.
METRICS = Path("/var/lib/prometheus/node-exporter/prefect_kit.prom")
#: There with metrics_enabled alone. The directory can be that of an exporter of somebody else's, which any client may ask.
METRICS_WANTED = Path("/etc/systemd/system/prefect-metrics-node.service")
#: The state of a host that only watches another one's server (systemd/prefect-watch-from.service).
ELSEWHERE = Path("/var/lib/prefect-watch")


def hostname() -> str:
    """What messages call this host."""
    return socket.gethostname()


def places(state: Path) -> list[Path]:
    """Where the state is saved."""
    return [memory.RUN, state / "watch" / "memory.json"]


def why_nobody(settings: Settings | None, paused: Path, now: float) -> str:
    """Why alerts are off now; empty while they are on.

    Args:
        settings: None on a host that only watches the server of another one.
    """
    asked = pause.read(paused, now)
    if not settings:
        return pause.reason(asked, None, None, now)
    properties = "--property=ActiveState,NRestarts,StateChangeTimestamp"
    command = ["systemctl", "show", properties, "--timestamp=unix", "prefect-stack.service"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    stack = pause.stack_of(shown)
    return pause.reason(asked, lock.held(Path(settings.state)), stack, now)


def is_due(known: Memory, name: str, group: Group, now: float) -> bool:
    """Whether a group of checks is due; an expensive one with something bad is due again soon, since that may be over."""
    if name not in known.looks:
        return True
    bad = any(one.level > Level.WARNING for one in known.looks[name].findings)
    good_for = min(group.good_for, AGAIN) if bad else group.good_for
    # Half a minute: a timer is never quite on time.
    return alerts.passed(known.looked.get(name, 0.0), now) >= good_for - 30


def found_by(due: Mapping[str, Group]) -> dict[str, Sequence[Finding]]:
    """What groups of checks find, all at once; one that hangs, for a disk that is gone or a lock, hides nothing of the others."""
    found: dict[str, Sequence[Finding]] = {}

    def one(name: str, group: Group) -> None:
        found[name] = tried(name, group.look)

    # Daemons: the program ends without those that hang.
    threads = [threading.Thread(target=one, args=item, daemon=True) for item in due.items()]
    end = time.monotonic() + PATIENCE
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0.0))
    hangs = f"could not be looked at: it hangs, for {PATIENCE:.0f} s"
    mend = "mount; dmesg --level err,warn | tail; docker ps"
    return {name: found[name] if name in found else [Finding(name, Level.UNKNOWN, hangs, "", mend)] for name in due}


def look(known: Memory, all_groups: Mapping[str, Group], now: float) -> dict[str, Looked]:
    """Run the groups of checks that are due; the results of the others are kept."""
    due = {name: group for name, group in all_groups.items() if is_due(known, name, group, now)}
    looks = {}
    for name, findings in found_by(due).items():
        failed = any(one.check == name and one.level is Level.UNKNOWN for one in findings)
        looks[name] = Looked(list(findings), failed)
        known.looked[name] = now
    known.looks = {name: one for name, one in (known.looks | looks).items() if name in all_groups}
    return looks


def of_interest(looks: Mapping[str, Looked], ignored: Sequence[str]) -> dict[str, Looked]:
    """Without the checks of watch_ignore."""

    def told(finding: Finding) -> bool:
        return not any(fnmatch.fnmatchcase(finding.check, pattern) for pattern in ignored)

    return {name: replace(one, findings=list(filter(told, one.findings))) for name, one in looks.items()}


def run(settings: Settings, watch: Watch, paused: Path, now: float) -> int:
    """One run; gives the exit code, which is 0 whatever was found."""
    state = Path(settings.state)
    known = memory.load(places(state))
    host = Host.here(settings, Report.silent())
    if watch.notify_urls:
        delivered, waiting = outbox.again(state, watch.notify_urls, send.send)
        if delivered or waiting:
            print(f"{delivered} earlier messages delivered, {waiting} waiting")
    seen = Seen()
    looks = look(known, groups(settings, host, seen), now)
    # Before alerts are sent, which takes long where an address does not answer.
    errors = _publish(known, seen, settings, host, now)
    known.problems = alerts.seen(known.problems, of_interest(looks, watch.ignore), now)
    why = why_nobody(settings, paused, now)
    errors += [] if why else [_tell_of_problems(known, watch, state, now)]
    errors.append(_tell_of_flow_runs(known, host, settings, watch, now, bool(why)))
    known.at = now
    unwritten = memory.save(known, places(state))
    forget_own_failure(now)
    _heartbeat(watch, alerts.worst(known.problems), bool(why))
    # Last, so that nobody waits for it.
    errors += _tell_datadog(watch, settings, host, now)
    for error in filter(None, [*errors, unwritten and f"cannot save which alerts were sent: {unwritten}"]):
        print(error, file=sys.stderr)
    return 0


def _publish(known: Memory, seen: Seen, settings: Settings, host: Host, now: float) -> list[str]:
    """The same findings for others: /status, metrics, and the samples of the history. Gives what went wrong."""
    found = [finding for looked in known.looks.values() for finding in looked.findings]
    if seen.updates is not None:
        known.updates = list(seen.updates)
    errors = []
    wanted: list[tuple[Path, Callable[[], object]]] = [
        (status.PATH, lambda: status.write(status.PATH, found, datetime.fromtimestamp(now, UTC)))
    ]
    if METRICS_WANTED.exists():
        updates = replace(seen, updates=known.updates)
        wanted.append((METRICS, lambda: figures.write(METRICS, settings, host, found, now, updates)))
    for path, write in wanted:
        if path.parent.is_dir():
            try:
                write()
            except OSError as error:
                errors.append(f"{path} cannot be written: {error.strerror}")
    # How long a disk will do, too: one sample each five minutes.
    samples.record(settings, seen.work, seen.database, seen.machine, now)
    return errors


def run_from(watch: Watch, paused: Path, now: float) -> int:
    """One run on a host that watches another one's server; gives the exit code, which is 0 whatever was found."""
    known = memory.load(places(ELSEWHERE))
    if watch.notify_urls:
        outbox.again(ELSEWHERE, watch.notify_urls, send.send)
    looks = look(known, {"server": Group(lambda: elsewhere.look(watch.server))}, now)
    known.problems = alerts.seen(known.problems, looks, now)
    error = ""
    if not why_nobody(None, paused, now):
        error = _tell_of_problems(known, watch, ELSEWHERE, now)
    known.at = now
    for words in filter(None, [error, memory.save(known, places(ELSEWHERE))]):
        print(words, file=sys.stderr)
    forget_own_failure(now)
    return 0


def _tell_of_problems(known: Memory, watch: Watch, state: Path, now: float) -> str:
    if watch.notify_urls and not known.people:
        # The journal alone has had them.
        known.problems = {check: replace(one, told=0.0, told_level=Level.OK) for check, one in known.problems.items()}
    known.people = bool(watch.notify_urls)
    news, after = alerts.news(known.problems, now, watch.again_hours)
    if not news:
        return ""
    told = {one.check for one in (*news.began, *news.lasting, *news.over)}
    left = [one for one in known.problems.values() if one.told and not one.well and one.check not in told]
    here = hostname()
    # To the journal, too: logs are shipped, and there may be nobody to tell.
    for word, problems in (("new", news.began), ("still", news.lasting), ("resolved", news.over)):
        for one in problems:
            print(f"{word}: {one.level.name.lower()}: {one.check}: {one.measured}")

    def kept() -> None:
        known.problems, known.at = after, now
        memory.save(known, places(state))

    # A host that only watches another one has no prefect-doctor.
    overview = "prefect-watch status" if watch.server.url else "prefect-doctor --bad"
    return send.tell(watch, state, message.title(news, here), message.body(news, left, here, now, overview), kept)


def _tell_of_flow_runs(known: Memory, host: Host, settings: Settings, watch: Watch, now: float, quiet: bool) -> str:
    wanted = watch.flow_runs
    if not watch.notify_urls or not wanted.states:
        known.told = replace(known.told, until=now)
        return ""
    before = known.told
    try:
        found: Sequence[flow_runs.Ended] = flow_runs.look(host.postgres, wanted, before, now)
    except (Failure, psycopg.Error):
        # The checks alert to a database that is down; flow runs are queried when it is back.
        return ""
    after, due = flow_runs.decide(before, found, wanted, now, quiet)

    def kept() -> None:
        known.told, known.at = after, now
        memory.save(known, places(Path(settings.state)))

    if not due:
        kept()
        return ""
    print(f"{len(found)} flow runs to report, and {sum(before.counted.values())} counted before")
    url = settings.endpoint.url.rstrip("/")
    return send.tell(watch, Path(settings.state), *flow_runs.text(found, before, hostname(), url, now), kept)


def _tell_datadog(watch: Watch, settings: Settings, host: Host, now: float) -> list[str]:
    """Flow run state changes as events; gives what is new to say of it. Whatever goes wrong in it is no failure of the watch."""
    state = Path(settings.state)
    # In the middle of a restore the database is one, and then another; what has changed is sent when it is over.
    if pause.reason(None, lock.held(state), None, now):
        return []
    try:
        kept, url = datadog_queue.places(state), settings.endpoint.url
        return datadog_queue.run(watch.datadog, host.postgres, kept, url, hostname(), now)
    except Exception as error:
        # Of an error that nobody has thought of: it may hold the key.
        said = str(error).replace(watch.datadog.api_key, "***") if watch.datadog.api_key else str(error)
        return [f"no events are sent to Datadog: {type(error).__name__}: {said}"]


def tell_of_own_failure(watch: Watch, state: Path, error: Exception, now: float) -> None:
    """Alert people, at most every watch_again_hours, that this program itself fails."""
    mark = memory.RUN.with_name("failed")
    if mark.exists() and alerts.passed(mark.stat().st_mtime, now) < watch.again_hours * 3600:
        return
    mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    mark.touch()
    here = hostname()
    body = (
        f"prefect-watch on {here} fails, and checks nothing until this is solved: {type(error).__name__}: {error}\n"
        f"  what to do: journalctl -u {'prefect-watch-from' if watch.server.url else 'prefect-watch'} -n 50\n"
    )
    send.tell(watch, state, f"{here}: bad: prefect-watch itself fails", body)


def forget_own_failure(now: float) -> None:
    """Have the next failure of this program told at once, if it has been well for a while."""
    mark = memory.RUN.with_name("failed")
    if mark.exists() and alerts.passed(mark.stat().st_mtime, now) >= alerts.CALM_MOST:
        mark.unlink(missing_ok=True)


def _heartbeat(watch: Watch, worst: Level, paused: bool) -> None:
    """Call the heartbeat URL while nothing is bad, and during a pause: when the calls stop, the other side alerts."""
    if not watch.heartbeat_url or (worst > Level.WARNING and not paused):
        return
    import requests

    # The address is secret, and so is what an error says of it. Who misses the call is alarmed by that.
    try:
        answer = requests.get(watch.heartbeat_url, timeout=HEARTBEAT_SECONDS)
    except requests.RequestException as error:
        print(f"watch_heartbeat_url could not be called: {type(error).__name__}", file=sys.stderr)
    else:
        if not answer.ok:
            print(f"watch_heartbeat_url answers {answer.status_code}", file=sys.stderr)
