"""What the benches share: a provisioned VPS of their own, steps that are shown, and trials that are timed."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import _env
from rich.console import Console

from tests.lab.vps import engine, inventory
from tests.lab.vps.playbook import run_playbook
from tests.lab.vps.shell import LabError, cache_directory
from tests.lab.vps.vps import Vps

NAME = os.environ.get("PREFECT_BENCH_NAME", "bench")
FREE_DISK_GB = 12
SECONDS_TO_PROVISION = 1200
# Where nobody sees a spinner.
SECONDS_BETWEEN_LINES = 60

console = Console(highlight=False)
# Tables that are cut to 80 columns are of no use in a log.
if not console.is_terminal:
    console.width = 110


@contextlib.contextmanager
def step(text: str) -> Iterator[Callable[[str], None]]:
    """`with step("24 hours") as say:` shows it while it runs, with what `say` was last told, and its seconds at the end."""
    started = said = time.monotonic()
    with console.status(f"{text} …") as status:

        def say(words: str) -> None:
            nonlocal said
            line = f"{text} … {words} [dim]{time.monotonic() - started:.0f} s[/]"
            status.update(line)
            if not console.is_terminal and time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                console.print(f"  {line}")

        yield say
    console.print(f"[green]✔[/] {text} [dim]{time.monotonic() - started:.0f} s[/]")


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work()` takes."""
    started = time.monotonic()
    work()
    return time.monotonic() - started


def inventory_of(name: str) -> Path:
    """The inventory of a VPS of the bench, or of the tests."""
    return cache_directory() / f"{name}-inventory"


@contextlib.contextmanager
def standing(name: str) -> Iterator[Vps]:
    """A VPS that is up and provisioned, left as it is. Raises LabError where there is none."""
    made = Vps(name)
    if made.state != "running" or not (inventory_of(name) / "secrets").is_dir():
        raise LabError(
            f'the VPS "{name}" is not running, or site.yml has not been through it',
            "list what there is: python3 -m tests.lab.vps list; without --vps the bench makes one of its own",
        )
    yield made


@contextlib.contextmanager
def vps(keep: bool) -> Iterator[Vps]:
    """A VPS that site.yml has provisioned from nothing; gone afterwards, unless it is kept."""
    free = shutil.disk_usage(_env.ROOT).free / 1024**3
    if free < FREE_DISK_GB:
        _env.fail(f'"{free:.1f}" GiB of disk are free; {FREE_DISK_GB} are needed', f"free some space on {_env.ROOT}")
    load = os.getloadavg()[0]
    if load > 1:
        console.print(
            f"[yellow]Other work is going on here (load {load:.1f}): times and ratios will be less certain.[/]"
        )
    try:
        engine.client()
        ours = False
    except LabError:
        ours = True
    made = Vps(NAME)
    try:
        with step(f"a VPS for the bench: {NAME}"):
            engine.start_engine()
            if not keep:
                made.down()
            new = made.state == "absent"
            if new:
                shutil.rmtree(inventory_of(NAME), ignore_errors=True)
            inventory.write(inventory_of(NAME), made, made.up())
        with step("ansible-playbook site.yml"):
            play = run_playbook(inventory_of(NAME), "site.yml", timeout=SECONDS_TO_PROVISION)
        if play.returncode:
            raise LabError(f"site.yml failed on the VPS {NAME}:\n{play.stdout[-6000:]}", "read its end above")
        yield made
    finally:
        if keep:
            console.print(f"The VPS stays; remove it: python3 -m tests.lab.vps down {NAME}")
        else:
            made.down()
            shutil.rmtree(inventory_of(NAME), ignore_errors=True)
            if ours:
                engine.stop_engine()
