"""What an upgrade has to remember: what its rehearsal has shown, how far it is, and the way back. Files of root's, JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from prefect_backups.errors import Code, Failure
from prefect_backups.files import remove, write_whole

#: In their order. Before the first nothing has changed, after the last nothing is left to do.
PHASES = ("migrating", "replacing", "proving")
#: The same of an upgrade of Postgres.
CLUSTER_PHASES = ("building", "starting")


@dataclass
class _File:
    """A dataclass that is a file in the tools' state, or not there."""

    @classmethod
    def path(cls, state: Path) -> Path:
        raise NotImplementedError

    @classmethod
    def load(cls, state: Path) -> Self | None:
        """What is there. Raises Failure (SETTINGS) where it cannot be read."""
        path = cls.path(state)
        try:
            return cls(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise Failure(
                Code.SETTINGS, f"{path} cannot be read: {error}", f"look at it, then remove it: rm {path}"
            ) from error

    def save(self, state: Path) -> None:
        """Whole, or as it was before."""
        write_whole(self.path(state), json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def forget(self, state: Path) -> None:
        """Remove it."""
        remove(self.path(state))


class _UnderWay(_File):
    """A journal: a file that is there while something is under way, and says how far it has come."""

    #: Those that there are.
    phases: ClassVar[tuple[str, ...]]
    phase: str

    @classmethod
    def load(cls, state: Path) -> Self | None:
        found = super().load(state)
        if found is not None and found.phase not in cls.phases:
            path = cls.path(state)
            raise Failure(
                Code.SETTINGS,
                f'{path}: phase is "{found.phase}", but must be one of {", ".join(cls.phases)}',
                f"look at it, then remove it: rm {path}",
            )
        return found

    def enter(self, state: Path, phase: str) -> None:
        """Go on to a phase."""
        self.phase = phase
        self.save(state)


@dataclass
class Rehearsal(_File):
    """What a rehearsal beside the live server has shown."""

    #: Images: what serves now, and what is to.
    before: str
    after: str
    #: When it ended, in seconds since the epoch.
    at: float
    #: Id of the backup that was migrated.
    backup: str
    #: Alembic's revisions of the schema, before and after the migration.
    revision_before: str
    revision_after: str
    #: Whether the server of before serves a database that the new image has migrated.
    old_serves: bool
    #: Why not, in words.
    old_fails: str = ""
    #: Variables of the server's that the new version does not know.
    unknown_settings: list[str] = field(default_factory=list)
    #: Deployments that the new version reads otherwise, with the fields; known where the old one serves.
    deployments_otherwise: list[str] = field(default_factory=list)
    #: What each step took.
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "rehearsal.json"


@dataclass
class Journal(_UnderWay):
    """An upgrade, or a way back, that is under way."""

    phases = PHASES

    before: str
    after: str
    phase: str
    #: Id of the backup that was made first.
    backup: str
    revision_before: str
    #: Whether the server of before serves the schema of after: it goes on while the database is migrated.
    old_serves: bool
    #: Whether this is a way back: then `after` is the older image.
    back: bool = False

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "upgrade.json"


@dataclass
class Upgraded(_File):
    """The last upgrade of this host: the way back, also days later."""

    before: str
    after: str
    #: When, in seconds since the epoch.
    at: float
    backup: str
    revision_before: str
    old_serves: bool

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "upgraded.json"


@dataclass
class ClusterRehearsal(_File):
    """What a rehearsal of an upgrade of Postgres has shown."""

    #: Images: what serves now, and what is to.
    before: str
    after: str
    #: When it ended, in seconds since the epoch.
    at: float
    #: Id of the backup that was brought back.
    backup: str
    #: That bringing it back took.
    restore_seconds: float

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "postgres-rehearsal.json"


@dataclass
class ClusterJournal(_UnderWay):
    """An upgrade of Postgres, or a way back, that is under way."""

    phases = CLUSTER_PHASES

    before: str
    after: str
    #: One of CLUSTER_PHASES.
    phase: str
    #: Where the data of the cluster of before are, or will be.
    aside: str
    #: Id of the backup that fills the new cluster; empty before there is one.
    backup: str = ""
    #: Of a way back: where the cluster was that takes its place.
    source: str = ""

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "postgres-upgrade.json"


@dataclass
class Cluster(_File):
    """The cluster that the last upgrade of Postgres has set aside: the way back."""

    before: str
    after: str
    #: When, in seconds since the epoch.
    at: float
    #: Id of the backup that filled the new cluster.
    backup: str
    aside: str

    @classmethod
    def path(cls, state: Path) -> Path:
        return state / "postgres-upgraded.json"


def facts(one: Any) -> dict[str, Any]:
    """For --json."""
    return dataclasses.asdict(one)
