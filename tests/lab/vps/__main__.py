"""Command line of the lab: python3 -m tests.lab.vps up|down|ssh|status|list."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import engine, images, inventory
from .shell import LabError, say
from .vps import Vps, all_vps, down_all

DEFAULT_NAME = "prefect"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.lab.vps", description="A throwaway Debian 13 VPS in a container on this machine."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up|down|ssh|status|list|images|outsider")

    def verb(word: str, text: str, name: bool = True) -> argparse.ArgumentParser:
        added = verbs.add_parser(word, help=text, description=text)
        if name:
            added.add_argument("name", nargs="?", default=DEFAULT_NAME, help=f"the VPS (default: {DEFAULT_NAME})")
        return added

    up = verb("up", "Make the VPS, or start the one that is there, and wait until it can be used.")
    up.add_argument("--domain", help="a name that this machine (in /etc/hosts) and the lab's network resolve to it")
    up.add_argument("--inventory", type=Path, metavar="DIRECTORY", help="also write an Ansible inventory for it there")
    down = verb("down", "Remove the VPS and all that belongs to it.")
    down.add_argument("--all", action="store_true", help="every VPS, and the lab's network")
    down.add_argument("--engine", action="store_true", help="also stop the Docker engine, if the lab started it")
    down.add_argument(
        "--cache", action="store_true", help="with --all: also remove the lab's snapshots, images and archives"
    )
    ssh = verbs.add_parser("ssh", help="Run a command on the VPS, or open a shell.")
    ssh.add_argument("name", help="the VPS")
    ssh.add_argument("command", nargs=argparse.REMAINDER, help="a shell command")
    verb("status", "Say how the VPS is: state, address, image; exit code 1 when it does not run.")
    verb("list", "List every VPS of the lab.", name=False)
    verb("images", "Build what is missing of the lab's images, and print where their archive is.", name=False)
    outsider = verbs.add_parser("outsider", help="Run a command in a stranger's container on the lab's network.")
    outsider.add_argument("name", help="the VPS whose network it is")
    outsider.add_argument("command", nargs=argparse.REMAINDER, help="a command, such as: nmap -p- ADDRESS")
    return parser


def _up(options: argparse.Namespace) -> int:
    vps = Vps(options.name)
    lab_images = vps.up(domain=options.domain)
    if options.inventory:
        inventory.write(options.inventory, vps, lab_images)
        say(f"inventory: {options.inventory}")
    print(vps.address)
    return 0


def _down(options: argparse.Namespace) -> int:
    try:
        engine.client()
    except LabError:
        say("no Docker engine answers: nothing of the lab runs, and what it left in the engine is not removed")
        return 0
    if options.all:
        down_all()
        if options.cache:
            images.remove_all()
    else:
        Vps(options.name).down()
    if options.engine:
        engine.stop_engine()
    return 0


def _status(options: argparse.Namespace) -> int:
    vps = Vps(options.name)
    print(f"name {vps.name}\nstate {vps.state}")
    if vps.state == "absent":
        return 1
    print(f"address {vps.address}\ndomain {vps.domain}\nimage {vps.image}")
    if vps.state != "running":
        return 1
    print(f"systemd {vps.ssh('systemctl is-system-running', check=False).stdout.strip()}")
    return 0


def _main(options: argparse.Namespace) -> int:
    match options.verb:
        case "up":
            return _up(options)
        case "down":
            return _down(options)
        case "status":
            return _status(options)
        case "list":
            for vps in all_vps():
                print(vps.name, vps.state, vps.address, vps.domain or "-")
        case "images":
            engine.start_engine()
            found = images.ensure_images()
            print(f"source {found.source}\nvps {found.vps}\narchive {found.archive}")
        case "ssh":
            vps = Vps(options.name)
            if vps.state == "absent":
                raise LabError(f'there is no VPS "{vps.name}"', f"python3 -m tests.lab.vps up {vps.name}")
            command = vps.ssh_command(*options.command)
            os.execvp(command[0], command)
        case "outsider":
            done = Vps(options.name).outsider(*options.command, check=False)
            sys.stdout.write(done.stdout)
            sys.stderr.write(done.stderr)
            return done.returncode
    return 0


def main(words: list[str] | None = None) -> int:
    """Parse, do, and say errors as fact and hint; exit code 2 for an error of the lab."""
    options = _parser().parse_args(words)
    try:
        return _main(options)
    except LabError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
