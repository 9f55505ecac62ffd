"""What a restore would do, found out by checks that change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import psycopg

from . import block_key, choose, images, manifest, repositories, schema, space
from .errors import Code, Failure
from .host import Host
from .postgres import LIVE, OURS
from .restic import Backup, Repository

# Workers send a heartbeat every 30 s, also when no flow runs.
LAST_HEARTBEAT = (
    """SELECT greatest((SELECT max(timestamp) FROM flow_run_state), (SELECT max(last_heartbeat_time) FROM worker))"""
)
# How a person makes room for a restore.
ROOM = "make room: docker system prune; prefect-backup prune; prefect-restore --drop-previous, if nobody wants --undo"
# In the place of that identity: an undo that was to take back an unfinished restore, and nothing more.
TAKE_BACK_ONLY = -1


@dataclass(frozen=True)
class Request:
    """What was asked for; see the options of prefect-restore."""

    id: str | None = None
    before: datetime | None = None
    repository: str | None = None
    run_late: bool = False
    # The backup is the last word of the world that it is of: its runs and slots go on as they are.
    as_is: bool = False
    outage_since: datetime | None = None
    drain: float = 0.0
    safety_backup: bool = True
    new_cluster: bool = False
    with_files: bool = False
    initial: bool = False
    # The image of Prefect that is to serve it; empty: the one that serves now.
    image: str = ""
    # Of an undo: the identity of the database that was shown and confirmed; 0 where none was shown.
    shown: int = 0


@dataclass
class Plan:
    """What the checks found out."""

    backup: Backup
    manifest: manifest.Manifest
    repository: Repository
    # Prefect that is to serve it.
    prefect: str
    # What the live database is: "missing", "empty", "readable", "unreadable" (by us; pg_dump may still read it), or
    # "unknown" as long as Postgres is down.
    live: str
    # The last heartbeat of the world that is there.
    last_life: datetime | None
    cancel_before: datetime | None
    notes: list[str] = field(default_factory=list)
    # The key of its blocks; empty where it is in the dump.
    encryption_key: str = field(default="", repr=False)


class Planner:
    """Makes the plan of a restore on this host."""

    def __init__(self, host: Host) -> None:
        self.settings = host.settings
        self.report = host.report
        self.stack = host.stack
        self.postgres = host.postgres

    def backups(self, name: str | None) -> list[Backup]:
        """The backups that a name of repositories means, newest first."""
        return repositories.backups(repositories.find(self.settings, name), self.report)

    def plan(self, request: Request, touch: bool, tolerated: Sequence[str] = ()) -> Plan:
        """The checks. Raises Failure.

        Args:
            touch: start a Postgres that is down. Without it nothing at all is changed, and what is in Postgres stays
                unknown where it is down.
            tolerated: databases of ours that may have no mark yet.
        """
        plan = self._choose(request)
        self._check_versions(plan)
        plan.encryption_key = block_key.of_backup(plan.repository, plan.backup, plan.manifest, self.settings)
        if not request.new_cluster and self._up(plan, touch):
            self.postgres.refuse_foreign("restore", *(name for name in OURS if name not in tolerated))
            self._look_at_live(plan, request)
        self._check_room(plan)
        if not request.run_late:
            plan.cancel_before = request.outage_since or plan.last_life or datetime.now(UTC)
        return plan

    def _up(self, plan: Plan, touch: bool) -> bool:
        """Whether Postgres answers, after it was started where that is wanted."""
        if self.postgres.answers():
            return True
        there = self.stack.has_cluster()
        if touch:
            self.stack.start_postgres(self.postgres)
            plan.notes.append("Postgres was down and has been started")
            return True
        plan.live = "unknown" if there else "missing"
        plan.notes.append(
            "Postgres is down: it is started first"
            if there
            else "Postgres's data are gone: a new cluster is made first"
        )
        return False

    def _choose(self, request: Request) -> Plan:
        """The backup that is meant. Without an id: the newest one of a database that had all its tables.

        The newest of all may be the safety backup that a restore has made of the very damage that it was to mend.
        """
        # For a first restore on a new host: all there are.
        name = repositories.ALL if request.initial and request.repository is None else request.repository
        known = repositories.find(self.settings, name)
        backups = repositories.backups(known, self.report)
        here = images.local_version(request.image) if request.image else self.stack.prefect_version()
        notes: list[str] = []
        while True:
            chosen = choose.pick(backups, request.id, request.before)
            repository = repositories.of(chosen, known)
            facts = manifest.Manifest.from_json(repository.read(chosen, manifest.path(self.settings)))
            lost = schema.lacks(facts.tables) if facts.prefect == here else []
            if request.id is not None or not lost:
                return Plan(chosen, facts, repository, here, "missing", None, None, notes)
            notes.append(f"{chosen.id} ({chosen.kind}) is newer, but the database had no table {', '.join(lost)} then")
            backups = [one for one in backups if one.id != chosen.id]
            if not backups:
                raise Failure(
                    Code.NOT_FOUND,
                    f"there is no backup of a database with all its tables; {notes[0]}",
                    f"that one all the same: prefect-restore --id {chosen.id}; or other repositories: --from all",
                )

    def _check_versions(self, plan: Plan) -> None:
        made, here = plan.manifest.prefect, plan.prefect
        if choose.newer(made, here):
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing to restore {plan.backup.id}: it is of Prefect {made}, and this host runs Prefect {here},"
                " which cannot read it",
                f"upgrade first: ansible-playbook upgrade.yml -e prefect_version={made} (on a new server, before its first"
                f" restore: the same site.yml with -e prefect_version={made}); or choose an older backup: prefect-restore --list",
            )
        made_major = int(plan.manifest.postgres.split(".")[0])
        if made_major > self.stack.postgres_major():
            raise Failure(
                Code.INCOMPATIBLE,
                f"Refusing to restore {plan.backup.id}: it is of Postgres {plan.manifest.postgres}, and this host runs"
                f" {self.stack.environment()['POSTGRES_IMAGE']}, whose pg_restore cannot read it",
                f"upgrade first: ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image=postgres:{made_major}…"
                " (a new server, whose cluster is empty: systemctl stop prefect-stack; docker rm --force prefect-postgres;"
                f" docker volume rm prefect_postgres; rm /var/lib/prefect/migrated; then the same site.yml with -e prefect_postgres_image=postgres:{made_major}…)",
            )

    def _look_at_live(self, plan: Plan, request: Request) -> None:
        """What is there now, and when it last sent a heartbeat."""
        if LIVE not in self.postgres.databases():
            plan.notes.append(f'there is no database "{LIVE}" at the moment')
            return
        try:
            if not self.postgres.tables():
                plan.live = "empty"
                plan.notes.append("the database there now is empty")
                return
            plan.last_life = self.last_heartbeat()
            with self.postgres.connect() as connection:
                runs = connection.execute("SELECT count(*) FROM flow_run").fetchone()[0]
            if self.postgres.revision() is None:
                raise Failure(Code.NO_DATABASE, 'the table "alembic_version" is missing or empty')
            lost = sorted(set(plan.manifest.tables) - self.postgres.tables())
            if lost and plan.manifest.prefect == plan.prefect:
                plan.notes.append(f"the database there now lacks tables that the backup has: {', '.join(lost)}")
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

    def last_heartbeat(self) -> datetime | None:
        """When the world that is there was last heard of; None where that cannot be read."""
        try:
            with self.postgres.connect() as connection:
                return connection.execute(LAST_HEARTBEAT).fetchone()[0]
        except (Failure, psycopg.Error):
            return None

    def _check_room(self, plan: Plan) -> None:
        """The dump on its way, and the new database beside the old one, with its write-ahead log."""
        needs = [
            (self.postgres.staging, plan.manifest.dump_bytes),
            (self.stack.place(), int(plan.manifest.database_bytes * 1.1) + 300_000_000),
        ]
        space.require(f"restore {plan.backup.id}", needs, self.settings, hint=ROOM)
