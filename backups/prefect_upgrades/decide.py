"""What becomes of an upgrade that did not end, and how the way back goes: pure decisions.

tests/unit/test_upgrade.py holds each of them.
"""

from __future__ import annotations

from enum import Enum

#: Seconds for which a rehearsal holds: the data that it was made with grow older.
REHEARSAL_HOLDS = 24 * 3600.0
#: A second server beside the first needs so many times the memory that the first one uses.
MEMORY_FOR_A_SECOND = 1.5


class Action(Enum):
    """What is done about an upgrade that was cut off."""

    #: What served before serves again, with the schema that it needs.
    TAKE_BACK = "take back"
    #: The new server takes its place, and is proven.
    FINISH = "finish"


def unfinished(phase: str) -> Action:
    """What to do about an upgrade that was cut off in a phase.

    Before the server is replaced, what served still does, or can: nobody has to wait for the rest of a migration. From
    then on the new image is in the stack's env-file, and a boot starts it.
    """
    return Action.TAKE_BACK if phase == "migrating" else Action.FINISH


class Way(Enum):
    """How the way back goes."""

    #: The older image serves the newer schema: nothing is lost, and nothing is migrated.
    IMAGE = "image"
    #: The newer image takes its migrations back: what only the newer version knows is lost.
    DOWNGRADE = "downgrade"


def way_back(old_serves: bool) -> Way:
    """The way back that loses least."""
    return Way.IMAGE if old_serves else Way.DOWNGRADE


def read_otherwise(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> list[str]:
    """The deployments that the new server reads otherwise than the old one, with the fields: `flow/deployment: schedules`.

    Args:
        before: what the old server says of each by its id: `name`, and a hash of each field.
        after: the same of the new one; fields that it alone knows do not count.
    """
    found = []
    for identity, old in before.items():
        new = after.get(identity)
        if new is None:
            found.append(f"{old['name']}: not there")
            continue
        fields = [name for name, value in old.items() if new.get(name) != value]
        if fields:
            found.append(f"{old['name']}: {', '.join(fields)}")
    return sorted(found)


def room_for_a_second_server(available: int, used: int) -> bool:
    """Whether the new server can run beside the old one for the moment of the change.

    Args:
        available: bytes of memory that the host can give without swapping.
        used: bytes that the server uses now.
    """
    return available > used * MEMORY_FOR_A_SECOND
