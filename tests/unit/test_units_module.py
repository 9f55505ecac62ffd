"""The Ansible module that enables and starts units: run as Ansible runs it, with a systemctl that keeps its units in files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[2] / "ansible/library/prefect_units.py"

# A unit is a file: LoadState, ActiveState, and what `is-enabled` says. What was asked for stands in the file "asked".
SYSTEMCTL = """#!/bin/sh
cd "$(dirname "$0")/../units" || exit 1
echo "$*" >> ../asked
word=$1; shift
[ "$word" = daemon-reload ] && exit 0
while [ "${1#--}" != "$1" ]; do shift; done
for name; do
  load=not-found active=inactive enabled=not-found
  [ -f "$name" ] && read -r load active enabled < "$name"
  case $word in
    show) printf 'Id=%s\\nLoadState=%s\\nActiveState=%s\\nSubState=running\\n\\n' "$name" "$load" "$active" ;;
    is-enabled) echo "$enabled"; [ "$enabled" = enabled ] || exit 1 ;;
    enable) echo "$load $active enabled" > "$name" ;;
    disable) echo "$load $active disabled" > "$name" ;;
    start)
      case $name in broken*) echo "Job for $name failed." >&2; exit 1 ;; esac
      echo "$load active $enabled" > "$name" ;;
    stop) echo "$load inactive $enabled" > "$name" ;;
  esac
done
"""
JOURNALCTL = "#!/bin/sh\necho the disk is full\n"


@pytest.fixture
def systemd(tmp_path: Path) -> Path:
    """The directory of the units, which the first `systemctl` in PATH works on."""
    for name, text in {"systemctl": SYSTEMCTL, "journalctl": JOURNALCTL}.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(text)
        program.chmod(0o755)
    (tmp_path / "units").mkdir()
    return tmp_path / "units"


@pytest.fixture
def run(systemd: Path) -> Callable[..., dict[str, Any]]:
    """`run(unit, …, check=False, daemon_reload=False)`."""

    def make(*units: dict[str, Any], check: bool = False, daemon_reload: bool = False) -> dict[str, Any]:
        arguments = {"units": [*units], "daemon_reload": daemon_reload, "_ansible_check_mode": check}
        done = subprocess.run(
            [sys.executable, str(MODULE)],
            input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
            capture_output=True,
            text=True,
            env={**os.environ, "PATH": f"{systemd.parent / 'bin'}:{os.environ['PATH']}"},
        )
        return json.loads(done.stdout)

    return make


def asked(systemd: Path) -> list[str]:
    return [line.split()[0] for line in (systemd.parent / "asked").read_text().splitlines()]


TIMER = {"name": "a.timer", "enabled": True, "state": "started"}
WORKER = {"name": "w@main.service", "enabled": True, "state": "started"}
BOOT = {"name": "boot.service", "enabled": True}


def test_it_does_what_is_missing_and_then_nothing(run, systemd):
    (systemd / "a.timer").write_text("loaded inactive disabled\n")
    (systemd / "w@main.service").write_text("loaded failed enabled\n")
    (systemd / "boot.service").write_text("loaded inactive enabled\n")
    said = run(TIMER, WORKER, BOOT, daemon_reload=True)
    assert (said["changed"], said["changed_units"]) == (True, ["a.timer", "w@main.service"])
    assert said["status"]["w@main.service"]["ActiveState"] == "failed"
    assert said["diff"]["after"] == "a.timer: enable, start\nw@main.service: start\n"
    assert {path.name: path.read_text() for path in systemd.iterdir()} == {
        "a.timer": "loaded active enabled\n",
        "w@main.service": "loaded active enabled\n",
        "boot.service": "loaded inactive enabled\n",
    }
    (systemd.parent / "asked").unlink()
    said = run(TIMER, WORKER, BOOT)
    assert (said["changed"], said["changed_units"], said["diff"]) == (False, [], {})
    assert asked(systemd) == ["show", "is-enabled", "is-enabled", "is-enabled"]


def test_check_mode_tells_the_truth_and_changes_nothing(run, systemd):
    (systemd / "a.timer").write_text("loaded active enabled\n")
    (systemd / "boot.service").write_text("loaded inactive disabled\n")
    # The third would have been installed by now.
    said = run(TIMER, BOOT, WORKER, check=True, daemon_reload=True)
    assert said["changed_units"] == ["boot.service", "w@main.service"]
    assert (systemd / "boot.service").read_text() == "loaded inactive disabled\n"
    assert not {*asked(systemd)} - {"show", "is-enabled"}


def test_a_unit_is_stopped_and_disabled(run, systemd):
    off = {"name": "a.timer", "enabled": False, "state": "stopped"}
    (systemd / "a.timer").write_text("loaded active enabled\n")
    assert run(off)["changed"]
    assert (systemd / "a.timer").read_text() == "loaded inactive disabled\n"
    assert not run(off)["changed"]
    # A mask, or that there is none, is no obstacle to that.
    (systemd / "a.timer").write_text("masked inactive masked\n")
    assert not run(off)["changed"]
    (systemd / "a.timer").unlink()
    assert not run(off)["changed"]


def test_a_look_alone_changes_nothing(run, systemd):
    (systemd / "a.timer").write_text("loaded active enabled\n")
    said = run({"name": "a.timer"}, {"name": "missing.service"})
    assert not said["changed"] and asked(systemd) == ["show"]
    assert said["status"]["a.timer"]["SubState"] == "running"
    assert said["status"]["missing.service"]["LoadState"] == "not-found"
    assert run()["status"] == {}


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        ("masked inactive masked", 'The unit "a.timer" is masked. Run: systemctl unmask a.timer'),
        (None, 'The unit "a.timer" is not on this host.'),
        (
            "bad-setting inactive disabled",
            'systemd cannot read the unit "a.timer" (bad-setting). Look at: systemctl status a.timer',
        ),
    ],
)
def test_a_unit_that_cannot_be_started_is_named_before_any_other_is(run, systemd, unit, text):
    (systemd / "boot.service").write_text("loaded inactive disabled\n")
    if unit:
        (systemd / "a.timer").write_text(f"{unit}\n")
    said = run(BOOT, TIMER)
    assert (said["failed"], said["msg"]) == (True, text)
    assert (systemd / "boot.service").read_text() == "loaded inactive disabled\n"


def test_a_unit_that_does_not_start_is_told_with_its_last_words(run, systemd):
    (systemd / "broken.service").write_text("loaded inactive enabled\n")
    said = run({"name": "broken.service", "state": "started"})
    assert said["failed"]
    assert said["msg"] == (
        'systemctl start of the unit "broken.service" failed: Job for broken.service failed.\n'
        "Its last lines in the journal:\nthe disk is full\nLook at: journalctl -u broken.service"
    )
