"""The way back: a backup becomes a database beside the live one, is proven there, and then the two swap names.

The order of things is what this module is for:

1. checks that change nothing: a backup that opens, versions that fit, room enough;
2. a safety backup of what is there;
3. pg_restore into a new database while the old one still serves; counts and checksums against the manifest; migrations
   and statistics, also there: none of that is downtime, however large the database is;
4. the short stop: workers, server, one transaction in which the databases swap names, server;
5. the restored world in order: runs that nobody works on any more, runs whose time has passed, slots of the dead;
6. workers, and a smoke flow through the door.

Killed anywhere, it leaves a system that serves the old data or the new, whole. journal.py says what is left to do, and
`Restore.resume` does it: at boot, and at once by systemd when the tool died (prefect-restore.service).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from . import backup, choose, manifest, previous, smoke
from .bring_back import bring_back, prove
from .errors import Code, Failure
from .journal import Journal
from .lock import only_one
from .postgres import GIVEN_UP, LIVE, PREVIOUS, RESTORING, Postgres
from .progress import Report, duration, failpoint, size
from .restic import Backup, Repository
from .settings import Settings
from .stack import Stack

SCRIPT = Path(__file__).with_name("in_server.py")
CRASHED = "Its process did not survive: the server was restored from the backup {backup}."
CANCELLED = "Its time passed before the server was restored from the backup {backup}."


@dataclass(frozen=True)
class Request:
    """What was asked for; see the options of prefect-restore."""

    id: str | None = None
    before: datetime | None = None
    repository: str | None = None
    run_late: bool = False
    outage_since: datetime | None = None
    drain: float = 0.0
    safety_backup: bool = True
    new_cluster: bool = False
    with_files: bool = False
    initial: bool = False


@dataclass
class Plan:
    """What the checks found out."""

    backup: Backup
    manifest: manifest.Manifest
    repository: Repository
    # Prefect of this host.
    prefect: str
    # What the live database is: "missing", "empty", "readable", or "unreadable" (by us; pg_dump may still read it).
    live: str
    # The last sign of life of the world that is there.
    last_life: datetime | None
    cancel_before: datetime | None
    notes: list[str] = field(default_factory=list)


# Workers give a sign every 30 s, also when no flow runs.
LAST_LIFE = (
    """SELECT greatest((SELECT max(timestamp) FROM flow_run_state), (SELECT max(last_heartbeat_time) FROM worker))"""
)


class Interrupted(Exception):
    """A person said stop, while stopping was still possible."""


class Restore:
    """One restore, undo or resumption on this host."""

    def __init__(self, settings: Settings, report: Report, by_systemd: bool = False) -> None:
        """`by_systemd`: in prefect-restore.service, after which the workers are ordered: waiting for them would not end."""
        self._by_systemd = by_systemd
        self.settings = settings
        self.report = report
        self.state = Path(settings.state)
        self.stack = Stack(settings)
        self.postgres = Postgres.live(settings)
        self._interruptible = True

    # --- what there is -----------------------------------------------------------------------------------------

    def repositories(self, name: str | None) -> list[Repository]:
        """The local repository (None), or a named one; "off-site" is the first that is not local, "all" is all."""
        local, offsite = Repository.local(self.settings), Repository.offsite(self.settings)
        if name in (None, "local"):
            return [local]
        if name == "all":
            return [local, *offsite]
        any_of_them = name in ("off-site", "offsite")
        chosen = offsite[:1] if any_of_them else [one for one in offsite if one.name == name]
        if not chosen:
            known = ", ".join(["local", *(one.name for one in offsite)])
            raise Failure(Code.NOT_FOUND, f'there is no repository "{name}"; there are: {known}', "see backups_offsite")
        return chosen

    def backups(self, name: str | None, initial: bool = False) -> list[Backup]:
        """The backups of a repository, newest first. For a first restore on a new host, of all that answer."""
        if not initial:
            chosen = self.repositories(name)[0]
            chosen.open()
            return chosen.backups()
        lists, failures = [], []
        for repository in self.repositories(name or "all"):
            try:
                repository.open()
                lists.append(repository.backups())
            except Failure as failure:
                failures.append(failure)
        found = choose.merge(lists)
        if not found and failures:
            raise failures[-1]
        return found

    def plan(self, request: Request) -> Plan:
        """The checks that change nothing (but for starting a Postgres that is down). Raises Failure."""
        chosen = choose.pick(self.backups(request.repository, request.initial), request.id, request.before)
        repository = next(one for one in self.repositories("all") if one.name == chosen.repository)
        facts = manifest.Manifest.from_json(repository.read(chosen, manifest.path(self.settings)))
        plan = Plan(chosen, facts, repository, self.stack.prefect_version(), "missing", None, None)
        self._check_versions(plan)
        if not request.new_cluster:
            if not self.postgres.answers():
                plan.notes.append("Postgres was down and has been started")
                self.stack.start_postgres(self.postgres)
            self._look_at_live(plan, request)
        self._check_room(plan)
        if not request.run_late:
            plan.cancel_before = request.outage_since or plan.last_life or datetime.now(UTC)
        return plan

    def _check_versions(self, plan: Plan) -> None:
        made, here = plan.manifest.prefect, plan.prefect
        if choose.newer(made, here):
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing to restore {plan.backup.id}: it is of Prefect {made}, and this host runs Prefect {here},"
                " which cannot read it",
                f"set prefect_version: {made} in the inventory, run site.yml --tags stack,backups,workers, then restore;"
                " or choose an older backup: prefect-restore --list",
            )
        image = self.stack.environment().get("POSTGRES_IMAGE", "")
        major = image.rsplit(":", 1)[-1].split(".")[0].split("-")[0]
        made_major = plan.manifest.postgres.split(".")[0]
        if major.isdigit() and int(made_major) > int(major):
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing to restore {plan.backup.id}: it is of Postgres {plan.manifest.postgres}, and this host runs"
                f" {image}, whose pg_restore cannot read it",
                f"set prefect_postgres_image to a Postgres {made_major} in the inventory, run site.yml --tags stack",
            )

    def _look_at_live(self, plan: Plan, request: Request) -> None:
        """What is there now, and when it last gave a sign of life."""
        if LIVE not in self.postgres.databases():
            plan.notes.append(f'there is no database "{LIVE}" at the moment')
            return
        try:
            if self.postgres.revision() is None:
                plan.live = "empty"
                plan.notes.append("the database there now is empty")
                return
            plan.last_life = self._last_life()
            with self.postgres.connect() as connection:
                runs = connection.execute("SELECT count(*) FROM flow_run").fetchone()[0]
            plan.live = "readable"
        except (Failure, psycopg.Error) as error:
            plan.live = "unreadable"
            plan.notes.append(f"the database there now cannot be read whole: {' '.join(str(error).split())}")
            return
        if request.initial and runs:
            raise Failure(
                Code.DECLINED,
                f"Refusing a first restore: this server has {runs} flow runs of its own",
                "to replace them all the same: prefect-restore --latest",
            )

    def _check_room(self, plan: Plan) -> None:
        """The dump on its way, and the new database beside the old one, with its write-ahead log."""
        volume = self.stack.volume()
        needs: dict[int, list[Any]] = {}
        for path, count in (
            (self.postgres.staging, plan.manifest.dump_bytes),
            (volume if volume.exists() else volume.parent, int(plan.manifest.database_bytes * 1.1) + 300_000_000),
        ):
            need = needs.setdefault(path.stat().st_dev, [path, 0])
            need[1] += count
        for path, count in needs.values():
            free = shutil.disk_usage(path).free
            reserve = self.settings.reserve_mb * 2**20
            if free < count + reserve:
                raise Failure(
                    Code.NO_ROOM,
                    f"Refusing to restore {plan.backup.id}: it needs {size(count)} at {path} and {size(reserve)} must stay"
                    f" free (backups_reserve_mb), but {size(free)} are free",
                    "make room: docker system prune; prefect-backup prune; prefect-restore --drop-previous, if nobody wants --undo",
                )

    # --- the restore -------------------------------------------------------------------------------------------

    def run(self, request: Request) -> dict[str, Any]:
        """The whole order; gives the facts for --json. Raises Failure; then the old data serve, unless it says else."""
        with only_one(self.state, "a restore"), self._signals():
            self.resume_unlocked()
            with self.report.step("checks that change nothing", "checks"):
                plan = self.plan(request)
            for text in plan.notes:
                self.report.say(f"      {text}")
            self._safety(plan, request)
            journal = Journal(plan.backup.id)
            journal.cancel_before = plan.cancel_before.timestamp() if plan.cancel_before else 0.0
            journal.keep_previous = plan.live in ("readable", "unreadable") and not request.initial
            journal.save(self.state)
            try:
                if request.new_cluster:
                    self._new_cluster()
                self._build(plan, journal)
                self._files(plan, request)
            except BaseException:
                # What was there goes on serving, so nothing must be left of the attempt.
                self._take_back(journal)
                raise
            renames = [(PREVIOUS, GIVEN_UP), (LIVE, PREVIOUS), (RESTORING, LIVE)]
            facts = self._switch(journal, renames, request)
            facts |= self._prove(request)
        undo = "prefect-restore --undo" if journal.keep_previous else None
        made = {"backup": plan.backup.id, "repository": plan.repository.name, "undo": undo}
        return {**made, **facts, "seconds": self.report.seconds}

    def _safety(self, plan: Plan, request: Request) -> None:
        if plan.live in ("missing", "empty") or request.initial or not request.safety_backup or request.new_cluster:
            return
        with self.report.step("safety backup of what is there", "safety"):
            try:
                made = backup.create_unlocked(self.settings, "safety", Report.silent())
            except Failure as failure:
                raise Failure(
                    Code.SAFETY_BACKUP,
                    f"Refusing to go on: what is there now cannot be backed up first: {failure.fact}",
                    "nothing has changed. To go on without: the same command with --without-safety-backup; what is there"
                    " is then kept as it is, for prefect-restore --undo, and nowhere else",
                ) from failure
        self.report.say(f"      kept as {made['id']}")

    def _new_cluster(self) -> None:
        with self.report.step("broken cluster set aside, a new one begun", "new cluster"):
            aside = self.stack.new_cluster()
            self.stack.start_postgres(self.postgres)
        self.report.say(f"      the broken one is kept in {aside}; remove it when nobody needs it any more")

    def _build(self, plan: Plan, journal: Journal) -> None:
        """The backup as a new database beside the live one, proven."""
        where = "a new database, the old one serving"
        bring_back(plan.repository, plan.backup, plan.manifest, self.postgres, self.settings, self.report, where)
        hint = "nothing has changed; choose another backup: prefect-restore --list"
        prove(plan.backup, plan.manifest, self.postgres, self.report, hint)
        if plan.manifest.prefect != plan.prefect:
            with self.report.step(f"migrations from Prefect {plan.manifest.prefect} to {plan.prefect}", "migrate"):
                self.stack.migrate(RESTORING)
        with (
            self.report.step("statistics for the query planner", "analyze"),
            self.postgres.connect(RESTORING) as connection,
        ):
            connection.execute("ANALYZE")
        journal.target = self._oid(RESTORING)

    def _files(self, plan: Plan, request: Request) -> None:
        """Caddy's authority and certificates, where a host is made anew: its clients then trust it as before."""
        if not request.with_files:
            return
        kept = Path(self.stack.environment().get("PREFECT_STATE", "/var/lib/prefect")) / "caddy"
        into = self.postgres.make_staging("files")
        with self.report.step("certificate authority and certificates", "files") as advance:
            plan.repository.restore(plan.backup, str(kept), into, advance)
            self.stack.replace_caddy_data(into)
        shutil.rmtree(into, ignore_errors=True)

    def _oid(self, database: str) -> int:
        with self.postgres.connect("postgres") as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [database]).fetchone()
            return row[0] if row else 0

    def _switch(self, journal: Journal, renames: list[tuple[str, str]], request: Request) -> dict[str, Any]:
        """The short stop. From here on a person's Ctrl-C is put off: what follows takes seconds and must be whole."""
        self._interruptible = False
        journal.workers = sorted({*journal.workers, *self.stack.active_workers()})
        journal.enter(self.state, "switching")
        stopped = time.monotonic()
        try:
            if request.drain:
                self._drain(journal, request.drain)
            with self.report.step("workers stopped", "stop workers"):
                self.stack.stop_workers(journal.workers)
            self._unpause(journal)
            # Of a restore that was killed after its swap.
            self.postgres.drop(GIVEN_UP)
            stopped = time.monotonic()
            with self.report.step("server stopped", "stop server"):
                self.stack.stop_server()
                self.stack.forget_leases()
            with self.report.step("databases swap names in one transaction", "swap"):
                self.postgres.swap(*possible(renames, self.postgres.databases()))
        except BaseException:
            if self._oid(LIVE) != journal.target:
                self._take_back(journal)
            raise
        return self._go_live(journal, time.monotonic() - stopped)

    def _go_live(self, journal: Journal, before: float = 0.0) -> dict[str, Any]:
        """Everything after the swap; what is done twice does no harm. `before` is the downtime so far, in seconds."""
        journal.enter(self.state, "ordering")
        started = time.monotonic()
        with self.report.step("server started and ready", "start server"):
            self.stack.start_server()
        downtime = before + time.monotonic() - started
        with self.report.step("runs of the dead, runs whose time has passed, slots", "order"):
            facts = self._in_server(
                do="order",
                cancel_before=journal.cancel_before,
                message=CRASHED.format(backup=journal.backup),
                cancel_message=CANCELLED.format(backup=journal.backup),
            )
        self._start_workers(journal)
        # The undo of an earlier restore is given up only now, when this one has one of its own.
        self.postgres.drop(GIVEN_UP)
        if journal.keep_previous:
            previous.note(self.settings, journal.backup)
        else:
            self.postgres.drop(PREVIOUS)
        failpoint("end")
        journal.end(self.state)
        return {**facts, "workers": len(journal.workers), "downtime_seconds": round(downtime, 1)}

    def _prove(self, request: Request) -> dict[str, Any]:
        if request.initial:
            return {}
        with self.report.step("smoke flow through the door", "smoke") as advance:
            return {"smoke": smoke.run(self.settings.door, advance)}

    def _in_server(self, **order: Any) -> dict[str, Any]:
        return json.loads(self.stack.in_server(SCRIPT.read_text(), {"ORDER": json.dumps(order)}))

    # --- draining ----------------------------------------------------------------------------------------------

    def _drain(self, journal: Journal, seconds: float) -> None:
        """Take no new runs, and give the running ones time to end."""
        with self.report.step(f"running flow runs get {duration(seconds)} to end", "drain") as advance:
            journal.paused = self._in_server(do="pause")["paused"]
            journal.save(self.state)
            end = time.monotonic() + seconds
            while (running := self._running()) and time.monotonic() < end:
                advance(None, f"{running} running")
                time.sleep(1)
        if running:
            self.report.say(f"      {running} flow runs are still running and will be ended")

    def _running(self) -> int:
        with self.postgres.connect() as connection:
            query = "SELECT count(*) FROM flow_run WHERE state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
            return connection.execute(query).fetchone()[0]

    def _unpause(self, journal: Journal) -> None:
        """The world before is left as it was found, should it come back by an undo."""
        if journal.paused:
            self._in_server(do="unpause", paused=journal.paused)
            journal.paused = []
            journal.save(self.state)

    # --- undo ----------------------------------------------------------------------------------------------------

    def undo(self, request: Request) -> dict[str, Any]:
        """Swap back to the database of before the last restore. Raises Failure (NO_UNDO) when there is none."""
        with only_one(self.state, "an undo of a restore"), self._signals():
            earlier = Journal.load(self.state)
            # A restore whose server does not come back must be no obstacle to going back.
            if earlier is not None and earlier.phase == "ordering":
                earlier.end(self.state)
            else:
                self.resume_unlocked()
            self.check_undo()
            journal = Journal("undo", target=self._oid(PREVIOUS), workers=earlier.workers if earlier else [])
            last_life = self._last_life()
            if not request.run_late:
                journal.cancel_before = (request.outage_since or last_life or datetime.now(UTC)).timestamp()
            if self.postgres.revision(PREVIOUS) != self.postgres.revision(LIVE):
                with self.report.step("migrations of the database before", "migrate"):
                    self.stack.migrate(PREVIOUS)
            journal.save(self.state)
            aside = "prefect_swapping"
            facts = self._switch(journal, [(LIVE, aside), (PREVIOUS, LIVE), (aside, PREVIOUS)], request)
            facts |= self._prove(request)
        return {"backup": "undo", "undo": "prefect-restore --undo", **facts, "seconds": self.report.seconds}

    def check_undo(self) -> str:
        """Whether there is something to undo; says what. Raises Failure (NO_UNDO)."""
        if PREVIOUS not in self.postgres.databases():
            raise Failure(
                Code.NO_UNDO,
                f'there is no restore to undo: no database "{PREVIOUS}"',
                f"it is kept for {self.settings.keep_previous_days:.0f} days after a restore; safety backups are in:"
                " prefect-restore --list",
            )
        known = previous.read(self.settings)
        when = duration(time.time() - known["since"]) + " ago" if "since" in known else "at an unknown time"
        return f"the database of before the restore of {known.get('backup', '?')}, {when} ({size(self.postgres.size(PREVIOUS))})"

    def _last_life(self) -> datetime | None:
        try:
            with self.postgres.connect() as connection:
                return connection.execute(LAST_LIFE).fetchone()[0]
        except (Failure, psycopg.Error):
            return None

    # --- after a death -------------------------------------------------------------------------------------------

    def resume(self) -> dict[str, Any] | None:
        """Finish, or take back, what a killed restore has left. None: there was nothing."""
        with only_one(self.state, "the rest of a restore that was cut off", patience=60):
            return self.resume_unlocked()

    def resume_unlocked(self) -> dict[str, Any] | None:
        """The same, for who holds the lock. Raises Failure."""
        journal = Journal.load(self.state)
        if journal is None:
            return None
        ago = duration(time.time() - journal.started)
        self.report.say(f'A restore of "{journal.backup}" was cut off (begun {ago} ago, phase "{journal.phase}").')
        self.stack.repair_caddy_data()
        # A killed --new-cluster may have left Docker without the directory of the volume.
        self.stack.volume().mkdir(mode=0o755, exist_ok=True)
        self.stack.start_postgres(self.postgres)
        if journal.phase == "building" or (journal.phase == "switching" and self._oid(LIVE) != journal.target):
            if not self._take_back(journal):
                raise Failure(
                    Code.NOT_READY,
                    f'the restore of "{journal.backup}" that was cut off cannot be taken back yet',
                    "look at: docker ps --all ; journalctl -n 20 -u prefect-stack ; then: prefect-restore --resume",
                )
            self.report.say("It is taken back: the data of before the restore are served. Run the restore again.")
            return {"backup": journal.backup, "resumed": "taken back"}
        facts = self._go_live(journal)
        self.report.say("It is finished: the restored data are served.")
        return {"backup": journal.backup, "resumed": "finished", **facts}

    def _take_back(self, journal: Journal) -> bool:
        """Leave nothing of an attempt: the old database serves, as before. What cannot be done now stays in the journal.

        Gives whether all of it was done: it is called where another failure is on its way already.
        """
        with contextlib.suppress(Failure, psycopg.Error):
            self.postgres.end_orphans()
            if journal.backup != "undo":
                self.postgres.drop(RESTORING)
            for name in ("restore", "files"):
                shutil.rmtree(self.postgres.staging / name, ignore_errors=True)
            if journal.phase == "switching":
                self.stack.start_server()
                self._unpause(journal)
                self._start_workers(journal)
            journal.end(self.state)
            return True
        return False

    def _start_workers(self, journal: Journal) -> None:
        with self.report.step("workers started", "start workers"):
            self.stack.start_workers(journal.workers, wait=not self._by_systemd)

    # --- signals -------------------------------------------------------------------------------------------------

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and systemctl stop: taken back while that is possible, put off during the short stop."""

        def handle(number: int, frame: object) -> None:
            if self._interruptible:
                self._interruptible = False
                raise Interrupted(signal.Signals(number).name)
            self.report.say("      The short stop is under way and ends by itself in seconds; not stopping now.")

        wanted = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, handle) for number in wanted}
        # The terminal may go; the work does not.
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def possible(renames: list[tuple[str, str]], there: set[str]) -> list[tuple[str, str]]:
    """The renames whose database exists when their turn comes: one that somebody dropped is no obstacle."""
    names, chosen = set(there), []
    for old, new in renames:
        if old in names:
            names = names - {old} | {new}
            chosen.append((old, new))
    return chosen
