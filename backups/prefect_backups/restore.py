"""The way back: a backup becomes a database beside the live one, is proven there, and then the two swap names.

The order of things is what this module is for:

1. checks that change nothing (plan.py): a backup that opens, versions that fit, room enough;
2. a safety backup of what is there;
3. pg_restore into a new database while the old one still serves; counts and checksums against the manifest; migrations
   and statistics, also there: none of that is downtime, however large the database is;
4. the short stop: workers, server, one transaction in which the databases swap names, server;
5. the restored flow runs are reconciled: those that nobody works on any more, those whose time has passed, slots of the dead;
6. workers, and a smoke flow through the reverse proxy.

Killed anywhere, it leaves a system that serves the old data or the new, whole. journal.py says what is left to do, and
`Restore.resume` does it: at boot, and at once by systemd when the tool died (prefect-restore.service). Where that cannot
be done, a newer decision of a person takes its place: decide.py says which way is open.
"""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker.errors
import psycopg

from . import backup, decide, previous, smoke
from .bring_back import bring_back, prove
from .decide import Action, Command, Live, Renames
from .errors import Code, Failure
from .journal import MEANING, Journal
from .lock import only_one
from .plan import TAKE_BACK_ONLY, Plan, Planner, Request
from .postgres import GIVEN_UP, LIVE, PREVIOUS, RESTORING, Postgres
from .progress import Report, duration, failpoint, size
from .settings import Settings
from .stack import Stack

