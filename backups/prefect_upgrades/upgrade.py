"""An upgrade of Prefect on this host, and the way back. The order of things is what this module is for:

1. rehearse.py: a copy of the live data is migrated beside it, and both servers are asked on it;
2. the smoke flow, so that what fails afterwards was well before; then a backup, off-site too;
3. migrations, while the old server serves where the rehearsal has shown that it can;
4. replace.py: the server's container alone is replaced, while another one answers;
5. the smoke flow.

A failure takes back what was done and says what serves. Cut off anywhere, the journal (record.py) lets the next run, or
prefect-upgrade.service at boot, take it back or finish it: decide.py.

The way back, also days later: the image of before on the newer schema, where the rehearsal has shown that it serves; else
the newer image's own downgrade; else, when somebody says so, the backup from before the upgrade, by a restore with the image
of before.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prefect_backups import backup, smoke
from prefect_backups import unfinished as restores
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.lock import PLAYBOOK, only_one
from prefect_backups.postgres import LIVE
from prefect_backups.progress import Report
from prefect_backups.served import served
from prefect_backups.stopping import stoppable

from . import side
from .decide import REHEARSAL_HOLDS, Action, Way, unfinished, way_back
from .migrations import migrate
from .record import Journal, Rehearsal, Upgraded, facts
from .rehearse import INVALID_INDEXES, clean_up, mark, rehearse
from .replace import replace

WHAT = "an upgrade"
RESTORE = "/usr/local/sbin/prefect-restore"
BY_BACKUP = (
    "by the backup from before the upgrade, which loses what was written since: ansible-playbook upgrade.yml -e back=true"
    " -e from_backup=true (says how much; on the host: prefect-upgrade --back --from-backup)"
)


class Upgrade:
    """One rehearsal, upgrade, way back or resumption on this host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    # -- what was asked for

    def rehearse(self, image: str) -> dict[str, Any]:
        """What an upgrade would do. Raises Failure; nothing has changed then, nor otherwise."""
        host = self.host
        with only_one(host.state, "a rehearsal of an upgrade", PLAYBOOK), stoppable(host.report):
            self._refuse_unfinished()
            if image == self._served():
                raise Failure(
                    Code.REHEARSAL,
                    f"Refusing to rehearse: the server of this host runs {image} already",
                    "another one: prefect-upgrade --rehearse IMAGE",
                )
            return facts(rehearse(host, self._served(), image))

    def run(self, image: str) -> dict[str, Any]:
        """The upgrade. Raises Failure; then the server of before serves, unless it says else."""
        host, report, before = self.host, self.host.report, self._served()
        self._refuse_unfinished()
        rehearsal = self._rehearsed(before, image)
        # Outside of the lock, which it takes itself: with its copies off-site.
        made = backup.create(host.settings, "before-upgrade", report, patience=PLAYBOOK)
        with only_one(host.state, WHAT, PLAYBOOK), stoppable(report) as stop:
            was = smoke.prove(host.settings.endpoint, report)
            journal = Journal(before, image, "migrating", made["id"], rehearsal.revision_before, rehearsal.old_serves)
            journal.save(host.state)
            with self._taken_back(journal):
                self._migrate(journal)
                stop.put_off()
                journal.enter(host.state, "replacing")
                replace(host, image)
                journal.enter(host.state, "proving")
                proof = smoke.prove(host.settings.endpoint, report)
            self._end(journal)
        return {
            "from": before,
            "to": image,
            "backup": made["id"],
            "smoke_before": was["smoke"],
            **proof,
            **self._seconds,
        }

    def back(self) -> dict[str, Any]:
        """The way back to the image of before the last upgrade. Raises Failure (NO_UNDO) where there is none."""
        host, report = self.host, self.host.report
        with only_one(host.state, WHAT, PLAYBOOK), stoppable(report) as stop:
            self._refuse_unfinished()
            last = self._last()
            stop.put_off()
            journal = Journal(
                last.after, last.before, "migrating", last.backup, last.revision_before, last.old_serves, back=True
            )
            journal.save(host.state)
            with self._taken_back(journal):
                if way_back(last.old_serves) is Way.DOWNGRADE:
                    try:
                        self._downgrade(journal)
                    except Failure as failure:
                        raise Failure(failure.code, failure.fact, BY_BACKUP) from failure
                journal.enter(host.state, "replacing")
                replace(host, last.before)
                journal.enter(host.state, "proving")
                proof = smoke.prove(host.settings.endpoint, report)
            self._end(journal)
        return {"from": last.after, "to": last.before, **proof, **self._seconds}

    def back_by_backup(self, lose_newer: bool) -> list[str]:
        """The way back by the backup from before the last upgrade, where its schema cannot be taken back: the command that goes
        it, a restore with the older image. Raises Failure (NO_UNDO) where there is none.

        Args:
            lose_newer: whether what was written since the upgrade may be lost; else that is refused, and said.
        """
        self._refuse_unfinished()
        last = self._last()
        if not lose_newer:
            since = datetime.fromtimestamp(last.at, UTC)
            with self.host.postgres.connect() as connection:
                query = "SELECT count(*) FROM flow_run WHERE created > %s"
                (count,) = connection.execute(query, [since]).fetchone() or (0,)
            raise Failure(
                Code.DECLINED,
                f"Refusing to go back by the backup {last.backup} without a word about it: {count} flow runs were made since the"
                f" upgrade ({since:%Y-%m-%d %H:%M} UTC); they, and all else that was changed since, would only be in a safety backup",
                "to go back all the same: -e lose_newer=true beside -e from_backup=true; on the host: prefect-upgrade --back --from-backup --lose-newer",
            )
        return [RESTORE, "--id", last.backup, "--image", last.before, "--yes"]

    def forget_last(self) -> None:
        """There is no upgrade to take back any more."""
        if (last := Upgraded.load(self.host.state)) is not None:
            last.forget(self.host.state)

    def resume(self) -> dict[str, Any] | None:
        """Finish, or take back, an upgrade that was cut off, and remove what a rehearsal has left. None: there is none."""
        host = self.host
        with only_one(host.state, WHAT, patience=60):
            rehearsed = mark(host.state).exists()
            if rehearsed:
                host.start_postgres()
                with host.report.step("what a rehearsal has left is removed", "clean"):
                    clean_up(host)
            journal = Journal.load(host.state)
            if journal is None:
                return {"resumed": "rehearsal removed"} if rehearsed else None
            host.start_postgres()
            if unfinished(journal.phase) is Action.TAKE_BACK:
                self._take_back(journal)
                return {"resumed": "taken back", "serves": journal.before}
            with self._taken_back(journal):
                replace(host, journal.after)
                journal.enter(host.state, "proving")
                proof = smoke.prove(host.settings.endpoint, host.report)
            self._end(journal)
            return {"resumed": "finished", "serves": journal.after, **proof}

    # -- its steps

    def _migrate(self, journal: Journal) -> None:
        host = self.host
        if not journal.old_serves:
            with host.report.step("server stopped: it does not serve the new schema", "stop server"):
                host.stack.stop_server()
        how = "while the old server serves" if journal.old_serves else "while no server serves"
        migrate(host, LIVE, journal.after, f"migrations {how}")
        with host.postgres.connect() as connection:
            broken = [row[0] for row in connection.execute(INVALID_INDEXES)]
            for index in broken:
                with host.report.step(f"index {index} built again", "reindex"):
                    # The name is Postgres's own, quoted where it has to be.
                    connection.execute(f"REINDEX INDEX CONCURRENTLY {index}")  # type: ignore[arg-type]

    def _downgrade(self, journal: Journal) -> None:
        """By the newer image: the older one does not know the newer migrations."""
        host = self.host
        newer = journal.before if journal.back else journal.after
        with host.report.step("server stopped", "stop server"):
            host.stack.stop_server()
        command = ("prefect", "server", "database", "downgrade", "-y", "-r", journal.revision_before)
        migrate(host, LIVE, newer, f"migrations taken back to {journal.revision_before}", "downgrade", command)

    @contextlib.contextmanager
    def _taken_back(self, journal: Journal) -> Iterator[None]:
        """A failure takes back what was done. Raises Failure (UPGRADE), with what serves now."""
        try:
            yield
        except BaseException as error:
            try:
                self._take_back(journal)
            except Failure as failure:
                raise Failure(
                    Code.NOT_READY,
                    f"{error} And taking it back failed: {failure.fact}",
                    f"when that is solved: prefect-upgrade --resume ; or the data of before: prefect-restore --id {journal.backup}",
                ) from error
            if not isinstance(error, Failure):
                raise
            raise Failure(
                Code.UPGRADE,
                f"{error.fact}. It was taken back: {journal.before} serves",
                error.hint,
            ) from error

    def _take_back(self, journal: Journal) -> None:
        """What served before serves again. Raises Failure (NOT_READY)."""
        host = self.host
        side.remove(side.NEXT)
        if not journal.old_serves and not journal.back and host.postgres.revision() != journal.revision_before:
            self._downgrade(journal)
        if not journal.old_serves and journal.back:
            migrate(host, LIVE, journal.before, "migrations once more")
        if self._served() != journal.before:
            replace(host, journal.before)
        elif not host.stack.serves():
            with host.report.step("the server of before is started", "start server"):
                host.stack.start_server()
        journal.forget(host.state)

    def _end(self, journal: Journal) -> None:
        """Note the way back, and that nothing is left to do."""
        host = self.host
        if journal.back:
            if (last := Upgraded.load(host.state)) is not None:
                last.forget(host.state)
        else:
            made = (journal.before, journal.after, time.time(), journal.backup)
            Upgraded(*made, journal.revision_before, journal.old_serves).save(host.state)
        journal.forget(host.state)

    # -- what there is

    def _served(self) -> str:
        """The image that this host's server runs."""
        return served(self.host)

    def _last(self) -> Upgraded:
        """The upgrade that can be taken back. Raises Failure (NO_UNDO) where there is none."""
        last = Upgraded.load(self.host.state)
        if last is None or last.after != self._served():
            raise Failure(
                Code.NO_UNDO,
                "there is no upgrade to take back" + (f": {last.after} does not serve" if last else ""),
                "an older version otherwise: prefect-restore --list, a backup of that version",
            )
        return last

    @property
    def _seconds(self) -> dict[str, Any]:
        return {"seconds": self.host.report.seconds}

    def _rehearsed(self, before: str, after: str) -> Rehearsal:
        """The rehearsal of this very upgrade. Raises Failure (REHEARSAL) where there is none that holds."""
        found = Rehearsal.load(self.host.state)
        command = f"prefect-upgrade --rehearse {after}"
        if found is None or (found.before, found.after) != (before, after):
            raise Failure(
                Code.REHEARSAL, f"Refusing to upgrade to {after}: that was not rehearsed on this host", command
            )
        if time.time() - found.at > REHEARSAL_HOLDS:
            hours = REHEARSAL_HOLDS / 3600
            raise Failure(
                Code.REHEARSAL,
                f"Refusing to upgrade to {after}: its rehearsal is older than {hours:.0f} hours",
                command,
            )
        return found

    def _refuse_unfinished(self) -> None:
        """Neither beside an unfinished restore nor beside an unfinished upgrade. Raises Failure (NOT_READY)."""
        if restores.read(self.host) is not None:
            raise Failure(
                Code.NOT_READY, "Refusing to upgrade: a restore of this host did not end", "prefect-restore --resume"
            )
        if (found := Journal.load(self.host.state)) is not None:
            raise Failure(
                Code.NOT_READY,
                f"Refusing to begin: an upgrade from {found.before} to {found.after} did not end",
                "finish it, or take it back: prefect-upgrade --resume",
            )


def words(rehearsal: dict[str, Any], report: Report) -> None:
    """What a rehearsal has shown, for a person."""
    took = rehearsal["seconds"]
    report.say(f"Rehearsed with the backup {rehearsal['backup']}: {rehearsal['before']} → {rehearsal['after']}")
    report.say(
        f"  migrations       {took.get('migrate', 0):.0f} s; schema {rehearsal['revision_before']} → {rehearsal['revision_after']}"
    )
    if rehearsal["old_serves"]:
        report.say("  meanwhile        the old server serves; and the way back is its image alone: nothing is lost")
    else:
        report.say(f"  meanwhile        no server serves: {rehearsal['old_fails']}")
    if rehearsal["unknown_settings"]:
        report.say(f"  no longer known  {', '.join(rehearsal['unknown_settings'])}")
    for one in rehearsal["deployments_otherwise"]:
        report.say(f"  read otherwise   {one}", style="yellow")
