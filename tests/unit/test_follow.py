"""A command whose lines are shown while it runs, by the real ansible-playbook on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"


@pytest.fixture
def follow(tmp_path):
    """`follow(SCRIPT, *options)` runs a shell script by the plugin; gives exit code, lines with their time, and result."""

    def run(script: str, *options: str) -> tuple[int, list[tuple[float, str]], dict[str, Any]]:
        result = tmp_path / "result.json"
        tasks = [
            {
                "prefect_follow": {"argv": ["sh", "-c", script, "the word's\nown"]},
                "register": "done",
                "ignore_errors": True,
            },
            {"ansible.builtin.copy": {"content": "{{ done | to_json }}", "dest": str(result)}, "check_mode": False},
        ]
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        play["vars"] = {"ansible_python_interpreter": sys.executable}
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        (tmp_path / "action_plugins").symlink_to(ANSIBLE / "action_plugins")
        command = [
            Path(sys.executable).with_name("ansible-playbook"),
            "-i",
            "localhost,",
            tmp_path / "play.yml",
            *options,
        ]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        lines = [(time.monotonic(), line.rstrip("\n")) for line in process.stdout]
        code = process.wait()
        assert result.exists(), lines
        return code, lines, json.loads(result.read_text())

    return run


def test_lines_are_shown_when_they_are_said_and_all_is_given_at_the_end(follow):
    code, lines, result = follow('echo eins … >&2; printf "%s" "$0"; sleep 4; printf "zwei\\ndrei" >&2; exit 3')
    at = {line: when for when, line in lines}
    assert code == 0
    assert at["localhost: zwei"] - at["localhost: eins …"] > 2
    assert "localhost: drei" in at
    assert (result["rc"], result["failed"], result["changed"]) == (3, True, True)
    assert (result["stdout"], result["stderr_lines"]) == ("the word's\nown", ["eins …", "zwei", "drei"])
    assert result["msg"] == "eins …\nzwei\ndrei"


def test_the_error_is_what_a_failure_says(follow):
    """What was shown before it is not shown again."""
    _, _, result = follow("echo '  ok   a step: 3 s' >&2; echo 'ERROR: no\nHINT: another' >&2; exit 20")
    assert (result["rc"], result["msg"]) == (20, "ERROR: no\nHINT: another")


def test_a_command_that_is_killed_with_its_shell_is_told(follow):
    """Nobody waits for an exit code that will never come."""
    _, _, result = follow("echo begun >&2; kill -9 $PPID; sleep 1; kill -9 $$")
    assert (result["rc"], result["failed"], result["msg"]) == (255, True, "begun")


def test_check_mode_runs_nothing(follow, tmp_path):
    code, _, result = follow(f"touch {tmp_path}/made", "--check")
    assert (code, result["skipped"]) == (0, True)
    assert not (tmp_path / "made").exists()
