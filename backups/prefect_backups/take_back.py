"""Taking back: the data of before the restore are served, and nothing is left of the attempt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker.errors
import psycopg

from . import workers
from .errors import Code, Failure
from .host import Host
from .journal import Journal
from .postgres import RESTORING


def take_back(host: Host, journal: Journal) -> bool:
    """Leave nothing of an attempt: the old database serves, as before. What cannot be done now stays in the journal.

    Gives whether all of it was done: it is called where another failure is on its way already.
    """
    try:
        if journal.aside and journal.phase in ("building", "switching"):
            put_cluster_back(host, journal)
        # What cannot be removed now, the next restore removes.
        with contextlib.suppress(Failure, psycopg.Error):
            host.postgres.end_orphans()
            if journal.backup != "undo" and RESTORING in host.postgres.databases():
                host.postgres.adopt(RESTORING)
                host.postgres.drop(RESTORING)
        for name in ("restore", "files"):
            host.postgres.remove_staging(name)
        earlier = journal.replaced()
        if earlier is not None:
            earlier.save(host.state)
            host.report.say(f"      {earlier.name} is there again, unfinished: prefect-restore --resume")
            return True
        if journal.phase != "building" or journal.stopped:
            _serve_as_before(host, journal)
    except (Failure, OSError, psycopg.Error, docker.errors.DockerException) as error:
        host.report.say(f"      not taken back yet: {' '.join(str(error).split())}", style="yellow")
        return False
    journal.end(host.state)
    return True


@contextlib.contextmanager
def taken_back_on_failure(host: Host, journal: Journal) -> Iterator[None]:
    """What was there goes on serving, so nothing may be left of an attempt that fails in the block."""
    try:
        yield
    except BaseException:
        take_back(host, journal)
        raise


def take_back_and_say(host: Host, journal: Journal) -> dict[str, Any]:
    """The same as all that a command does; gives the facts for --json. Raises Failure where it cannot be done yet."""
    if not take_back(host, journal):
        raise Failure(
            Code.NOT_READY,
            f"{journal.name}, which did not end, cannot be taken back yet: the server does not come",
            "look at: docker ps --all ; journalctl -n 20 -u prefect-stack ; when that is solved:"
            " prefect-restore --resume ; or bring a backup back: prefect-restore --latest",
        )
    host.report.say("It is taken back: the data of before the restore are there. Run the restore again.")
    return {"backup": journal.backup, "resumed": "taken back"}


def put_cluster_back(host: Host, journal: Journal) -> None:
    """The data that --new-cluster has set aside are in their place again. Raises Failure."""
    with host.report.step("the cluster of before is put back", "put back"):
        host.stack.put_back(Path(journal.aside))
        journal.aside = ""
        journal.save(host.state)


def _serve_as_before(host: Host, journal: Journal) -> None:
    """Start what the restore has stopped; what was broken before is not waited for. Raises Failure."""
    if journal.served:
        host.stack.start_server()
        workers.unpause(host, journal)
        if late := workers.start(host, journal):
            host.report.say(f"      {late.fact}", style="yellow")
        return
    with contextlib.suppress(Failure):
        host.stack.start_server(wait=False)
    with contextlib.suppress(Failure):
        host.stack.start_workers(journal.workers, wait=False)
