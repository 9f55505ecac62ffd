"""./scripts/doctor residency: what every server of an inventory sends while it is watched, and for what reason.

    ./scripts/doctor residency                                  for a minute, the only inventory beside the example
    ./scripts/doctor residency --seconds 600 --expect monitoring.example.org
    ./scripts/doctor residency -i ansible/inventory/mine --json

Each server runs its own `prefect-doctor residency`, which needs tcpdump there.
Exit code: 0 all has a reason, 1 something has none, 3 a server could not be watched.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import _env
import _inventory

#: Only a server has the tools.
HOSTS = "prefect"
#: A column is not wider.
WIDEST = 60


@dataclass(frozen=True)
class Told:
    """What one server has said: what it sent, or why it was not watched."""

    host: str
    sent: Sequence[Mapping[str, Any]] = ()
    failed: str = ""

    @property
    def unexplained(self) -> int:
        return sum(one["reason"] == "unexplained" for one in self.sent)


def command(seconds: float, expected: Sequence[str]) -> str:
    """What a server runs."""
    words = ["prefect-doctor", "residency", "--json", "--seconds", str(seconds)]
    return shlex.join([*words, *(word for place in expected for word in ("--expect", place))])


def told(host: str, result: Mapping[str, Any]) -> Told:
    """A server's word, from Ansible's result."""
    printed = [line for line in str(result.get("stdout", "")).splitlines() if line.startswith("{")]
    try:
        return Told(host, json.loads(printed[-1])["sent"])
    except (IndexError, ValueError, KeyError):
        said = str(result.get("stderr") or result.get("msg") or "no word")
        return Told(host, failed=" ".join(said.split())[-400:])


def all_told(said: str) -> list[Told]:
    """Those of all servers, from what Ansible has printed. Raises ValueError where that is not JSON."""
    plays = json.JSONDecoder().raw_decode(said, said.index("{"))[0]["plays"]
    return [told(host, result) for play in plays for task in play["tasks"] for host, result in task["hosts"].items()]


def table(found: Sequence[Told]) -> list[str]:
    """For a person."""
    rows = [("host", "destination", "names", "packets", "reason")]
    rows += [
        (one.host, line["what"], ", ".join(line["names"]), str(line["packets"]), line["reason"])
        for one in found
        for line in one.sent
    ]
    widths = [min(max(len(row[at]) for row in rows), WIDEST) for at in range(len(rows[0]))]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines + [f"{one.host} was not watched: {one.failed}" for one in found if one.failed]


def code(found: Sequence[Told]) -> int:
    """The exit code."""
    return 3 if any(one.failed for one in found) else 1 if any(one.unexplained for one in found) else 0


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="doctor residency",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _inventory.add_options(parser)
    parser.add_argument("-K", "--ask-become-pass", action="store_true", help="ask for the password of sudo")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="how long each is watched (60)")
    parser.add_argument(
        "--expect", action="append", default=[], metavar="PLACE", help="a name, address or network that you know of"
    )
    parser.add_argument("--json", action="store_true", help="as JSON on stdout")
    options = parser.parse_args(arguments)
    inventory = options.inventory or _inventory.only_inventory("doctor residency")
    more = [*_inventory.ansible_options(options), *["--ask-become-pass"] * options.ask_become_pass]
    words = [str(_env.VENV / "bin" / "ansible"), HOSTS, "-i", str(inventory.resolve()), "--become", *more]
    words += ["--module-name", "ansible.builtin.command", "--args", command(options.seconds, options.expect)]
    environment = {
        **os.environ,
        "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json",
        "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true",
        "ANSIBLE_CALLBACKS_ENABLED": "prefect_lean_forks",
    }
    done = subprocess.run(words, cwd=_inventory.ANSIBLE, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        found = all_told(done.stdout)
    except (ValueError, KeyError):
        found = []
    if not found:
        _env.fail(f'of the inventory "{inventory}" no server was watched', "./scripts/doctor residency -i INVENTORY")
    if options.json:
        shown = [{"host": one.host, "sent": list(one.sent), "failed": one.failed} for one in found]
        print(json.dumps({"unexplained": sum(one.unexplained for one in found), "servers": shown}))
    else:
        print("\n".join(table(found)))
    return code(found)
