"""Which linter looks at which file: every tracked file has one, or a reason why it has none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import _lint  # noqa: E402
import _promtool  # noqa: E402

PYTHON = "#!/opt/prefect/backups/venv/bin/python\n"


def tracked() -> dict[str, str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {name: _lint.first_line(ROOT / name) for name in names if (ROOT / name).is_file()}


@pytest.mark.parametrize(
    ("name", "first_line", "linters"),
    [
        ("flows/hello.py", '"""A flow."""\n', {"ruff"}),
        ("backups/prefect_backups/new.py", "", {"ruff", "mypy"}),
        ("backups/prefect-backup", PYTHON, {"ruff"}),
        ("systemd/worker/prefect-worker-drain", "#!/opt/prefect/worker/venv/bin/python\n", {"ruff"}),
        ("scripts/demo", "#!/usr/bin/env python3\n", {"ruff", "mypy"}),
        (".ci/run", "#!/usr/bin/env bash\n", {"shellcheck"}),
        ("tests/new", "#!/bin/sh\n", {"shellcheck"}),
        ("compose/server/healthcheck.sh", "#!/bin/sh\n", {"shellcheck"}),
        ("ansible/roles/x/tasks/main.yml", "---\n", {"yamllint"}),
        ("ansible/roles/x/templates/x.j2", "", {"templates"}),
        ("docs/monitoring/rules.yml", "", {"yamllint", "promtool"}),
        ("docs/kubernetes/worker.yaml", "", {"yamllint", "kubernetes"}),
        ("docs/kubernetes/helm-values.yaml", "", {"yamllint"}),
        ("docs/monitoring/datadog/openmetrics.yaml", "", {"yamllint"}),
        ("caddy/tls-new.caddy", "", {"caddy fmt"}),
        ("systemd/prefect-new@.service", "[Unit]\n", {"systemd"}),
        ("systemd/prefect-new@.service.d/more.conf", "[Service]\n", {"systemd"}),
        ("pyproject.toml", "", {"ruff"}),
        ("docs/new.md", "# New\n", set()),
        ("scripts/new", "#!/usr/bin/perl\n", set()),
        ("new.lua", "", set()),
    ],
)
def test_the_linters_of_a_file(name, first_line, linters):
    assert _lint.linters(name, first_line) == linters


def test_every_tracked_file_has_a_linter_or_a_reason():
    assert _lint.problems(tracked()) == []


def test_a_file_that_nobody_looks_at_is_told():
    said = _lint.problems({**tracked(), "scripts/new": "#!/usr/bin/perl\n", "flows/requirements_of.py.txt": ""})
    assert said == ["no linter looks at scripts/new: name one in scripts/_lint.py, or the reason why there is none"]


def test_a_reason_that_is_none_is_told(monkeypatch):
    monkeypatch.setitem(_lint.NOT_LINTED, "*.lua", "a game")
    monkeypatch.setitem(_lint.NOT_LINTED, "scripts/demo", "shown in the demo")
    assert _lint.problems(tracked()) == [
        "scripts/demo has a linter (mypy, ruff) and a reason for having none",
        'NOT_LINTED of scripts/_lint.py has "*.lua", and no such file is tracked',
    ]


def test_each_linter_is_given_the_files_that_it_looks_at():
    files = tracked()
    commands = {check.name: check.commands for check in _lint.checks(files, 257, True, "promtool", True)}
    told = {name: {word for command in found for word in command} for name, found in commands.items()}
    for name, first_line in files.items():
        # A drop-in is read with its unit, and ansible.cfg by Ansible.
        for linter in _lint.linters(name, first_line) if not name.endswith((".conf", ".cfg")) else ():
            assert name in told[linter], (name, linter)
    assert {"site.yml", "restore.yml"} <= told["ansible syntax"]
    assert "--strict" in told["yamllint"] and commands["ansible-lint"][0][0] == "ansible-lint"


def test_a_check_that_this_machine_cannot_make_says_why():
    skipped = {check.name: check.skipped for check in _lint.checks(tracked(), None, False, "", False) if check.skipped}
    assert skipped == {
        "systemd": "this machine has no systemd-analyze; the lab's VPSs have",
        "compose": "this machine has no docker compose; yamllint has looked at it",
        "promtool": "this machine has no promtool, and no Debian package of it; yamllint has looked",
        "kustomize": "this machine has no kubectl; yamllint has looked",
    }


def test_of_what_systemd_says_only_what_is_wrong_with_a_unit_counts():
    said = (
        "x.service: Command /usr/local/sbin/prefect-backup is not executable: No such file or directory\n"
        "x.service:47: Unknown key 'DelegateSubgroup' in section [Service], ignoring.\n"
    )
    wrong = "x.timer:6: Failed to parse calendar specification, ignoring: soon"
    assert _lint.of_units(said, 252) == ""
    assert _lint.of_units(said + wrong + "\n", 252) == wrong
    assert _lint.of_units(said, 257) == "x.service:47: Unknown key 'DelegateSubgroup' in section [Service], ignoring."
    assert "Enviroment" in _lint.of_units("x.service:1: Unknown key 'Enviroment' in section [Service], ignoring.", 252)


def test_what_a_check_says_is_told_when_it_fails(tmp_path):
    fine = _lint.Check("fine", [["true"], ["echo", "x"]])
    exits = _lint.Check("exits", [["sh", "-c", "echo why; exit 1"], ["true"]])
    differs = _lint.Check("differs", [["printf", " same\\n- old\\n+ new\\n"]], wrong=_lint.changed_lines)
    partly = _lint.Check("partly", [["sh", "-c", "echo quiet; exit 1"]], wrong=_lint.changed_lines, exit_tells=False)
    absent = _lint.Check("absent", [["no-such-program-at-all"]], skipped="there is none")
    said = [_lint.run(check, tmp_path)[0] for check in (fine, exits, differs, partly, absent)]
    assert said == [None, "why\n", "- old\n+ new", None, None]


def test_templates_that_jinja_cannot_read(tmp_path):
    (tmp_path / "good.j2").write_text("{% for x in y %}{{ x | unknown_filter }}{% endfor %}\n")
    (tmp_path / "bad.j2").write_text("x\n{% for x in y %}\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/_lint.py", "good.j2", "bad.j2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout.startswith("bad.j2:2: Unexpected end of template.")


# --- promtool --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="this machine is no Debian")
def test_promtool_is_taken_out_of_the_package_of_debian_and_kept(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: prometheus\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n"
    )
    (tree / "usr/bin").mkdir(parents=True)
    # More than fits into a pipe comes after what is wanted.
    for name, content in (("prometheus", "no\n"), ("promtool", "#!/bin/sh\necho here\n"), ("zzz", "x" * 300_000)):
        (tree / "usr/bin" / name).write_text(content)
    package = tmp_path / "prometheus.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", tree, package], check=True, capture_output=True)
    which = shutil.which
    monkeypatch.setattr(_promtool.shutil, "which", lambda name: None if name == "promtool" else which(name))
    monkeypatch.setattr(_promtool, "_download", lambda directory: shutil.copy(package, directory))
    cache = tmp_path / "cache"
    assert _promtool.there(cache) == ""
    found = _promtool.ensure(cache)
    assert subprocess.run([found], capture_output=True, text=True).stdout == "here\n"
    assert [one.name for one in cache.iterdir()] == ["promtool"]
    monkeypatch.setattr(_promtool, "_download", lambda directory: pytest.fail("it is there"))
    assert _promtool.ensure(cache) == _promtool.there(cache) == found


def test_a_machine_without_promtool_and_its_package_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_promtool.shutil, "which", lambda name: None if name == "promtool" else f"/usr/bin/{name}")
    monkeypatch.setattr(_promtool, "_download", lambda directory: None)
    assert _promtool.ensure(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(_promtool.shutil, "which", lambda name: None)
    assert _promtool.ensure(tmp_path) == ""
