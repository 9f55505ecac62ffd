"""Flow run state changes as Datadog events: what an event says, how far the changes were read, and what the API answers.

The API is a stand-in that takes what Datadog's documentation allows (tests/lab/datadog_api.py).
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prefect_backups.errors import Failure
from prefect_watch import cli, datadog, datadog_queue
from prefect_watch import round as one_round
from prefect_watch import settings as contract
from prefect_watch.datadog import Answer, Change, Sender
from prefect_watch.datadog_queue import MOST, OLDEST, OVERLAP, Position
from prefect_watch.settings import Datadog, Watch

from tests.lab.datadog_api import KEY, DatadogApi, problem

NOW = 1_800_000_000.0
URL = "https://prefect.example.org"
TAKEN = Answer(202)


def change(number: int = 1, state: str = "Failed", moment: float = NOW - 30, **more) -> Change:
    made = Change(
        f"s{number}",
        moment,
        moment,
        state,
        "boom",
        f"id-{number}",
        f"run-{number}",
        "load",
        "nightly",
        "general",
        ["eu"],
    )
    return replace(made, **more)


# --- the event -------------------------------------------------------------------------------------------------------


def test_an_event():
    assert datadog.event_of(change(), URL + "/", "vps") == {
        "title": "Flow run run-1 (deployment load/nightly) is Failed",
        "text": "Flow run run-1 (deployment load/nightly) is Failed\nhttps://prefect.example.org/runs/flow-run/id-1\n"
        "Work pool: general\n\nboom",
        "date_happened": int(NOW - 30),
        "alert_type": "error",
        "tags": ["service:prefect", "state:failed", "flow:load", "deployment:load/nightly", "work_pool:general", "eu"],
        "host": "vps",
        "aggregation_key": "id-1",
        "source_type_name": "prefect",
    }


def test_an_event_of_a_flow_run_without_deployment_or_message():
    event = datadog.event_of(change(deployment="", work_pool="", message="", tags=[]), URL, "vps")
    assert event["title"] == "Flow run run-1 (flow load) is Failed"
    assert event["text"] == f"{event['title']}\n{URL}/runs/flow-run/id-1"
    assert event["tags"] == ["service:prefect", "state:failed", "flow:load"]


@pytest.mark.parametrize(
    ("state", "alert_type"),
    [
        ("Completed", "success"),
        ("Failed", "error"),
        ("TimedOut", "error"),
        ("Crashed", "error"),
        ("Cancelled", "warning"),
        ("Late", "warning"),
        ("Paused", "info"),
        ("Suspended", "info"),
    ],
)
def test_how_bad_a_state_is(state, alert_type):
    assert datadog.event_of(change(state=state), URL, "vps")["alert_type"] == alert_type


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("production", "production"),
        ("env:Prod", "env:prod"),
        ("team:data:eu", "team:data:eu"),
        ("two words, and more!", "two_words_and_more"),
        ("größe:groß", "größe:groß"),
        ("2024", "flow_run_tag:2024"),
        ("_private", "flow_run_tag:_private"),
        # What Datadog, or the kit, has a meaning for.
        ("host:other", "flow_run_tag:host:other"),
        ("State:fine", "flow_run_tag:state:fine"),
        ("ends:", "ends"),
        ("x" * 300, "x" * 200),
    ],
)
def test_a_flow_runs_own_tags(given, expected):
    assert datadog.own_tag(given) == expected


def test_any_event_is_one_that_datadog_takes():
    now = float(int(time.time()))
    for made in (
        change(moment=now),
        change(moment=now, message="x" * 9000, run="ü" * 300, tags=[f"tag {number}" for number in range(99)]),
        change(
            moment=now, tags=["", ":", "::a", "a:", "1", "x" * 999, "host:a", "\n", "a\tb"], flow="", work_pool="Büro 1"
        ),
    ):
        event = datadog.event_of(made, URL, "vps")
        assert problem(event, now) == "", event
        assert len(event["tags"]) <= 5 + datadog.OWN_TAGS
    # The link stays whatever the message is.
    assert f"{URL}/runs/flow-run/id-1\n" in datadog.event_of(change(message="x" * 9000), URL, "vps")["text"]


# --- how far the changes were read -----------------------------------------------------------------------------------


class Database:
    """State changes by the moment at which they are seen; sends what waits each minute."""

    def __init__(self, *changes: Change) -> None:
        self.changes = list(changes)
        self.position = Position(begun=NOW - 86400, until=NOW - 60)
        self.posted: list[str] = []
        self.kept: list[Position] = []
        self.said: list[str] = []
        #: What Datadog answers from now on, and to some.
        self.answer, self.answers = TAKEN, {}

    def look(self, now: float = NOW, seconds: float = 0.0) -> None:
        """Args: seconds: that each answer takes."""
        clock = [0.0]

        def post(event, limit):
            assert 0 < limit <= datadog.ANSWER_SECONDS
            clock[0] += seconds
            self.posted.append(event["aggregation_key"])
            return self.answers.get(event["aggregation_key"], self.answer)

        begin = datadog_queue.since(self.position, now)
        waiting = [one for one in self.changes if one.updated >= begin and one.id not in self.position.sent]
        waiting = sorted(waiting, key=lambda one: (one.updated, one.id))[: MOST + 1]
        self.position, self.said = datadog_queue.send(
            self.position,
            waiting,
            lambda one: datadog.event_of(one, URL, "vps"),
            post,
            self.kept.append,
            now,
            lambda: clock[0],
        )


def test_each_change_is_sent_once_and_in_order():
    database = Database(change(2, moment=NOW - 10), change(1, moment=NOW - 20))
    database.look()
    assert database.posted == ["id-1", "id-2"]
    # It was made before, and is seen only now: its transaction has ended late.
    database.changes.append(change(3, moment=NOW - 15))
    for minute in range(1, 20):
        database.look(NOW + 60 * minute)
    assert database.posted == ["id-1", "id-2", "id-3"]
    assert database.position.sent == {} and database.position.taken == 3
    assert database.position.until == NOW + 60 * 19 - OVERLAP


def test_what_is_known_is_written_down_after_each_event():
    """So a death in between sends one again at most."""
    database = Database(*(change(number, moment=NOW - 20 + number) for number in range(5)))
    database.look()
    assert [len(one.sent) for one in database.kept] == [1, 2, 3, 4, 5]
    # Killed after the third: the next look goes on with the fourth.
    database.position, database.posted = database.kept[2], []
    database.look()
    assert database.posted == ["id-3", "id-4"]


@pytest.mark.parametrize(
    "answer", [Answer(0, error="no answer"), Answer(503, error="503"), Answer(403, error="the key")]
)
def test_nothing_is_lost_while_datadog_is_away(answer):
    database = Database(*(change(number, moment=NOW - 20 + number) for number in range(3)))
    database.answers["id-1"] = answer
    database.look()
    # The order is kept: what comes after the one that failed waits, too.
    assert database.posted == ["id-0", "id-1"]
    assert database.said == [answer.error]
    assert (database.position.error, database.position.waiting_since) == (answer.error, NOW - 19)
    for minute in range(1, 60):
        database.look(NOW + 60 * minute)
        # Said once.
        assert database.said == []
    assert database.position.error_since == NOW and set(database.posted[1:]) == {"id-1"}
    database.answers = {}
    database.look(NOW + 3600)
    assert database.posted[-2:] == ["id-1", "id-2"] and database.posted.count("id-0") == 1
    assert database.said == ["Datadog takes events again"]
    assert (database.position.error, database.position.waiting_since) == ("", 0.0)


def test_so_many_are_sent_each_minute_and_none_is_forgotten():
    """All of one moment, as one transaction makes them."""
    database = Database(*(change(number, moment=NOW - 7200) for number in range(250)))
    database.position = replace(database.position, until=NOW - 7300)
    for minute, left in enumerate((150, 50, 0)):
        database.look(NOW + 60 * minute)
        assert len(database.posted) == 250 - left
        assert database.position.waiting_since == (NOW - 7200 if left else 0)
    database.look(NOW + 600)
    assert len(database.posted) == len(set(database.posted)) == 250


def test_a_slow_datadog_holds_nothing_up():
    database = Database(*(change(number, moment=NOW - 200 + number) for number in range(50)))
    database.look(seconds=4)
    assert database.posted == [f"id-{number}" for number in range(5)]
    assert database.position.error == "" and database.position.waiting_since == NOW - 195
    database.look(NOW + 60)
    assert len(database.posted) == len(set(database.posted)) == 50


def test_one_that_datadog_refuses_holds_nothing_up():
    database = Database(change(1), change(2))
    database.answers["id-1"] = Answer(400, error="Datadog answers 400")
    database.look()
    assert database.posted == ["id-1", "id-2"]
    assert database.said == ["Datadog answers 400 to the event of flow run id-1, which is left out"]
    assert (database.position.refused, database.position.taken, database.position.error) == (1, 1, "")


def test_too_many_requests_are_waited_for():
    database = Database(change(1))
    database.answer = Answer(429, 90.0, "too many")
    database.look()
    assert database.position.not_before == NOW + 90
    database.answer = TAKEN
    database.look(NOW + 120)
    assert database.posted == ["id-1", "id-1"] and database.position.error == ""


def test_what_is_too_old_is_counted_and_not_sent():
    old = change(1, moment=NOW - OLDEST - 5)
    # Written down late: a worker was away.
    database = Database(replace(old, updated=NOW - 10), change(2))
    database.look()
    assert (database.posted, database.position.too_old) == (["id-2"], 1)
    database.look(NOW + 60)
    assert database.position.too_old == 1


@pytest.mark.parametrize(
    ("position", "now", "expected"),
    [
        (Position(begun=NOW, until=NOW), NOW + 60, NOW),
        (Position(begun=NOW, until=NOW + 600), NOW + 900, NOW + 600),
        (Position(begun=NOW, until=NOW + 600), NOW + 700, NOW + 400),
        # A clock that was set back.
        (Position(begun=NOW, until=NOW + 600), NOW - 100, NOW - 400),
        (Position(begun=NOW - 9e5, until=NOW - 8e5), NOW, NOW - 8e5),
    ],
)
def test_from_when_on_is_looked_at(position, now, expected):
    assert datadog_queue.since(position, now) == expected


# --- what is remembered ----------------------------------------------------------------------------------------------


class Postgres:
    """Answers the queries with these changes; the query that counts is the first of two."""

    def __init__(self, *changes: Change) -> None:
        self.changes, self.asked = list(changes), []

    def connect(self, patience):
        assert patience
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def execute(self, query, given=None):
        self.asked.append((query, given))
        return self

    def found(self):
        given = self.asked[-1][1]
        begin, end = given["since"].timestamp(), given["before"].timestamp() if "before" in given else float("inf")
        return [one for one in self.changes if begin <= one.updated < end and one.id not in given["sent"]]

    def fetchone(self):
        return (len(self.found()),)

    def fetchall(self):
        return [tuple(vars(one).values()) for one in self.found()][: self.asked[-1][1]["most"]]


@pytest.fixture
def api() -> Iterator[DatadogApi]:
    with DatadogApi() as listening:
        yield listening


@pytest.fixture
def kept(tmp_path):
    return [tmp_path / "run" / "datadog.json", tmp_path / "disk" / "datadog.json"]


def wanted(api: DatadogApi, **more) -> Datadog:
    return Datadog(api_key=KEY, url=api.url, **more)


def test_it_begins_with_what_comes_then_and_outlives_a_reboot(api, kept):
    now = float(int(time.time()))
    postgres = Postgres(change(1, moment=now))
    assert datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now) == []
    assert postgres.asked == [] and api.asked == []
    assert datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 60) == []
    assert [one["aggregation_key"] for one in api.events] == ["id-1"]
    assert all(path.stat().st_mode & 0o777 == 0o600 and KEY not in path.read_text() for path in kept)
    # What is in /run is gone, and what is on the disk goes on; a full disk is survived by the other place.
    kept[0].unlink()
    datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 120)
    kept[1].write_text("{")
    datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 180)
    assert len(api.events) == 1
    # Turned off, and on again: not what was in between.
    off = Datadog(url=api.url)
    assert datadog_queue.run(off, postgres, kept, URL, "vps", now + 240) == []
    assert not any(path.exists() for path in kept) and datadog_queue.status(off, datadog_queue.load(kept), now) == ""
    datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 300)
    assert datadog_queue.load(kept).until == now + 300


def test_nothing_is_sent_that_could_not_be_remembered(api, tmp_path):
    (tmp_path / "file").touch()
    now = float(int(time.time()))
    kept = [tmp_path / "file" / "datadog.json"]
    (said,) = datadog_queue.run(wanted(api), Postgres(change()), kept, URL, "vps", now)
    assert said.startswith("no events are sent to Datadog, since what was sent cannot be written down: ")
    assert api.asked == []


def test_what_is_too_old_for_datadog_is_said_and_counted_once(api, kept):
    now = float(int(time.time()))
    datadog_queue.save(Position(now - 9e5, begun=now - 9e5, until=now - 8e5), kept)
    postgres = Postgres(*(change(number, moment=now - 7e5 + number) for number in range(700)), change(1000, moment=now))
    # Nor is it counted again while none can be sent.
    api.answer = (503, {})
    assert datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now) == [
        f"Datadog ({api.url}) answers 503",
        "700 flow run state changes were not sent to Datadog: it takes none of more than 18 hours ago",
    ]
    assert len(postgres.asked) == 2 and postgres.asked[0][0].startswith("SELECT count(*) FROM flow_run_state ")
    assert datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 60) == []
    api.answer = None
    assert datadog_queue.run(wanted(api), postgres, kept, URL, "vps", now + 120) == ["Datadog takes events again"]
    known = datadog_queue.load(kept)
    assert (known.too_old, known.taken, len(api.events)) == (700, 1, 1)


def test_it_waits_as_long_as_datadog_says(api, kept):
    now = float(int(time.time()))
    datadog_queue.save(Position(now - 60, begun=now - 60, until=now - 60), kept)
    api.answer = (429, {"X-RateLimit-Reset": "90"})
    (said,) = datadog_queue.run(wanted(api), Postgres(change(moment=now)), kept, URL, "vps", now)
    assert said == f"Datadog ({api.url}) answers 429 (too many requests)"
    api.answer = None
    datadog_queue.run(wanted(api), Postgres(change(moment=now)), kept, URL, "vps", now + 60)
    assert len(api.asked) == 1
    datadog_queue.run(wanted(api), Postgres(change(moment=now)), kept, URL, "vps", now + 120)
    assert len(api.events) == 1


def test_an_error_that_nobody_has_thought_of_breaks_nothing_and_shows_no_key(monkeypatch, tmp_path):
    def run(*_):
        raise ValueError(f"a bad header: {KEY}")

    monkeypatch.setattr(datadog_queue, "run", run)
    monkeypatch.setattr(one_round.lock, "held", lambda _: None)
    settings = Namespace(state=str(tmp_path), endpoint=Namespace(url=URL))
    assert one_round._tell_datadog(Watch(datadog=Datadog(KEY)), settings, Namespace(postgres=None), NOW) == [
        "no events are sent to Datadog: ValueError: a bad header: ***"
    ]
    # In the middle of a restore nothing is looked at.
    monkeypatch.setattr(one_round.lock, "held", lambda _: ("a restore", NOW - 60))
    assert one_round._tell_datadog(Watch(datadog=Datadog(KEY)), settings, Namespace(postgres=None), NOW) == []


# --- what the API answers --------------------------------------------------------------------------------------------

EVENT = {"title": "t", "text": "x"}


@pytest.mark.parametrize(
    ("answer", "status", "wait", "words"),
    [
        (None, 202, 60, ""),
        ((200, {}), 200, 60, ""),
        (
            (403, {}),
            403,
            60,
            " refuses the API key (403): look at watch_datadog_api_key, which is of one site (watch_datadog_site)",
        ),
        ((429, {"Retry-After": "7"}), 429, 7, " answers 429 (too many requests)"),
        ((429, {"X-RateLimit-Reset": "12"}), 429, 12, " answers 429 (too many requests)"),
        ((429, {"Retry-After": "soon"}), 429, 60, " answers 429 (too many requests)"),
        ((429, {"Retry-After": "999999"}), 429, 3600, " answers 429 (too many requests)"),
        ((413, {}), 413, 60, " answers 413"),
        ((500, {}), 500, 60, " answers 500"),
        # The key does not follow.
        ((302, {"Location": "/api/v1/validate"}), 302, 60, " answers 302"),
    ],
)
def test_what_the_api_answers(api, answer, status, wait, words):
    api.answer = answer
    said = Sender(wanted(api)).send(EVENT, 5)
    assert said == Answer(status, wait, f"Datadog ({api.url}){words}" if words else "")
    assert said.taken is (status in (200, 202)) and len(api.asked) == 1


def test_an_event_that_is_wrong_is_refused(api):
    sender = Sender(wanted(api))
    for wrong in ({"title": "t"}, {**EVENT, "date_happened": 1}, {**EVENT, "new": "x"}, {**EVENT, "text": "x" * 4001}):
        assert sender.send(wrong, 5).status == 400
    assert sender.send({**EVENT, "text": "x" * 200_000}, 5).status == 413
    assert api.events == []


def test_a_wrong_key_and_a_key_that_is_none_are_in_no_message(api):
    assert Sender(Datadog("another-key-of-someone", url=api.url)).validate().status == 403
    said = Sender(Datadog("unsaid\n", url=api.url)).validate()
    assert said.status == 0 and "unsaid" not in said.error and "InvalidHeader" in said.error


def test_no_answer_is_said_in_words(api, monkeypatch):
    assert Sender(Datadog(KEY, url="http://127.0.0.1:9")).send(EVENT, 5).error == (
        "Datadog (http://127.0.0.1:9) does not answer: ConnectionError: Connection refused"
    )
    api.slow = 0.5
    assert "does not answer: ReadTimeout" in Sender(wanted(api)).send(EVENT, 0.05).error
    # A name server that holds it up, of which requests knows no limit.
    sender = Sender(Datadog(KEY))
    monkeypatch.setattr(sender, "_request", lambda *_: time.sleep(3))
    assert sender.send(EVENT, -0.95).error.startswith("Datadog (datadoghq.com) does not answer within ")


@pytest.mark.parametrize(
    ("site", "api"),
    [("datadoghq.com", "https://api.datadoghq.com"), ("us5.datadoghq.com", "https://api.us5.datadoghq.com")],
)
def test_each_site_has_its_api(site, api):
    assert Sender(Datadog(KEY, site))._api == api


# --- what a person reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "line"),
    [
        (Position(), "Datadog: 0 events sent"),
        (Position(taken=12, last=NOW - 40), "Datadog: 12 events sent, the last one 40 s ago"),
        (
            Position(
                taken=1,
                last=NOW - 600,
                refused=2,
                too_old=3,
                waiting_since=NOW - 300,
                error="it is away",
                error_since=NOW - 240,
            ),
            "Datadog: 1 events sent, the last one 10 minutes ago; 2 refused; 3 were too old to be taken; what has changed in the last "
            "5 minutes waits; for 4 minutes: it is away",
        ),
    ],
)
def test_the_status(position, line):
    assert datadog_queue.status(Datadog(KEY), position, NOW) == line


def test_it_is_tried_whether_datadog_takes_the_key(api):
    watch = Watch(datadog=wanted(api))
    assert cli._test(watch, "vps") == f"Datadog ({api.url}) takes the API key"
    api.answer = (403, {})
    with pytest.raises(Failure, match=r"refuses the API key \(403\)"):
        cli._test(watch, "vps")
    # Who is told by both ways hears of both.
    with pytest.raises(Failure) as caught:
        cli._test(replace(watch, notify_urls=["nonsense"]), "vps")
    assert "1 of 1 addresses failed: number 1" in caught.value.fact and "refuses the API key" in caught.value.fact
    api.answer = None
    with pytest.raises(Failure, match=r"1 of 1 addresses failed: number 1.*; Datadog .* takes the API key"):
        cli._test(replace(watch, notify_urls=["nonsense"]), "vps")


def test_no_events_are_sent_unless_there_is_a_key(tmp_path, monkeypatch):
    monkeypatch.setattr(contract, "FILE", tmp_path / "settings.json")
    (tmp_path / "settings.json").write_text(json.dumps({}))
    assert contract.load().datadog.api_key == ""
