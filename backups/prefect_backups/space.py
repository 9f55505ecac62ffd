"""Is there room? Asked before anything is written, and refused with the figures: a full disk stops Postgres too."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from .errors import Code, Failure
from .manifest import Manifest
from .progress import size
from .restic import Backup
from .settings import Settings

# A dump is text: wider than tables where they hold numbers and identifiers, narrower where they hold dead rows.
# Without an earlier dump to go by, so many times the tables; with one, its share of the database and a fifth more.
DUMP_OF_TABLES = 1.5
MARGIN = 1.2
# What a first backup adds to the repository, of the dump; measured: restic's compression leaves less than a fifth.
FIRST_ADDS = 0.4
# Later ones: at least so much of the dump, or so many times what one of the last 24 has added.
LATER_ADDS = 0.1
LATER_TIMES = 3
HINT = "make room: prefect-backup prune; docker system prune; journalctl --vacuum-size=100M"


def dump_bytes(table_bytes: int, database_bytes: int, last: Manifest | None) -> int:
    """How large a dump will be.

    Args:
        table_bytes: size of the tables without indexes.
        database_bytes: size of the database with them.
        last: the manifest of an earlier backup.
    """
    if last is not None and last.database_bytes and last.dump_bytes:
        return int(last.dump_bytes / last.database_bytes * database_bytes * MARGIN)
    return int(table_bytes * DUMP_OF_TABLES)


def added_bytes(dump: int, earlier: Sequence[Backup]) -> int:
    """How much a backup with a dump of that size will add to the repository; `earlier` is newest first."""
    if not earlier:
        return int(dump * FIRST_ADDS)
    most = max(backup.added for backup in earlier[:24])
    # The very first one is among them on the first day: never more than if there were none.
    return int(min(max(dump * LATER_ADDS, most * LATER_TIMES), dump * FIRST_ADDS))


def _there(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return path if path.exists() else _there(path.parent)


def require(
    what: str,
    needs: Iterable[tuple[Path, int]],
    settings: Settings,
    hint: str = HINT,
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    device: Callable[[Path], int] = lambda path: path.stat().st_dev,
) -> None:
    """Raise Failure (NO_ROOM) unless each file system has room for what it is to take, and the reserve beside it.

    Args:
        what: what is refused otherwise, such as "back up".
        needs: directories, and how many bytes will be written there; those on one file system are added up.
        hint: how a person makes room.
        free: bytes free at a path.
        device: which file system a path is on.
    """
    places: dict[int, list[tuple[Path, int]]] = {}
    for path, count in needs:
        places.setdefault(device(_there(path)), []).append((path, count))
    reserve = settings.reserve_mb * 2**20
    for items in places.values():
        need, there = sum(count for _, count in items), free(_there(items[0][0]))
        if there < need + reserve:
            parts = ", ".join(f"{size(count)} in {path}" for path, count in items)
            about = f"{size(need)} ({parts})" if len(items) > 1 else parts
            raise Failure(
                Code.NO_ROOM,
                f"Refusing to {what}: it needs about {about}, and {size(reserve)} must stay free"
                f" (backups_reserve_mb), but {size(there)} are free",
                hint,
            )