SCRIPT = Path(__file__).with_name("in_server.py")
CRASHED = "Its process did not survive: the server was restored from the backup {backup}."
CANCELLED = "Its time passed before the server was restored from the backup {backup}."
# What the holder of the lock does, where a newer decision may end it.
RESUMPTION = "the rest of a restore that was cut off"
# So often systemd tries it by itself; then a person has to decide.
TRIES = 3
# Seconds for a resumption that was told to stop to let go of the lock.
HANDOVER = 15.0


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
        self.planner = Planner(settings, report, self.stack, self.postgres)
        self._interruptible = True

    # --- the restore -------------------------------------------------------------------------------------------

    def run(self, request: Request) -> dict[str, Any]:
        """The whole order; gives the facts for --json. Raises Failure; then the old data serve, unless it says else."""
        with only_one(self.state, "a restore", patience=HANDOVER), self._signals():
            earlier = self._unfinished()
            if earlier is not None and earlier.aside and not self._swapped(earlier):
                # Before the checks: what they are about to look at is there.
                self._put_cluster_back(earlier)
            with self.report.step("checks that change nothing", "checks"):
                plan = self.planner.plan(request, touch=True, tolerated=self.tolerated(earlier))
            for text in plan.notes:
                self.report.say(f"      {text}")
            if not request.new_cluster:
                self._refuse_foreign("restore", earlier)
            self._safety(plan, request)
            journal = Journal(plan.backup.id, served=self.stack.serves())
            journal.cancel_before = plan.cancel_before.timestamp() if plan.cancel_before else 0.0
            unserved = self._give_up(earlier, journal)
            journal.save(self.state)
            try:
                if request.new_cluster:
                    self._new_cluster(journal)
                self._build(plan, journal)
                self._files(plan, request)
                there = self.postgres.databases()
                live = "missing" if request.new_cluster else plan.live
                renames, journal.keep_previous = decide.of_restore(live, there, request.initial, unserved)
            except BaseException:
                # What was there goes on serving, so nothing must be left of the attempt.
                self._take_back(journal)
                raise
            facts = self._switch(journal, renames, request)
            if journal.aside:
                # Not before: until the swap it may come back to its place.
                kept = f"the broken one is kept in {journal.aside}; remove it when nobody needs it any more"
                self.report.say(f"      {kept}")
            undo = self._undo_of_this()
            facts |= self._prove(request)
        made = {"backup": plan.backup.id, "repository": plan.backup.repository, "undo": undo}
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

    def _new_cluster(self, journal: Journal) -> None:
        """What is there is set aside, until the backup is proven in a new cluster; `_take_back` brings it back."""
        with self.report.step("broken cluster set aside, a new one begun", "new cluster"):
            data = self.stack.volume()
            journal.aside = str(data.with_name(time.strftime("broken-%Y%m%dT%H%M%SZ", time.gmtime())))
            journal.stopped = time.time()
            journal.workers = sorted({*journal.workers, *self.stack.active_workers()})
            journal.save(self.state)
            self.stack.set_aside(Path(journal.aside))
            self.stack.start_postgres(self.postgres)

    def _build(self, plan: Plan, journal: Journal) -> None:
        """The backup as a new database beside the live one, proven."""
        where = "a new cluster" if journal.aside else "a new database, the old one serving"
        bring_back(plan.repository, plan.backup, plan.manifest, self.postgres, self.settings, self.report, where)
        hint = "nothing has changed; choose another backup: prefect-restore --list"
        if journal.aside:
            hint = "what was there before is put back; choose another backup: prefect-restore --list"
        prove(plan.backup, plan.manifest, self.postgres, self.report, hint)
        if plan.manifest.prefect != plan.prefect:
            with self.report.step(f"migrations from Prefect {plan.manifest.prefect} to {plan.prefect}", "migrate"):
                self.stack.migrate(RESTORING)
        with (
            self.report.step("statistics for the query planner", "analyze"),
            self.postgres.connect(RESTORING) as connection,
        ):
            connection.execute("ANALYZE")
        journal.target, journal.cluster = self._oid(RESTORING), self.postgres.cluster()

    def _files(self, plan: Plan, request: Request) -> None:
        """Caddy's authority and certificates, where a host is made anew: its clients then trust it as before."""
        if not request.with_files:
            return
        kept = Path(self.stack.environment().get("PREFECT_STATE", "/var/lib/prefect")) / "caddy"
        into = self.postgres.make_staging("files")
        with self.report.step("certificate authority and certificates", "files") as advance:
            plan.repository.restore(plan.backup, str(kept), into, advance)
            self.stack.replace_caddy_data(into)
        self.postgres.remove_staging("files")

    def _oid(self, database: str) -> int:
        with self.postgres.connect("postgres") as connection:
            row = connection.execute("SELECT oid FROM pg_database WHERE datname = %s", [database]).fetchone()
            return row[0] if row else 0

    # --- the short stop ------------------------------------------------------------------------------------------

    def _switch(self, journal: Journal, renames: Renames, request: Request) -> dict[str, Any]:
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
                self.postgres.swap(*renames)
        except BaseException:
            # Where Postgres does not answer, nobody knows yet whether they have swapped: the journal tells a resumption.
            if self.postgres.answers() and self._where(journal) is not Live.TARGET:
                self._take_back(journal)
            raise
        return self._go_live(journal, time.monotonic() - stopped)

    def _go_live(self, journal: Journal, before: float = 0.0) -> dict[str, Any]:
        """Everything after the swap; what is done twice does no harm. `before` is the downtime so far, in seconds."""
        facts: dict[str, Any] = {}
        started = time.monotonic()
        reconciled = journal.phase == "starting"
        if not reconciled:
            journal.enter(self.state, "ordering")
            if journal.keep_previous:
                previous.note(self.settings, journal.backup)
            if journal.lost:
                return self._go_back_to_a_broken_one(journal)
        with self.report.step("server started and ready", "start server"):
            self.stack.start_server()
        facts["downtime_seconds"] = round(before + time.monotonic() - started, 1)
        if not reconciled:
            with self.report.step("runs of the dead, runs whose time has passed, slots", "order"):
                facts |= self._in_server(
                    do="order",
                    cancel_before=journal.cancel_before,
                    message=CRASHED.format(backup=journal.backup),
                    cancel_message=CANCELLED.format(backup=journal.backup),
                )
            journal.enter(self.state, "starting")
        self._start_proxy()
        late = self._start_workers(journal)
        self._drop_given_up()
        failpoint("end")
        # Also where a worker does not come: nothing is left that a resumption could do better than systemd.
        journal.end(self.state)
        if late is not None:
            raise late
        return {**facts, "workers": len(journal.workers), "workers_down": self._down()}

    def _go_back_to_a_broken_one(self, journal: Journal) -> dict[str, Any]:
        """An undo to a database that the server cannot serve: as it was before, which nobody has to wait for. Raises Failure."""
        with self.report.step("server started, with the database as it was", "start server"):
            self.stack.start_server(wait=False)
        with contextlib.suppress(Failure):
            self.stack.start_workers(journal.workers, wait=False)
        self._drop_given_up()
        journal.end(self.state)
        raise Failure(
            Code.NOT_READY,
            "the database of before is back as it was, without the tables"
            f" {', '.join(journal.lost[:5])}{' …' if len(journal.lost) > 5 else ''}: the server cannot serve it",
            "forward again: prefect-restore --undo ; or another backup: prefect-restore --list",
        )

    def _drop_given_up(self) -> None:
        """The undo of an earlier restore is given up only now, when this one has one of its own; and what one that did
        not end had built."""
        for name in (GIVEN_UP, RESTORING):
            self.postgres.drop(name)

    def _down(self) -> list[str]:
        """Workers that start at boot and do not run, though nothing of this restore has stopped them."""
        try:
            return [] if self._by_systemd else self.stack.down_workers()
        except Failure:
            return []

    def _start_proxy(self) -> None:
        """Workers and people come through it; the data are restored with and without it."""
        try:
            self.stack.start_proxy()
        except Failure as failure:
            self.report.say(f"      the reverse proxy does not start: {failure.fact}", style="yellow")

    def _prove(self, request: Request) -> dict[str, Any]:
        """The smoke flow; None where the restored data have no deployment for one."""
        if request.initial:
            return {}
        client = smoke.Client(self.settings.door)
        deployment = smoke.find(client, self.settings.door)
        if deployment is None:
            self.report.say(f'  none the smoke flow: there is no deployment "{self.settings.door.deployment}"')
            return {"smoke": None}
        with self.report.step("smoke flow through the reverse proxy", "smoke") as advance:
            return {"smoke": smoke.run(client, self.settings.door, deployment, advance)}

    def _in_server(self, **order: Any) -> dict[str, Any]:
        return json.loads(self.stack.in_server(SCRIPT.read_text(), {"ORDER": json.dumps(order)}))

    # --- draining ----------------------------------------------------------------------------------------------

    def _drain(self, journal: Journal, seconds: float) -> None:
        """Take no new runs, and give the running ones time to end."""
        if not self.stack.serves():
            self.report.say("      nothing to drain: the server does not answer")
            return
        with self.report.step(f"running flow runs get {duration(seconds)} to end", "drain") as advance:
            journal.paused = sorted({*journal.paused, *self._in_server(do="pause")["paused"]})
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
        if not journal.paused:
            return
        if self.stack.serves():
            self._in_server(do="unpause", paused=journal.paused)
        else:
            # Of a restore that was cut off with the server stopped.
            self.report.say(f"      paused in the database of before, should it come back: {', '.join(journal.paused)}")
        journal.paused = []
        journal.save(self.state)

    # --- undo ----------------------------------------------------------------------------------------------------

    def undo(self, request: Request) -> dict[str, Any]:
        """Swap back to the database of before the last restore. Raises Failure (NO_UNDO) when there is none."""
        with only_one(self.state, "an undo of a restore", patience=HANDOVER), self._signals():
            earlier, down = self._unfinished(), None
            try:
                self._start_postgres()
            except Failure as failure:
                down = failure
            if earlier is not None and self.undo_takes_back(earlier):
                return self._take_back_and_say(earlier)
            if request.shown == TAKE_BACK_ONLY:
                raise Failure(
                    Code.DECLINED,
                    "there is nothing to take back any more: the unfinished restore has ended meanwhile",
                    "look again: prefect-restore --undo --dry-run",
                )
            if down is not None:
                raise down
            self.check_undo()
            oid = self.previous_oid()
            if request.shown not in (0, oid):
                raise Failure(
                    Code.DECLINED,
                    "what --undo goes back to is not what was shown: another restore has come between",
                    "look again: prefect-restore --undo --dry-run",
                )
            self._refuse_foreign("undo", earlier)
            journal = Journal("undo", target=oid, cluster=self.postgres.cluster(), served=self.stack.serves())
            lost = self.lost_tables()
            last_life = self.planner.last_heartbeat()
            if not request.run_late:
                journal.cancel_before = (request.outage_since or last_life or datetime.now(UTC)).timestamp()
            self._give_up(earlier, journal)
            journal.save(self.state)
            try:
                self._migrate_previous()
                journal.lost = lost
                there = self.postgres.databases()
                journal.keep_previous = self._has_tables(LIVE)
                renames = decide.of_undo(journal.keep_previous, there)
            except BaseException:
                self._take_back(journal)
                raise
            facts = self._switch(journal, renames, request)
            undo = self._undo_of_this()
            facts |= self._prove(request)
        return {"backup": "undo", "undo": undo, **facts, "seconds": self.report.seconds}

    def _undo_of_this(self) -> str | None:
        """The command that goes back from here, where there is something to go back to."""
        if PREVIOUS in self.postgres.databases():
            return "prefect-restore --undo"
        previous.forget(self.settings)
        return None

    def _migrate_previous(self) -> None:
        """Bring the database of before to this host's Prefect; one without a migration of its own stays as it is."""
        wanted = self.postgres.revision(PREVIOUS)
        here = self.postgres.revision(LIVE) if LIVE in self.postgres.databases() else None
        if wanted is not None and wanted != here:
            with self.report.step("migrations of the database before", "migrate"):
                self.stack.migrate(PREVIOUS)

    def undo_takes_back(self, earlier: Journal) -> bool:
        """Whether an undo takes back the unfinished restore, and nothing more: its databases have not swapped yet."""
        where = self._where(earlier)
        action = decide.unfinished(Command.UNDO, earlier.phase, where, earlier.served, bool(earlier.aside))
        return action is Action.TAKE_BACK

    def drop_previous(self) -> bool:
        """Give up the database that --undo would bring back; whether there was one. Raises Failure."""
        if previous.unmarked(self.settings) and PREVIOUS in self.postgres.databases():
            self.postgres.adopt(PREVIOUS)
        there = PREVIOUS in self.postgres.databases()
        self.postgres.drop(PREVIOUS)
        previous.forget(self.settings)
        return there

    def check_undo(self) -> str:
        """Whether there is something to undo; says what, and what is wrong with it. Raises Failure (NO_UNDO)."""
        if PREVIOUS not in self.postgres.databases():
            raise Failure(
                Code.NO_UNDO,
                f'there is no restore to undo: no database "{PREVIOUS}"',
                f"it is kept for {self.settings.keep_previous_days:.0f} days after a restore; safety backups are in:"
                " prefect-restore --list",
            )
        known = previous.read(self.settings)
        when = duration(time.time() - known["since"]) + " ago" if "since" in known else "at an unknown time"
        name = Journal(known.get("backup", "?")).name
        said = f"the database of before {name}, {when} ({size(self.postgres.size(PREVIOUS))})"
        if lost := self.lost_tables():
            said += f"\nBut the server cannot serve it: it lacks the tables {', '.join(lost)}"
        return said

    def previous_oid(self) -> int:
        """The identity of the database of before; 0 where there is none."""
        return self._oid(PREVIOUS)

    def lost_tables(self) -> list[str]:
        """Tables that the database of before lacks, and that the server needs."""
        try:
            there = self.postgres.tables(PREVIOUS)
        except (Failure, psycopg.Error):
            # Broken in another way; that shows when it is served.
            return []
        with contextlib.suppress(Failure, psycopg.Error):
            if self.postgres.revision(PREVIOUS) == self.postgres.revision(LIVE):
                return sorted(self.postgres.tables(LIVE) - there)
        return sorted({"alembic_version", "flow_run", "flow", "deployment", "work_pool", "log"} - there)

    def _has_tables(self, database: str) -> bool:
        return database in self.postgres.databases() and bool(self.postgres.tables(database))

    # --- one that did not end --------------------------------------------------------------------------------------

    def _unfinished(self) -> Journal | None:
        """The restore that did not end; a journal that cannot be read is set aside."""
        try:
            found = Journal.load(self.state)
        except Failure as failure:
            self.report.say(f"      {failure.fact}; it is kept as {Journal.set_aside(self.state)}", style="yellow")
            return None
        self.stack.repair_caddy_data()
        return found

    def tolerated(self, earlier: Journal | None) -> list[str]:
        """Databases of ours that may have no mark: of a kit before there were marks, or killed before it was made."""
        names = [RESTORING, GIVEN_UP] if earlier is not None else []
        return names + [PREVIOUS] * previous.unmarked(self.settings)

    def _refuse_foreign(self, what: str, earlier: Journal | None) -> None:
        """Raise Failure (FOREIGN) where a person's database has a name of ours; what is ours is marked so."""
        there = self.postgres.databases()
        for name in self.tolerated(earlier):
            if name in there:
                self.postgres.adopt(name)
        previous.marked(self.settings)
        self.postgres.refuse_foreign(what)

    def _give_up(self, earlier: Journal | None, journal: Journal) -> bool:
        """Let a new journal take the place of an unfinished one; gives whether the live database is one of it, unserved."""
        if earlier is None:
            return False
        where = self._where(earlier)
        self.report.say(f"      given up: {earlier.name}, which did not end ({MEANING[earlier.phase]})")
        journal.take_place_of(earlier)
        return where is Live.TARGET and earlier.backup != "undo" and earlier.keep_previous

    def _where(self, journal: Journal) -> Live:
        """What the live database is, seen from a journal."""
        try:
            oid = self._oid(LIVE)
            if not oid:
                return Live.GONE
            same = not journal.cluster or journal.cluster == self.postgres.cluster()
        except (Failure, psycopg.Error):
            return Live.GONE
        with contextlib.suppress(Failure, psycopg.Error):
            # One that is too broken for that question is broken in another way.
            if not self.postgres.tables():
                return Live.GONE
        return Live.TARGET if same and oid == journal.target else Live.BEFORE

    def _swapped(self, journal: Journal) -> bool:
        """Whether the databases of an unfinished restore have swapped; asked of Postgres where the phase does not tell."""
        if journal.phase == "switching":
            with contextlib.suppress(Failure):
                self._start_postgres()
            return self._where(journal) is Live.TARGET
        return journal.phase != "building"

    def _start_postgres(self) -> None:
        if not self.postgres.answers():
            self.stack.start_postgres(self.postgres)

    def resume(self) -> dict[str, Any] | None:
        """Finish, or take back, what a killed restore has left. None: there was nothing."""
        with only_one(self.state, RESUMPTION, patience=60):
            return self.resume_unlocked()

    def resume_unlocked(self) -> dict[str, Any] | None:
        """The same, for who holds the lock. Raises Failure."""
        journal = Journal.load(self.state)
        if journal is None:
            return None
        ago = duration(time.time() - journal.started)
        self.report.say(f'A restore of "{journal.backup}" was cut off (begun {ago} ago, phase "{journal.phase}").')
        self._count(journal)
        self.stack.repair_caddy_data()
        if journal.aside and journal.phase == "building":
            self._put_cluster_back(journal)
        why = ""
        try:
            self._start_postgres()
        except Failure as failure:
            if failure.code is Code.NO_ROOM and journal.phase != "building":
                raise
            why = failure.fact
        where = self._where(journal)
        action = decide.unfinished(Command.RESUME, journal.phase, where, journal.served, bool(journal.aside))
        if action is Action.TAKE_BACK:
            return self._take_back_and_say(journal)
        if action is Action.STUCK:
            there = not why and self._oid(LIVE)
            why = why or (f'the database "{LIVE}" has no tables' if there else f'there is no database "{LIVE}"')
            raise Failure(
                Code.NOT_READY,
                f"{journal.name}, which did not end, cannot go on: {why}",
                "bring a backup back, which gives it up: prefect-restore --latest"
                + (
                    "" if not why.startswith("Postgres") else " ; where Postgres does not start: --latest --new-cluster"
                ),
            )
        facts = self._go_live(journal)
        self.report.say("It is finished: the restored data are served.")
        return {"backup": journal.backup, "resumed": "finished", **facts}

    def _count(self, journal: Journal) -> None:
        """systemd tries a few times; a person as often as wanted. Raises Failure when it has tried enough."""
        if not self._by_systemd:
            journal.tries = 0
        elif journal.tries >= TRIES:
            raise Failure(
                Code.NOT_READY,
                f"{journal.name}, which did not end, was tried {journal.tries} times, and is not tried again by itself",
                "try it once more: prefect-restore --resume ; go back: --undo ; or give it up for a backup: --latest",
            )
        else:
            journal.tries += 1
        # A disk that is full must not keep it from trying.
        with contextlib.suppress(OSError):
            journal.save(self.state)

    def _take_back_and_say(self, journal: Journal) -> dict[str, Any]:
        if not self._take_back(journal):
            raise Failure(
                Code.NOT_READY,
                f"{journal.name}, which did not end, cannot be taken back yet: the server does not come",
                "look at: docker ps --all ; journalctl -n 20 -u prefect-stack ; when that is solved:"
                " prefect-restore --resume ; or bring a backup back: prefect-restore --latest",
            )
        self.report.say("It is taken back: the data of before the restore are there. Run the restore again.")
        return {"backup": journal.backup, "resumed": "taken back"}

    def _take_back(self, journal: Journal) -> bool:
        """Leave nothing of an attempt: the old database serves, as before. What cannot be done now stays in the journal.

        Gives whether all of it was done: it is called where another failure is on its way already.
        """
        try:
            if journal.aside and journal.phase in ("building", "switching"):
                self._put_cluster_back(journal)
            # What cannot be removed now, the next restore removes.
            with contextlib.suppress(Failure, psycopg.Error):
                self.postgres.end_orphans()
                if journal.backup != "undo" and RESTORING in self.postgres.databases():
                    self.postgres.adopt(RESTORING)
                    self.postgres.drop(RESTORING)
            for name in ("restore", "files"):
                self.postgres.remove_staging(name)
            earlier = journal.replaced()
            if earlier is not None:
                earlier.save(self.state)
                self.report.say(f"      {earlier.name} is there again, unfinished: prefect-restore --resume")
                return True
            if journal.phase != "building" or journal.stopped:
                self._serve_as_before(journal)
        except (Failure, OSError, psycopg.Error, docker.errors.DockerException) as error:
            self.report.say(f"      not taken back yet: {' '.join(str(error).split())}", style="yellow")
            return False
        journal.end(self.state)
        return True

    def _serve_as_before(self, journal: Journal) -> None:
        """Start what the restore has stopped; what was broken before is not waited for. Raises Failure."""
        if journal.served:
            self.stack.start_server()
            self._unpause(journal)
            if late := self._start_workers(journal):
                self.report.say(f"      {late.fact}", style="yellow")
            return
        with contextlib.suppress(Failure):
            self.stack.start_server(wait=False)
        with contextlib.suppress(Failure):
            self.stack.start_workers(journal.workers, wait=False)

    def _put_cluster_back(self, journal: Journal) -> None:
        """The data that --new-cluster has set aside are in their place again. Raises Failure."""
        with self.report.step("the cluster of before is put back", "put back"):
            self.stack.put_back(Path(journal.aside))
            journal.aside = ""
            journal.save(self.state)

    def _start_workers(self, journal: Journal) -> Failure | None:
        """Start what ran before; gives what does not come."""
        try:
            with self.report.step("workers started", "start workers"):
                self.stack.start_workers(journal.workers, wait=not self._by_systemd)
        except Failure as failure:
            return failure
        return None

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
