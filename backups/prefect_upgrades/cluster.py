"""Another major version of Postgres: a new cluster with the same data takes the place of the old one. The order of things:

1. rehearse(): the newest backup is brought back into a throwaway Postgres of the new image and proven, while all serves;
   that time is what the API will be away for;
2. a backup, off-site too;
3. the stop: the server stops, so that nothing is written any more; a last backup; the data of the old cluster are set aside
   (a rename) and a new one is made; the backup comes back there and is proven; the server, and the smoke flow.

Flow runs go on meanwhile: workers wait for a server that is away. The cluster of before stays aside, until somebody drops
it: the way back, which loses what was written since. (Without that loss only logical replication could go back.)

A failure before the server is started again takes back what was done. Cut off anywhere, the journal lets the next run, or
prefect-upgrade.service at boot, take it back or finish it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import docker
import docker.errors
from prefect_backups import backup, images, manifest, smoke, space, units, verify
from prefect_backups import unfinished as restores
from prefect_backups.bring_back import bring_back, prove
from prefect_backups.choose import pick
from prefect_backups.decide import possible
from prefect_backups.errors import Code, Failure
from prefect_backups.host import Host
from prefect_backups.lock import PLAYBOOK, only_one
from prefect_backups.manifest import Manifest
from prefect_backups.postgres import CONTAINER, GIVEN_UP, LIVE, RESTORING
from prefect_backups.progress import duration, failpoint
from prefect_backups.restic import Backup, Repository
from prefect_backups.served import set_image
from prefect_backups.stopping import stoppable

from .decide import REHEARSAL_HOLDS
from .record import Cluster, ClusterJournal, ClusterRehearsal, Journal, facts

VARIABLE = "POSTGRES_IMAGE"
WHAT = "an upgrade of Postgres"
#: Seconds for which a flow run asks an API that is away again and again, before it fails (RETRIES of the worker's program).
FLOW_RUNS_WAIT = 240


@dataclass
class PostgresUpgrade:
    """One rehearsal, upgrade, way back or resumption on this host."""

    host: Host

    # -- what was asked for

    def rehearse(self, image: str) -> dict[str, Any]:
        """How long an upgrade would take, and whether the data come back whole. Raises Failure; nothing has changed."""
        host, report = self.host, self.host.report
        with only_one(host.state, "a rehearsal of an upgrade of Postgres", PLAYBOOK), stoppable(report):
            with report.step("checks that change nothing", "checks"):
                self._refuse_unfinished()
                self._refuse_what_is_no_upgrade(image)
                local = Repository.local(host.settings)
                chosen = pick(local.backups(), None, None)
                account = self._account(local, chosen)
                self._require_room(account)
            seconds = verify.rehearse(host.settings, report, local, chosen, account, image)
            found = ClusterRehearsal(self._runs(), image, time.time(), chosen.id, round(seconds, 1))
            found.save(host.state)
        away = seconds + report.seconds.get("compare", 0.0) + 60
        report.say(f"Rehearsed with the backup {chosen.id}: {found.before} → {image}")
        report.say(f"  the API will be away for about {duration(away)}")
        if away > FLOW_RUNS_WAIT:
            report.say(
                f"  flow runs wait for it for {duration(FLOW_RUNS_WAIT)}, and fail then: choose an hour in which none has to run"
                " (prefect flow-run ls --state Running)",
                style="yellow",
            )
        return facts(found)

    def run(self, image: str) -> dict[str, Any]:
        """The upgrade. Raises Failure; then the cluster of before serves, unless it says else."""
        host, report = self.host, self.host.report
        self._refuse_unfinished()
        self._refuse_what_is_no_upgrade(image)
        self._refuse_what_was_not_rehearsed(image)
        # Outside of the lock, which it takes itself: with its copies off-site. The last one is then small.
        backup.create(host.settings, "before-upgrade", report, patience=PLAYBOOK)
        with only_one(host.state, WHAT, PLAYBOOK), stoppable(report) as stop:
            smoke.prove(host.settings.endpoint, report)
            stop.put_off()
            journal = ClusterJournal(self._runs(), image, "building", self._aside())
            journal.save(host.state)
            stopped = time.monotonic()
            with self._taken_back(journal):
                with report.step("server stopped", "stop server"):
                    host.stack.stop_server()
                made = backup.create_unlocked(host.settings, "before-upgrade", report)
                journal.backup = made["id"]
                journal.save(host.state)
                self._change(journal)
                self._fill(journal)
            proof = self._serve(journal, stopped)
        report.say(
            f"      the cluster of before is kept in {journal.aside}, until: prefect-upgrade --drop-previous-postgres"
        )
        return {"from": journal.before, "to": image, "backup": journal.backup, **proof, "seconds": report.seconds}

    def back(self, lose_newer: bool) -> dict[str, Any]:
        """The way back to the cluster of before the last upgrade. Raises Failure (NO_UNDO) where there is none.

        Args:
            lose_newer: whether what was written since the upgrade may be lost; else that is refused, and said.
        """
        host, report = self.host, self.host.report
        with only_one(host.state, WHAT, PLAYBOOK), stoppable(report) as stop:
            self._refuse_unfinished()
            last = Cluster.load(host.state)
            if last is None or last.after != self._runs() or not Path(last.aside).is_dir():
                raise Failure(
                    Code.NO_UNDO,
                    "there is no upgrade of Postgres to take back" + (f": {last.aside} is gone" if last else ""),
                    "an older state of the data: prefect-restore --list",
                )
            if not lose_newer:
                raise Failure(
                    Code.DECLINED,
                    f"Refusing to go back without a word about it: {self._written_since(last)}",
                    "to go back all the same: prefect-upgrade --postgres-back --lose-newer",
                )
            stop.put_off()
            stopped = time.monotonic()
            journal = ClusterJournal(last.after, last.before, "building", self._aside(), last.backup, last.aside)
            journal.save(host.state)
            with self._taken_back(journal):
                with report.step("server stopped", "stop server"):
                    host.stack.stop_server()
                self._change(journal)
            proof = self._serve(journal, stopped)
        report.say(
            f"      what was written since is kept in {journal.aside}, a cluster of {last.after}; when nobody needs it any more:"
            f" rm -r {journal.aside}"
        )
        return {"from": last.after, "to": last.before, **proof, "seconds": report.seconds}

    def drop_previous(self) -> dict[str, Any]:
        """Remove the cluster that the last upgrade has set aside; then there is no way back. Raises Failure."""
        host = self.host
        with only_one(host.state, "the end of the cluster of before", PLAYBOOK):
            self._refuse_unfinished()
            last = Cluster.load(host.state)
            if last is None:
                host.report.say("There is no cluster of before.")
                return {"dropped": None}
            with host.report.step(f"{last.aside} removed", "drop"):
                host.stack.remove_aside(Path(last.aside))
            last.forget(host.state)
        return {"dropped": last.aside}

    def resume(self) -> dict[str, Any] | None:
        """Finish, or take back, an upgrade of Postgres that was cut off. None: there is none. Raises Failure."""
        host = self.host
        with only_one(host.state, WHAT, patience=60):
            journal = ClusterJournal.load(host.state)
            if journal is None:
                return None
            if journal.phase == "building":
                self._take_back(journal)
                return {"resumed": "taken back", "serves": journal.before}
            return {"resumed": "finished", "serves": journal.after, **self._serve(journal, time.monotonic())}

    # -- its steps

    def _change(self, journal: ClusterJournal) -> None:
        """Another cluster in the place of the one that is there, served by the image that it belongs to."""
        host = self.host
        with host.report.step(f"cluster set aside, {journal.after} in its place", "cluster"):
            host.stack.set_aside(Path(journal.aside))
            failpoint("between")
            if journal.source:
                host.stack.take_cluster(Path(journal.source))
            set_image(host, journal.after, VARIABLE)
            host.stack.compose("up", "--detach", "postgres", code=Code.NO_DATABASE)
            host.stack.wait_for(CONTAINER, Code.NO_DATABASE)
            host.postgres.wait(10)
            # One that was set aside before there was the server's role.
            host.postgres.hand_over()
            units.restart_exporter()

    def _fill(self, journal: ClusterJournal) -> None:
        """The last backup in the new cluster, proven."""
        host, report, postgres = self.host, self.host.report, self.host.postgres
        local = Repository.local(host.settings)
        chosen = pick(local.backups(), journal.backup, None)
        account = self._account(local, chosen)
        bring_back(local, chosen, account, postgres, host.settings, report, "the new cluster")
        prove(chosen, account, postgres, report, "the cluster of before is put back")
        with report.step("statistics for the query planner", "analyze"), postgres.connect(RESTORING) as connection:
            connection.execute("ANALYZE")
        # The entrypoint has made an empty one of that name.
        postgres.swap(*possible([(LIVE, GIVEN_UP), (RESTORING, LIVE)], postgres.databases()))
        postgres.drop(GIVEN_UP)

    def _serve(self, journal: ClusterJournal, stopped: float) -> dict[str, Any]:
        """The server on the cluster that is there now; once it is ready, data are written, and nothing is taken back."""
        host, report = self.host, self.host.report
        with self._taken_back(journal):
            journal.enter(host.state, "starting")
            with report.step("server started and ready", "start server"):
                host.stack.compose("up", "--detach", "postgres", code=Code.NO_DATABASE)
                host.stack.wait_for(CONTAINER, Code.NO_DATABASE)
                host.stack.start_server()
        away = round(time.monotonic() - stopped, 1)
        if journal.source:
            if (last := Cluster.load(host.state)) is not None:
                last.forget(host.state)
        else:
            Cluster(journal.before, journal.after, time.time(), journal.backup, journal.aside).save(host.state)
        journal.forget(host.state)
        report.say(f"{journal.after} serves. The API was away for {duration(away)}.")
        return {"downtime_seconds": away, **smoke.prove(host.settings.endpoint, report)}

    @contextlib.contextmanager
    def _taken_back(self, journal: ClusterJournal) -> Iterator[None]:
        """A failure takes back what was done. Raises Failure (UPGRADE), with what serves now."""
        try:
            yield
        except BaseException as error:
            try:
                self._take_back(journal)
            except (Failure, OSError, docker.errors.DockerException) as failure:
                raise Failure(
                    Code.NOT_READY,
                    f"{error} And taking it back failed: {failure}",
                    "when that is solved: prefect-upgrade --resume",
                ) from error
            if not isinstance(error, Failure):
                raise
            raise Failure(
                Code.UPGRADE, f"{error.fact}. It was taken back: {journal.before} serves", error.hint
            ) from error

    def _take_back(self, journal: ClusterJournal) -> None:
        """The cluster of before serves again, with its image. Raises Failure."""
        host = self.host
        with host.report.step("the cluster of before is put back", "put back"):
            host.stack.put_back(Path(journal.aside), Path(journal.source) if journal.source else None)
            set_image(host, journal.before, VARIABLE)
            host.postgres.remove_staging("restore")
            host.stack.compose("up", "--detach", "postgres", code=Code.NO_DATABASE)
            host.stack.wait_for(CONTAINER, Code.NO_DATABASE)
        with host.report.step("server started and ready", "start server"):
            host.stack.start_server()
        journal.forget(host.state)

    # -- what there is

    def _runs(self) -> str:
        """The image that this host's Postgres runs."""
        return self.host.stack.environment().get(VARIABLE, "")

    def _aside(self) -> str:
        """Where the cluster of now goes: beside its place, by its major version and the time."""
        moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        return str(self.host.stack.volume().with_name(f"postgres-{self.host.stack.postgres_major()}-{moment}"))

    def _account(self, source: Repository, chosen: Backup) -> Manifest:
        return Manifest.from_json(source.read(chosen, manifest.path(self.host.settings)))

    def _written_since(self, last: Cluster) -> str:
        """What the way back loses, in words."""
        since = datetime.fromtimestamp(last.at, UTC)
        with self.host.postgres.connect() as connection:
            query = "SELECT count(*) FROM flow_run WHERE created > %s"
            (count,) = connection.execute(query, [since]).fetchone() or (0,)
        return (
            f"{count} flow runs were made since the upgrade ({since:%Y-%m-%d %H:%M} UTC); they, and all else that was changed"
            f" since, would only be in the cluster of {last.after} that is set aside"
        )

    # -- refusals

    def _refuse_unfinished(self) -> None:
        """Neither beside an unfinished restore nor beside an unfinished upgrade. Raises Failure (NOT_READY)."""
        host = self.host
        if restores.read(host) is not None:
            raise Failure(
                Code.NOT_READY, "Refusing to begin: a restore of this host did not end", "prefect-restore --resume"
            )
        for journal in Journal.load(host.state), ClusterJournal.load(host.state):
            if journal is not None:
                raise Failure(
                    Code.NOT_READY,
                    f"Refusing to begin: an upgrade from {journal.before} to {journal.after} did not end",
                    "finish it, or take it back: prefect-upgrade --resume",
                )

    def _refuse_what_is_no_upgrade(self, image: str) -> None:
        """Raises Failure (INCOMPATIBLE) unless the image is here, and of a newer major version than what runs."""
        try:
            docker.from_env().images.get(image)
        except docker.errors.ImageNotFound as error:
            raise Failure(
                Code.INCOMPATIBLE, f'Refusing: the image "{image}" is not on this host', f"docker pull {image}"
            ) from error
        except docker.errors.DockerException as error:
            raise Failure(
                Code.NOT_READY, f"the Docker engine does not answer: {error}", "systemctl status docker"
            ) from error
        kept = Cluster.load(self.host.state)
        if kept is not None and Path(kept.aside).is_dir():
            raise Failure(
                Code.NOT_READY,
                f"Refusing: the cluster of before the last upgrade is still kept in {kept.aside}",
                "when nobody will go back to it: prefect-upgrade --drop-previous-postgres",
            )
        here, there = self.host.stack.postgres_major(), images.postgres_major(image)
        if there == here:
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing: {image} is a Postgres {there} like {self._runs()}, which serves",
                "a minor version is another image on the same files: set prefect_postgres_image, then site.yml",
            )
        if there < here:
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing: {image} is older than {self._runs()}, which serves, and cannot read what that has written",
                "back to the cluster of before an upgrade: prefect-upgrade --postgres-back",
            )

    def _refuse_what_was_not_rehearsed(self, image: str) -> None:
        """Raises Failure (REHEARSAL) where there is no rehearsal of this very upgrade that holds."""
        found = ClusterRehearsal.load(self.host.state)
        command = f"prefect-upgrade --rehearse-postgres {image}"
        if found is None or (found.before, found.after) != (self._runs(), image):
            raise Failure(
                Code.REHEARSAL, f"Refusing to upgrade to {image}: that was not rehearsed on this host", command
            )
        if time.time() - found.at > REHEARSAL_HOLDS:
            raise Failure(
                Code.REHEARSAL,
                f"Refusing to upgrade to {image}: its rehearsal is older than {REHEARSAL_HOLDS / 3600:.0f} hours",
                command,
            )

    def _require_room(self, account: Manifest) -> None:
        """Room for the second cluster beside the first, and for the dump. Raises Failure (NO_ROOM)."""
        host = self.host
        needs = [
            (host.stack.place(), int(account.database_bytes * 1.1) + 200_000_000),
            (host.postgres.staging, account.dump_bytes),
        ]
        space.require("upgrade Postgres", needs, host.settings)
