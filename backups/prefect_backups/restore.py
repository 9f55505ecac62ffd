"""The way back: a backup becomes a database beside the live one, is proven there, and then the two swap names.

The order of things is what this module is for; each step is a module that can be read alone:

1. plan.py: checks that change nothing: a backup that opens, versions that fit, room enough;
2. build.py: a safety backup of what is there; then pg_restore into a new database while the old one still serves, counts
   and checksums against the manifest, migrations and statistics: none of that is downtime, however large it is;
3. switch.py: the short stop: workers, server, one transaction in which the databases swap names, server; the restored
   flow runs are reconciled: those that nobody works on any more, those whose time has passed, slots of the dead; workers;
4. smoke.py: a flow run through the reverse proxy.

Killed anywhere, it leaves a system that serves the old data or the new, whole. journal.py says what is left to do, and
resume.py does it: at boot, and at once by systemd when the tool died (prefect-restore.service). Where that cannot be
done, a newer decision of a person takes its place: decide.py says which way is open, unfinished.py what it is asked of.
take_back.py leaves the old data served, and nothing of an attempt. undo.py is what an undo sees of the database of before.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from . import block_key, build, decide, new_block_key, previous, resume, smoke, switch, undo, unfinished
from .errors import Failure
from .host import Host
from .journal import Journal
from .lock import only_one
from .plan import Planner, Request
from .postgres import PREVIOUS
from .served import served
from .stopping import stoppable
from .take_back import put_cluster_back, take_back_and_say, taken_back_on_failure

# What the holder of the lock does, where a newer decision may end it.
RESUMPTION = "the rest of a restore that was cut off"
# Seconds for a resumption that was told to stop to let go of the lock.
HANDOVER = 15.0


class Restore:
    """One restore, undo or resumption on this host."""

    def __init__(self, host: Host, planner: Planner | None = None) -> None:
        self.host = host
        self.planner = planner or Planner(host)

    def run(self, request: Request) -> dict[str, Any]:
        """A backup in the place of what is there; gives the facts for --json. Raises Failure; then the old data serve,
        unless it says else."""
        host, report = self.host, self.host.report
        with only_one(host.state, "a restore", patience=HANDOVER), stoppable(report) as stop:
            earlier = unfinished.read(host)
            if earlier is not None and earlier.aside and not unfinished.swapped(host, earlier):
                # Before the checks: what they are about to look at is there.
                put_cluster_back(host, earlier)
            with report.step("checks that change nothing", "checks"):
                plan = self.planner.plan(request, touch=True, tolerated=unfinished.tolerated(host, earlier))
            for text in plan.notes:
                report.say(f"      {text}")
            if not request.new_cluster:
                unfinished.refuse_foreign(host, "restore", earlier)
            if decide.safety_backup(
                plan.live, wanted=request.safety_backup and not request.initial, lost=request.new_cluster
            ):
                build.safety_backup(host)

            cancel_before = plan.cancel_before.timestamp() if plan.cancel_before else 0.0
            journal = Journal(
                plan.backup.id, served=host.stack.serves(), cancel_before=cancel_before, as_is=request.as_is
            )
            _with_image(host, journal, request.image)
            unserved = unfinished.give_up(host, earlier, journal)
            journal.save(host.state)
            with taken_back_on_failure(host, journal):
                if request.new_cluster:
                    build.new_cluster(host, journal)
                build.database(host, plan, journal)
                if request.with_files:
                    build.files(host, plan)
                build.audit(host, plan)
                there = host.postgres.databases()
                live = "missing" if request.new_cluster else plan.live
                renames, journal.keep_previous = decide.of_restore(live, there, request.initial, unserved)

            stop.put_off()
            facts = switch.switch(host, journal, renames, request.drain)
            if journal.aside:
                # Not before: until the swap it may come back to its place.
                kept = f"the broken one is kept in {journal.aside}; remove it when nobody needs it any more"
                report.say(f"      {kept}")
            back = undo.command(host)
            if not request.initial:
                facts |= smoke.prove(host.settings.endpoint, report)
        made = {"backup": plan.backup.id, "repository": plan.backup.repository, "undo": back}
        return {**made, **facts, "seconds": report.seconds}

    def undo(self, request: Request) -> dict[str, Any]:
        """Swap back to the database of before the last restore. Raises Failure (NO_UNDO) when there is none."""
        host, report = self.host, self.host.report
        with only_one(host.state, "an undo of a restore", patience=HANDOVER), stoppable(report) as stop:
            earlier, down = unfinished.read(host), None
            try:
                host.start_postgres()
            except Failure as failure:
                down = failure
            if earlier is not None and unfinished.undo_takes_back(host, earlier):
                return take_back_and_say(host, earlier)
            undo.refuse_nothing_to_take_back(request.shown)
            if down is not None:
                raise down
            undo.check(host)
            target = host.postgres.oid(PREVIOUS)
            undo.refuse_what_was_not_shown(request.shown, target)
            unfinished.refuse_foreign(host, "undo", earlier)

            journal = Journal("undo", target=target, cluster=host.postgres.cluster(), served=host.stack.serves())
            _with_image(host, journal, previous.read(host.settings).get("image", ""))
            lost, last_life = undo.lost_tables(host), self.planner.last_heartbeat()
            if not request.run_late:
                journal.cancel_before = (request.outage_since or last_life or datetime.now(UTC)).timestamp()
            unfinished.give_up(host, earlier, journal)
            journal.save(host.state)
            with taken_back_on_failure(host, journal):
                undo.migrate(host, journal.image)
                # Not before: taking this one back is to serve what was served.
                journal.lost = lost
                journal.keep_previous = undo.live_has_tables(host)
                renames = decide.of_undo(journal.keep_previous, host.postgres.databases())

            stop.put_off()
            facts = switch.switch(host, journal, renames, request.drain)
            back = undo.command(host)
            if not request.initial:
                facts |= smoke.prove(host.settings.endpoint, report)
        return {"backup": "undo", "undo": back, **facts, "seconds": report.seconds}

    def resume(self) -> dict[str, Any] | None:
        """Finish, or take back, what a killed restore has left, and a change of the key of the blocks. None: there was nothing."""
        with only_one(self.host.state, RESUMPTION, patience=60):
            done = resume.resume(self.host)
            if block_key.next_path(self.host.settings).exists():
                self.host.report.say("A change of the key of the blocks was cut off.")
                done = {**(done or {}), "resumed": "finished", "key": new_block_key.finish(self.host)}
            return done


def _with_image(host: Host, journal: Journal, image: str) -> None:
    """Note which image is to serve, where that is another one than now, and which one does now."""
    if image and image != (now := served(host)):
        journal.image, journal.image_before = image, now
