"""One server takes the place of another: by a third one, which answers meanwhile, so that nobody has to wait."""

from __future__ import annotations

from pathlib import Path

from prefect_backups.errors import Code
from prefect_backups.host import Host
from prefect_backups.served import set_image
from prefect_backups.stack import SERVER

from . import side
from .decide import room_for_a_second_server


def replace(host: Host, image: str) -> None:
    """Have the server's container run `image`, which fits the database as it is. Raises Failure (NOT_READY).

    Where there is memory for it, a server of that image answers from before the old one stops until the new one is ready.
    It has all services, like any server: one without would take events, and lose them. Where the server runs that image
    already, as after a death, what is left beside it goes, and no more.
    """
    report = host.report
    if host.stack.environment().get("PREFECT_IMAGE") == image and side.is_well(SERVER, image):
        if side.is_well(side.NEXT, image):
            side.refuse_connections(side.NEXT)
        side.remove(side.NEXT)
        return
    beside = room(host)
    if beside:
        with report.step("the new server beside the old one", "beside"):
            side.take_requests(side.start(host, side.NEXT, image, {}))
            # Its name goes when it does; the old one's goes below.
    else:
        report.say("      too little memory for a second server: the API is away while the new one starts")
    try:
        with report.step("the new server in the place of the old one", "replace"):
            set_image(host, image)
            if beside:
                side.refuse_connections(SERVER)
            # With what it depends on, which is as it was: --no-deps would be another configuration to compose, and the next
            # `up` would make the container again.
            host.stack.compose("up", "--detach", "server")
            host.stack.wait_for(SERVER, Code.NOT_READY)
        if beside:
            side.refuse_connections(side.NEXT)
    finally:
        side.remove(side.NEXT)


def room(host: Host) -> bool:
    """Whether there is memory for a second server. Without the old one there is no need for it."""
    if not host.stack.serves():
        return False
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(lines["MemAvailable"].split()[0]) * 1024
    return room_for_a_second_server(available, side.memory(SERVER))
