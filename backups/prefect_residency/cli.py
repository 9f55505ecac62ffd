"""prefect-doctor residency: watch what this host sends for a while, and say why."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from prefect_backups import progress, settings
from prefect_backups.errors import Code, Failure
from prefect_backups.progress import Report
from prefect_doctor.finding import one_line
from rich.console import Console
from rich.table import Table

from . import configured, packets
from .reasons import Line, lines
from .seen import Seen

#: Bytes of each packet: enough for the first message of TLS, whose name comes early.
SNAPLEN = 2048
#: Tcpdump's own words for when it has begun.
LISTENING = b"listening on"
#: Seconds until tcpdump must have begun, or have ended.
PATIENCE = 30
# Connections that are opened, first messages of TLS, questions over TCP; everything that is not TCP, in both directions, for what
# this host has not begun itself is an answer. (BPF looks into TCP over IPv4 alone: over IPv6 by the place of its fields.)
FILTER = (
    "((ip or ip6) and not tcp) or (outbound and ("
    "tcp[tcpflags] & (tcp-syn | tcp-ack) == tcp-syn or tcp[((tcp[12] & 0xf0) >> 2)] = 0x16 or tcp dst port 53"
    " or (ip6[6] = 6 and (ip6[53] & 0x12 = 2 or ip6[(40 + ((ip6[52] & 0xf0) >> 2))] = 0x16))))"
)
NETWORK = Path("/sys/class/net")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="prefect-doctor residency",
        description="Watch what this host sends: names that it asks for, addresses, names in TLS; and say for what reason, by the "
        "host's own configuration. What comes in, and its answers, is left out. Changes nothing.",
        epilog="Exit code: 0 all has a reason, 1 something has none, 3 it could not be watched.",
    )
    made.add_argument("--seconds", type=float, default=60, metavar="N", help="how long (60); Ctrl-C ends it earlier")
    made.add_argument("--json", action="store_true", help="as JSON on stdout")
    made.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="PLACE",
        help="a name (*.example.org: all below), address or network that something else on this host needs; repeat it",
    )
    return made


def outward(root: Path = NETWORK, routes: str = "") -> list[int]:
    """Numbers of the interfaces that lead out of the host: neither loopback, bridge, nor a bridge's part; but whatever has a default route.

    Args:
        routes: output of `ip route show default` of both families.
    """
    words = routes.split()
    default = {words[at + 1] for at, word in enumerate(words[:-1]) if word == "dev"}
    found = []
    for interface in sorted(root.iterdir()):
        name = interface.name
        inner = name == "lo" or (interface / "bridge").exists() or (interface / "brport").exists()
        if name in default or not inner:
            try:
                found.append(int((interface / "ifindex").read_text()))
            except (OSError, ValueError):
                # It has just gone, or is no interface (bonding_masters).
                continue
    return found


def command() -> list[str]:
    """What captures."""
    options = [
        "--interface=any",
        "--linktype=LINUX_SLL2",
        f"--snapshot-length={SNAPLEN}",
        "--packet-buffered",
        "--no-promiscuous-mode",
    ]
    return ["tcpdump", *options, "-n", "-w", "-", FILTER]


def watch(stream: IO[bytes], seen: Seen) -> None:
    """Take all packets of a capture, until it ends. Raises ValueError where it is none."""
    for record in packets.records(stream):
        if one := packets.packet(record):
            seen.take(one)


def capture(seen: Seen, seconds: float, report: Report) -> None:
    """Watch for so long. Raises Failure where that cannot be done."""
    with subprocess.Popen(command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout and running.stderr
        said: list[bytes] = []
        begun = threading.Event()

        def listen(stream: IO[bytes]) -> None:
            for line in stream:
                said.append(line)
                if LISTENING in line:
                    begun.set()
            begun.set()

        threading.Thread(target=listen, args=(running.stderr,), daemon=True).start()
        begun.wait(PATIENCE)
        if not any(LISTENING in line for line in said):
            running.kill()
            words = b"".join(said).decode(errors="replace").strip() or "it said nothing"
            raise Failure(Code.SETTINGS, f"tcpdump does not capture: {words}", "journalctl -k -n 20")
        report.say(f"watching for {seconds:.0f} s; Ctrl-C ends it earlier")
        # It writes what it has, and ends.
        timer = threading.Timer(seconds, running.terminate)
        timer.daemon = True
        timer.start()
        before = signal.signal(signal.SIGINT, lambda *_: running.terminate())
        try:
            watch(running.stdout, seen)
        except ValueError as error:
            running.kill()
            raise Failure(Code.SETTINGS, str(error), "tcpdump --version") from error
        finally:
            timer.cancel()
            signal.signal(signal.SIGINT, before)


def table_of(found: Sequence[Line]) -> Table:
    """For a person."""
    table = Table(box=None, pad_edge=False)
    for title in ("", "destination", "names", "packets", "reason"):
        table.add_column(title, overflow="fold", no_wrap=not title)
    for one in found:
        style, word = ("green", "ok") if one.explained else ("bold red", "unexplained")
        names = ", ".join(one.names)
        cells = (one_line(word).replace("[", r"\[") for word in (one.what, names, str(one.packets), one.reason))
        table.add_row(f"[{style}]{word}[/]", *cells)
    return table


def told(found: Sequence[Line], seconds: float) -> dict[str, object]:
    """For --json."""
    shown = [
        {"what": one.what, "names": list(one.names), "packets": one.packets, "reason": one.reason or "unexplained"}
        for one in found
    ]
    return {"seconds": seconds, "unexplained": sum(not one.explained for one in found), "sent": shown}


def main(arguments: Sequence[str]) -> int:
    """The command; gives the exit code."""
    options = parser().parse_args(arguments)
    report = Report(sys.stderr)
    try:
        if os.geteuid() != 0:
            raise Failure(Code.SETTINGS, "prefect-doctor needs root", "sudo prefect-doctor residency")
        if not shutil.which("tcpdump"):
            raise Failure(
                Code.SETTINGS, "there is no tcpdump, which watches", "apt-get install --no-install-recommends tcpdump"
            )
        loaded = settings.load()
        # Before: what it asks for itself is not the host's.
        known = configured.look(loaded, options.expect)
        routes = "".join(
            subprocess.run(
                ["ip", family, "route", "show", "default"], capture_output=True, text=True, check=False
            ).stdout
            for family in ("-4", "-6")
        )
        seen = Seen(outward(routes=routes))
        capture(seen, options.seconds, report)
    except Failure as failure:
        report.say(str(failure), style="bold red")
        return 3
    found = lines(seen, known)
    unexplained = sum(not one.explained for one in found)
    if options.json:
        progress.result(told(found, options.seconds))
    else:
        Console().print(table_of(found))
        print(f"{len(found) - unexplained} of {len(found)} have a reason")
        if unexplained and not Path("/etc/nftables.d/prefect-egress.nft").exists():
            print("Flow runs may connect to anywhere (workers_egress: open): what is unexplained may be theirs.")
    return 1 if unexplained else 0
