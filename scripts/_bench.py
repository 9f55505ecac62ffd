"""What the benches share: a provisioned VPS of their own, steps that are shown, and trials that are timed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _env
from rich.console import Console
from rich.table import Table

from tests.lab.vps import engine, images, inventory, provision
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


def result(vps: Vps, text: str) -> dict[str, Any]:
    """The JSON object that a tool of ours ends its output with."""
    said = vps.ssh(text, timeout=3600).stdout
    return json.loads([line for line in said.splitlines() if line.startswith("{")][-1])


def new_table(title: str, *columns: str) -> Table:
    """A table with words in the first column, and figures in the others."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


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
def vps(keep: bool, prefect: str = images.NEWEST) -> Iterator[Vps]:
    """A VPS that site.yml has provisioned from nothing, with this Prefect; gone afterwards, unless it is kept."""
    # One that is kept has the Prefect that it was made with.
    name = NAME if prefect == images.NEWEST else f"{NAME}-earlier"
    directory = inventory_of(name)
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
    made = Vps(name)
    try:
        with step(f"a VPS for the bench: {name}"):
            engine.start_engine()
            if not keep:
                made.down()
            new = made.state == "absent"
            if new:
                shutil.rmtree(directory, ignore_errors=True)
            found = made.up()
            if prefect != found.prefect:
                found = images.ensure_images(prefect)
            inventory.write(directory, made, found)
        words = provision.version_words(found)
        with step(" ".join(["ansible-playbook site.yml", *words])):
            play = run_playbook(directory, "site.yml", *words, timeout=SECONDS_TO_PROVISION)
        if play.returncode:
            raise LabError(f"site.yml failed on the VPS {name}:\n{play.stdout[-6000:]}", "read its end above")
        yield made
    finally:
        if keep:
            console.print(f"The VPS stays; remove it: python3 -m tests.lab.vps down {name}")
        else:
            made.down()
            shutil.rmtree(directory, ignore_errors=True)
            if ours:
                engine.stop_engine()
