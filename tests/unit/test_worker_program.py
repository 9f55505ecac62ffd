"""The decisions of the kit's worker: which run follows a crashed one, which comes too late, which one has to go."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prefect_kit_worker import again, control, late, memory
from prefect_kit_worker.held import HeldRun, HeldRuns
from prefect_kit_worker.notify import Systemd

ROOT = Path(__file__).resolve().parents[2]
RUN = "0198a1b2-0000-7000-8000-000000000001"


@pytest.mark.parametrize(
    ("tags", "attempts"),
    [
        ([], 0),
        (["rerun"], 0),
        (["rerun:2"], 2),
        (["example", "rerun:1", "rerun:3"], 3),
        (["rerun:0"], 0),
        (["rerun:-1"], 0),
    ],
)
def test_how_often_a_tag_asks_for_a_new_run(tags, attempts):
    assert again.wanted(tags) == attempts


def test_a_crashed_run_is_followed_as_often_as_asked_and_no_more():
    first = again.next_attempt(RUN, "swift-fox", ["rerun:2"], None)
    assert (first.name, first.idempotency_key, first.attempt) == ("swift-fox-rerun-1", f"rerun/{RUN}/1", 1)
    second = again.next_attempt("another", first.name, ["rerun:2"], first.idempotency_key)
    # The chain counts from the first run, whatever the second one's id is.
    assert (second.name, second.idempotency_key, second.attempt) == ("swift-fox-rerun-2", f"rerun/{RUN}/2", 2)
    assert again.next_attempt("a third", second.name, ["rerun:2"], second.idempotency_key) is None
    assert again.next_attempt(RUN, "swift-fox", [], None) is None


def test_a_run_with_somebody_elses_idempotency_key_is_a_first_one():
    assert again.next_attempt(RUN, "x", ["rerun:1"], "order-4711").idempotency_key == f"rerun/{RUN}/1"


NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("auto", "minutes", "tags", "skipped"),
    [
        (True, 61, ["skip-if-late:3600"], True),
        (True, 59, ["skip-if-late:3600"], False),
        (True, 61, [], False),
        (True, 10, ["skip-if-late:3600", "skip-if-late:60"], True),
        # Somebody asked for it: it is run, however late.
        (False, 61, ["skip-if-late:3600"], False),
        (True, 61, ["skip-if-late:soon"], False),
    ],
)
def test_which_scheduled_runs_are_skipped(auto, minutes, tags, skipped):
    lateness = late.too_late(auto, NOW - timedelta(minutes=minutes), tags, NOW)
    assert (lateness is not None) == skipped


def test_the_pinned_prefect_waits_as_the_proxy_tells_its_flow_runs_to(monkeypatch):
    from prefect.client.attribution import get_attribution_headers
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    told = (ROOT / "caddy/Caddyfile").read_text()
    assert "@flow_run header X-Prefect-Flow-Id *" in told
    assert "header @flow_run Prefect-Maintenance true" in told
    assert "X-Prefect-Flow-Id" not in get_attribution_headers()
    monkeypatch.setenv("PREFECT__FLOW_ID", RUN)
    assert get_attribution_headers()["X-Prefect-Flow-Id"] == RUN
    for client in PrefectHttpxAsyncClient, PrefectHttpxSyncClient:
        assert 'headers.get("Prefect-Maintenance") != "true"' in inspect.getsource(client)


@pytest.mark.parametrize(
    ("text", "size"),
    [("", None), ("infinity", None), ("60%", 600), ("1500M", 1500 * 1024**2), ("2G", 2 * 1024**3), ("4096", 4096)],
)
def test_limits_of_memory_are_read_as_systemd_writes_them(text, size):
    assert memory.limit_in_bytes(text, lambda: 1000) == size


@pytest.mark.parametrize("text", ["lots", "-1", "1.5G", "2 G", "60 %"])
def test_other_limits_are_refused(text):
    with pytest.raises(ValueError, match="is no limit of memory"):
        memory.limit_in_bytes(text, lambda: 1000)


def test_the_largest_run_goes_and_only_when_it_must():
    sizes = {"a": 300, "b": 500}
    assert memory.victim(sizes, own=50, limit=1000) is None
    assert memory.victim(sizes, own=150, limit=1000) == "b"
    assert memory.victim({}, own=2000, limit=1000) is None


def test_a_family_and_what_it_holds(tmp_path):
    for pid, parent, name in ((10, 1, "python"), (11, 10, "a) (b"), (12, 11, "c"), (20, 1, "other")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} ({name}) S {parent} 0 0")
        (tmp_path / str(pid) / "smaps_rollup").write_text("Rss: 9999 kB\nPss:        100 kB\nSwapPss:   1 kB\n")
    assert memory.family(10, tmp_path) == [10, 11, 12]
    assert memory.used([10, 11, 12, 99], tmp_path) == 3 * 101 * 1024


def test_what_is_held_outlives_the_worker(tmp_path):
    held = HeldRuns(tmp_path / "held.json")
    assert held.left == []
    held.add(HeldRun(RUN, "swift-fox", "2026-11-21T12:00:00+00:00"))
    held.started(RUN, "4711")
    held.add(HeldRun("other", "slow-cat", "2026-11-21T12:00:01+00:00"))
    held.remove("other")
    held.remove("other")
    assert RUN in held
    assert len(held) == 1
    first = HeldRun(RUN, "swift-fox", "2026-11-21T12:00:00+00:00", "4711")
    after = HeldRuns(tmp_path / "held.json")
    assert (after.left, len(after)) == ([first], 0)
    # What is not reported yet is not forgotten over what comes new.
    second = HeldRun("new", "brave-ant", "2026-11-21T12:01:00+00:00")
    after.add(second)
    assert HeldRuns.read(tmp_path / "held.json") == [first, second]
    after.reported(first)
    assert HeldRuns.read(tmp_path / "held.json") == [second]


def test_a_full_disk_does_not_end_the_worker(tmp_path, capsys):
    held = HeldRuns(tmp_path / "no-such-directory" / "held.json")
    held.add(HeldRun(RUN, "swift-fox", "2026-11-21T12:00:00+00:00"))
    assert RUN in held
    assert "held.json cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{", json.dumps([{"no": "run"}]), json.dumps({"a": 1})])
def test_a_file_that_is_not_whole_names_no_runs(tmp_path, content):
    (tmp_path / "held.json").write_text(content)
    assert HeldRuns(tmp_path / "held.json").left == []


def test_what_a_flow_run_has_put_there_is_no_file_of_ours(tmp_path):
    """Root reads it: a pipe must not hang it, a link not lead it elsewhere."""
    place = tmp_path / "held.json"
    os.mkfifo(place)
    assert HeldRuns.read(place) == []
    place.unlink()
    other = tmp_path / "other.json"
    other.write_text(json.dumps([{"id": RUN, "name": "x", "since": "now"}]))
    place.symlink_to(other)
    assert HeldRuns.read(place) == []
    place.unlink()
    place.mkdir()
    assert HeldRuns.read(place) == []
    place.rmdir()
    place.write_text(json.dumps([{"id": ["not", "text"], "name": "x", "since": "now"}]))
    assert HeldRuns.read(place) == []
    place.write_text("[" * 100_000)
    assert HeldRuns.read(place) == []
    # And what the worker writes goes into a file of its own, not through a link.
    (tmp_path / "held.new").symlink_to(other)
    HeldRuns(place).add(HeldRun(RUN, "swift-fox", "now"))
    assert json.loads(other.read_text())[0]["name"] == "x"
    assert HeldRuns.read(place)[0].name == "swift-fox"


@pytest.mark.parametrize("kind", ["pipe", "link", "directory", "nothing"])
def test_drain_and_resume_whatever_a_flow_run_has_put_there(tmp_path, monkeypatch, capsys, kind):
    """As root they open nothing that is there, follow no link, and print no control characters of a run's name."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/general-1.env").write_text("")
    state = tmp_path / "state/general-1"
    state.mkdir(parents=True)
    mark, other = state / "drain", tmp_path / "other"
    other.mkdir()
    (other / "precious").write_text("")
    if kind == "pipe":
        os.mkfifo(mark)
    elif kind == "link":
        mark.symlink_to(other / "new")
    elif kind == "directory":
        mark.mkdir()
        (mark / "link").symlink_to(other)
    monkeypatch.setattr(control, "workers", lambda: {"general-1": state})
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert control.drain(["general-1", "--seconds", "5"]) == 0
    assert os.path.lexists(mark)
    (state / "held.json").write_text(json.dumps([{"id": RUN, "name": "a\u001b[2Jb", "since": "now"}]))
    assert control.drain(["general-1", "--seconds", "0"]) == 1
    assert "a?[2Jb (since now)" in capsys.readouterr().err
    assert control.resume(["general-1"]) == 0
    assert not os.path.lexists(mark)
    assert [path.name for path in other.iterdir()] == ["precious"]


