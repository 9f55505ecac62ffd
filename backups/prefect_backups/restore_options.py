"""The command line of prefect-restore: what may be typed, what it means, and what of it the unit is given."""

from __future__ import annotations

import argparse
from datetime import datetime

from . import choose
from .plan import Plan, Request


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-restore",
        description="Bring a backup back. Without an option: show what there is, and ask.",
        epilog="What is there now is backed up first and kept beside, so a restore can be undone: prefect-restore --undo",
    )
    which = made.add_mutually_exclusive_group()
    which.add_argument("--latest", action="store_true", help="the newest backup")
    which.add_argument("--id", help="the backup with this id (as --list shows it; its beginning is enough)")
    which.add_argument("--before", metavar="TIME", help='the newest from before: "2026-11-21 04:30", 04:30, 2h (ago)')
    which.add_argument("--list", action="store_true", help="show what there is, and do nothing")
    which.add_argument("--undo", action="store_true", help="swap back to the database of before the last restore")
    which.add_argument("--resume", action="store_true", help="finish, or take back, a restore that was cut off")
    which.add_argument("--drop-previous", action="store_true", help="give up the database that --undo would bring back")
    made.add_argument(
        "--from", dest="repository", metavar="NAME", help='another repository: its name, "off-site", or "all"'
    )
    made.add_argument("--dry-run", action="store_true", help="all checks, and what would be done; changes nothing")
    made.add_argument("--yes", action="store_true", help="do not ask")
    late = made.add_argument_group("runs whose time has passed")
    late.add_argument("--run-late", action="store_true", help="cancel none: all of them run now")
    late.add_argument(
        "--as-is",
        action="store_true",
        help="nothing is missing since the backup (a move): no run is touched, no slot freed",
    )
    late.add_argument("--outage-since", metavar="TIME", help="cancel those due before (default: the last heartbeat)")
    how = made.add_argument_group("how")
    how.add_argument("--drain", metavar="SECONDS", type=float, default=0.0, help="let running flow runs end, so long")
    how.add_argument("--without-safety-backup", action="store_true", help="go on when what is there cannot be read")
    how.add_argument(
        "--new-cluster", action="store_true", help="Postgres does not start: set its data aside, make a new cluster"
    )
    how.add_argument("--with-files", action="store_true", help="certificate authority and certificates too")
    how.add_argument(
        "--initial", action="store_true", help="first restore on a new host: no safety backup, no smoke flow"
    )
    how.add_argument(
        "--image", metavar="IMAGE", default="", help="serve it with this image of Prefect: that from before an upgrade"
    )
    made.add_argument("--json", action="store_true", help="the result as JSON on stdout")
    # Set by ourselves, inside the unit; the second is of an undo: the database that was shown and confirmed.
    made.add_argument("--in-unit", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--shown", type=int, default=0, help=argparse.SUPPRESS)
    # Set by prefect-restore.service.
    made.add_argument("--by-systemd", action="store_true", help=argparse.SUPPRESS)
    return made


def request_of(options: argparse.Namespace, now: datetime) -> Request:
    """The request that the options mean. Raises Failure for a time that is none."""
    return Request(
        id=options.id,
        before=choose.parse_time(options.before, now) if options.before else None,
        repository=options.repository,
        run_late=options.run_late or options.as_is,
        as_is=options.as_is,
        outage_since=choose.parse_time(options.outage_since, now) if options.outage_since else None,
        drain=options.drain,
        safety_backup=not options.without_safety_backup,
        new_cluster=options.new_cluster,
        with_files=options.with_files,
        initial=options.initial,
        image=options.image,
        shown=options.shown,
    )


def settled(options: argparse.Namespace, plan: Plan | None, shown: int) -> list[str]:
    """The arguments for the unit: what was shown and confirmed, and not what --latest or 2h would mean by then.

    Args:
        plan: what was shown of a restore; None of an undo, or where nothing was shown.
        shown: of an undo, the identity of the database that was shown.
    """
    words = ["--undo", "--shown", str(shown)] if options.undo else []
    if plan is not None:
        words = ["--id", plan.backup.id, "--from", plan.backup.repository]
        # Without a heartbeat that could be read, the moment of the restore itself is meant.
        if options.outage_since or plan.last_life:
            words += ["--outage-since", plan.cancel_before.isoformat()] if plan.cancel_before else []
    elif options.outage_since:
        words += ["--outage-since", options.outage_since]
    if plan is None and not options.undo:
        words += ["--latest"] * options.latest
        for name in ("id", "before"):
            words += [f"--{name}", getattr(options, name)] if getattr(options, name) else []
        words += ["--from", options.repository] if options.repository else []
    for name in ("run_late", "as_is", "without_safety_backup", "new_cluster", "with_files", "initial", "json"):
        words += [f"--{name.replace('_', '-')}"] * getattr(options, name)
    words += ["--image", options.image] if options.image else []
    return words + (["--drain", str(options.drain)] if options.drain else [])
