"""./scripts/doctor: one table of all hosts, and the part of prefect-doctor that a host without the tools can run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect_doctor import asked, clocks, worker_host
from prefect_doctor.finding import Level

ROOT = Path(__file__).resolve().parents[2]


def load() -> ModuleType:
    """The script, which has no ending that Python knows."""
    sys.path.insert(0, str(ROOT / "scripts"))
    spec = importlib.util.spec_from_loader(
        "scripts_doctor", SourceFileLoader("scripts_doctor", str(ROOT / "scripts/doctor"))
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


doctor = load()


def finding(check: str, level: str) -> dict[str, str]:
    return {"check": check, "level": level, "measured": "x", "allowed": "y", "mend": "z" * (level != "OK")}


def printed(*findings: dict[str, str]) -> str:
    return "a warning of sudo's\n" + json.dumps({"worst": "", "seconds": 1.0, "findings": findings}) + "\n"


def said(**hosts: dict[str, Any]) -> str:
    """What Ansible prints."""
    return json.dumps({"plays": [{"tasks": [{"hosts": hosts}]}]}, indent=4) + "\n"


HOSTS = said(
    server={"rc": 2, "failed": True, "stdout": printed(finding("API", "BAD"), finding("disk /", "OK"))},
    away={"unreachable": True, "msg": "Task failed: Failed to connect to the host via ssh:\n  No route to host"},
    gpu={"rc": 1, "stdout": printed(finding("workers on this host", "WARNING"))},
    moved={
        "rc": 3,
        "failed": True,
        "stdout": "",
        "stderr": "the server of this host has moved\nHINT: …",
        "msg": "non-zero",
    },
)


def test_all_hosts_are_in_one_table_worst_first():
    found = doctor.lines(HOSTS)
    assert [(one.host, one.finding.check, one.finding.level.name) for one in found] == [
        ("server", "API", "BAD"),
        ("away", "host", "UNKNOWN"),
        ("moved", "prefect-doctor", "UNKNOWN"),
        ("gpu", "workers on this host", "WARNING"),
        ("server", "disk /", "OK"),
    ]
    assert found[1].finding.measured == "Failed to connect to the host via ssh: No route to host"
    assert found[2].finding.measured == "the server of this host has moved HINT: …"
    head, first, *_ = doctor.table(found, colours=False)
    assert head.split() == ["host", "check", "measured", "allowed", "what", "to", "do"]
    assert first.split() == ["bad", "server", "API", "x", "y", "z"]
    assert doctor.table(found, colours=True)[1].startswith("\033[1;31mbad    \033[0m  server")


@pytest.mark.parametrize("text", ["", "ERROR! no inventory", '{"plays": ', "{}"])
def test_what_is_no_result_is_none(text):
    with pytest.raises((ValueError, KeyError)):
        doctor.lines(text)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"rc": 1, "stdout": '{"findings": [{"check": "of another release"}]}'}, "of another release"),
        ({"rc": 127, "stderr": "/usr/bin/python3: not found"}, "python3: not found"),
        ({}, "no word"),
    ],
)
def test_a_result_that_cannot_be_read_is_a_finding(result, words):
    (found,) = doctor.findings(result)
    assert (found.level, words in found.measured) == (Level.UNKNOWN, True)


def test_a_host_without_the_tools_needs_only_python(tmp_path):
    """No package of ours that needs another is in it: -S and -I leave Python alone with its standard library."""
    program = tmp_path / "doctor.pyz"
    doctor.make_program(program)
    test = f"import sys; sys.path.insert(0, {str(program)!r}); from prefect_doctor import worker_host; print(worker_host.PATTERN)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", test], capture_output=True, text=True)
    assert done.stdout == "prefect-worker@*.service\n", done.stderr


@pytest.mark.parametrize(
    ("enabled", "active", "level", "words"),
    [
        (["a"], {"a": "active"}, Level.OK, "1 run"),
        (["a", "b"], {"a": "active", "b": "failed"}, Level.BAD, "b does not run"),
        (["a", "b"], {}, Level.BAD, "a, b do not run"),
        # Being restarted.
        (["a"], {"a": "activating"}, Level.OK, "1 run"),
        ([], {}, Level.WARNING, "none starts at boot"),
    ],
)
def test_workers_of_a_host_that_has_nothing_else(enabled, active, level, words):
    found = worker_host.workers(enabled, active)
    assert (found.level, found.measured) == (level, words)
    assert bool(found.mend) is (level is not Level.OK)


def test_what_systemd_says_of_workers():
    assert worker_host.states('[{"unit": "a", "active": "failed", "sub": "failed"}]') == {"a": "failed"}
    assert worker_host.states("") == worker_host.states("no JSON") == worker_host.states('[{"x": 1}]') == {}


@pytest.mark.parametrize(
    ("asked", "answered", "ahead"),
    [(0.0, 1.0, 0.0), (0.6, 0.9, 0.1), (-0.2, 0.1, -0.4), (90.0, 90.2, 89.5), (-90.0, -89.8, -90.3), (-5.0, 5.0, 0.0)],
)
def test_a_clock_beside_the_server_s(asked, answered, ahead):
    noon = 1_800_000_000
    assert clocks.ahead("Fri, 15 Jan 2027 08:00:00 GMT", noon + asked, noon + answered) == pytest.approx(ahead)


def test_a_clock_that_is_off_is_told():
    said = [(one.level, one.measured) for one in (clocks.finding("p", seconds) for seconds in (-9.9, 12, -3600))]
    assert said == [
        (Level.OK, "the same as that of p"),
        (Level.WARNING, "12 s ahead of that of p"),
        (Level.BAD, "3,600 s behind that of p"),
    ]
    assert clocks.ahead(None, 0, 0) is None and clocks.ahead("yesterday", 0, 0) is None


def test_the_server_of_a_host_s_workers():
    assert clocks.configured([]) is None
    assert clocks.configured(["WORKER_POOL=a\n# PREFECT_API_URL=https://not"]) is None
    text = "WORKER_POOL=a\n\nPREFECT_API_URL=https://p/api\nPREFECT_API_SSL_CERT_FILE=/ca.crt\nX=a=b\n"
    assert clocks.configured(["", text]) == ("https://p/api", "/ca.crt")


def test_a_program_that_hangs_is_not_taken_for_one_that_has_nothing_to_say(monkeypatch):
    monkeypatch.setattr(asked, "PATIENCE", 0.05)
    with pytest.raises(TimeoutError, match=r"^sleep gave no answer within 0\.05 s$"):
        asked.said("sleep", "5")
    assert asked.said("no-such-program") == ""
    (found,) = worker_host.tried("machine", lambda: asked.said("sleep", "5") and [])
    assert (found.level, found.check, found.measured) == (
        Level.UNKNOWN,
        "machine",
        "sleep gave no answer within 0.05 s",
    )