def test_the_worker_s_own_configuration_lies_where_flow_runs_cannot_write():
    """Prefect reads prefect.toml, pyproject.toml and .env of the working directory, profiles and logging of its home."""
    unit = (ROOT / "systemd/prefect-worker@.service").read_text()
    assert "\nWorkingDirectory=/opt/prefect/worker\n" in unit
    assert "\nEnvironment=PREFECT_HOME=/opt/prefect/worker\n" in unit
    assert "\nWorkingDirectory=/opt/prefect/docker\n" in (ROOT / "systemd/prefect-docker-worker@.service").read_text()


def test_flow_runs_do_not_inherit_the_way_to_systemd(monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/nowhere")
    monkeypatch.setenv("WATCHDOG_USEC", "180000000")
    systemd = Systemd()
    assert systemd.watchdog_seconds == 180
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(os.environ)
    # Nobody listens there: no error.
    systemd.tell(READY=1)


def test_the_program_needs_no_prefect_for_its_decisions():
    """These modules are used without Prefect, here and by prefect-worker-drain."""
    for module in (again, late, memory):
        assert "prefect." not in inspect.getsource(module).replace("prefect_", "")


def test_flow_runs_are_started_with_settings_that_prefect_knows(monkeypatch):
    from prefect.settings import Settings
    from prefect_kit_worker.worker import RETRIES

    for name, value in RETRIES.items():
        monkeypatch.setenv(name, value)
    client = Settings().client
    assert (client.max_retries, client.retry_extra_codes) == (7, {500})


@pytest.mark.parametrize(
    ("state", "retry_type", "has_a_process"),
    [
        ("PENDING", None, True),
        ("RUNNING", None, True),
        ("CANCELLING", None, True),
        # It waits in its process for its next try; no worker would fetch it.
        ("SCHEDULED", "in_process", True),
        ("SCHEDULED", "reschedule", False),
        ("SCHEDULED", None, False),
        ("PAUSED", None, False),
        ("CRASHED", "in_process", False),
    ],
)
def test_which_runs_have_a_process(state, retry_type, has_a_process):
    from prefect.client.schemas.objects import FlowRun, FlowRunPolicy, State
    from prefect_kit_worker.api import is_under_way

    run = FlowRun(flow_id=RUN, state=State(type=state), empirical_policy=FlowRunPolicy(retry_type=retry_type))
    assert is_under_way(run) == has_a_process


def test_which_errors_say_that_the_api_failed():
    import httpx
    from prefect_kit_worker.api import is_away

    def answer(code: int) -> httpx.HTTPStatusError:
        return httpx.HTTPStatusError("", request=httpx.Request("GET", "http://x"), response=httpx.Response(code))

    assert [is_away(answer(code)) for code in (500, 503, 404, 422, 401)] == [True, True, False, False, False]
    assert is_away(httpx.ConnectError("refused")) and is_away(TimeoutError()) and is_away(httpx.ReadTimeout(""))
    # An interpreter that is not there, a template that makes no sense: the run's own fault.
    assert not (is_away(FileNotFoundError()) or is_away(ValueError()) or is_away(None))


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("/r/a/.venv/bin/python -m prefect.engine", "/r/a/.venv/bin/python ENGINE"),
        ("uv run -m prefect.engine", "uv run ENGINE"),
        # Somebody else's idea of how to start a flow run.
        ("python -m prefect.engine --more", "python -m prefect.engine --more"),
        ("python -m my.engine", "python -m my.engine"),
        (" -m prefect.engine", " -m prefect.engine"),
        (None, None),
    ],
)
def test_what_a_flow_run_is_started_with(command, ours):
    from prefect_kit_worker.process import ENGINE, patient

    assert patient(command) == (ours and ours.replace("ENGINE", str(ENGINE)))
    assert ENGINE.is_file()


def test_a_flow_run_asks_again_from_its_first_request_on(tmp_path):
    """In a process of its own: what prefect_engine.py does to Prefect's clients lasts for ever."""
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    for client in PrefectHttpxAsyncClient, PrefectHttpxSyncClient:
        assert "self._has_connected: bool = False" in inspect.getsource(client)
    program = (
        "import prefect_engine; prefect_engine.be_patient()\n"
        "import sys; assert 'prefect.engine' not in sys.modules\n"
        "from prefect.client.base import PrefectHttpxSyncClient\n"
        "client = PrefectHttpxSyncClient()\n"
        "print(client._has_connected)"
    )
    environment = {"PYTHONPATH": str(ROOT / "systemd/worker"), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True\n", "")
