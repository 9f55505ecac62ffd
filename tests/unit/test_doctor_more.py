"""prefect-doctor's checks of what is around the server: DNS, the journal, events, drift, updates; and what a look may cost."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dns.exception
import dns.resolver
import psycopg
import pytest
import yaml
from prefect_backups.errors import Failure
from prefect_backups.postgres import Postgres
from prefect_backups.settings import Endpoint, Settings
from prefect_doctor import automations, database, domain, drift, events, logs, registry, updates, work
from prefect_doctor.domain import Domain
from prefect_doctor.drift import Drift
from prefect_doctor.events import Seen, Sent
from prefect_doctor.finding import Level
from prefect_doctor.logs import Failed, Logs
from prefect_doctor.updates import Updates
from prefect_doctor.work import Work

from tests.unit.test_doctor import mended

OK, WARNING, BAD, UNKNOWN = Level
NOW = 1_800_000_000.0
ROOT = Path(__file__).resolve().parents[2]


# --- DNS -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://prefect.example.org", "prefect.example.org"),
        ("https://prefect.example.org:8443/", "prefect.example.org"),
        ("https://192.0.2.10", ""),
        ("https://[2001:db8::1]:8443", ""),
    ],
)
def test_only_a_name_is_asked_for(url, name):
    assert domain.name_of(url) == name


@pytest.mark.parametrize(
    ("answers", "forwarded", "level", "words"),
    [
        (["192.0.2.10"], [], OK, "resolves to 192.0.2.10"),
        (["192.0.2.10", "2001:db8::1"], [], OK, "resolves to 192.0.2.10, 2001:db8::1"),
        (["203.0.113.5"], ["203.0.113.5"], OK, "203.0.113.5 is forwarded to this host"),
        (
            ["203.0.113.5"],
            [],
            WARNING,
            "203.0.113.5 is not an address of this host, and does not serve its certificate",
        ),
        (["192.0.2.10", "203.0.113.5"], [], WARNING, "Behind NAT or with a floating IP this can be right"),
        ([], [], BAD, "has no address"),
        (None, [], BAD, "no name server answers"),
    ],
)
def test_where_the_domain_leads(answers, forwarded, level, words):
    found = domain.leads_here(
        Domain("prefect.example.org", ["192.0.2.53"], answers, ["192.0.2.10", "2001:db8::1"], forwarded)
    )
    assert (found.level, words in found.measured) == (level, True)
    assert "name servers asked: 192.0.2.53" in found.measured
    assert mended(found)


class Resolver:
    """A name server that answers, or does not."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def resolve(self, name: str, kind: str, **_: Any) -> list[str]:
        if isinstance(answer := self.answers[kind], type):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("four", "six", "found"),
    [
        (["192.0.2.10"], dns.resolver.NoAnswer, ["192.0.2.10"]),
        (["192.0.2.10"], dns.exception.Timeout, ["192.0.2.10"]),
        (dns.resolver.NXDOMAIN, dns.resolver.NXDOMAIN, []),
        (dns.exception.Timeout, dns.exception.Timeout, None),
        (dns.resolver.NoNameservers, ["2001:db8::1"], None),
    ],
)
def test_no_answer_is_not_no_address(four, six, found):
    assert domain.resolved("x", Resolver(A=four, AAAA=six)) == found  # type: ignore[arg-type]


def test_own_addresses_are_those_that_others_reach():
    links = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
        {
            "ifname": "eth0",
            "addr_info": [{"local": "192.0.2.10", "scope": "global"}, {"local": "fe80::1", "scope": "link"}],
        },
        {"ifname": "docker0", "addr_info": [{"local": "172.17.0.1", "scope": "global"}]},
        {"ifname": "prefect-edge", "addr_info": [{"local": "172.20.0.1", "scope": "global"}]},
    ]
    assert domain.own_addresses(json.dumps(links)) == ["192.0.2.10"]
    assert domain.own_addresses("") == domain.own_addresses("no JSON") == []


# --- the journal ---------------------------------------------------------------------------------------------------


def failed(address: str, at: float) -> dict[str, Any]:
    """A line of Caddy's of a failed login."""
    return {"level": "info", "ts": at, "logger": "http.log.access.failed_login", "request": {"remote_ip": address}}


def tls(level: str, message: str, at: float, **more: str) -> dict[str, Any]:
    """A line of Caddy's about certificates."""
    return {"level": level, "ts": at, "logger": "tls.renew", "msg": message, **more}


def test_failed_logins_of_the_last_hour_at_the_proxy():
    lines = [failed("203.0.113.5", NOW - 9000), *[failed("203.0.113.5", NOW - 60)] * 3, failed("203.0.113.6", NOW)]
    found = logs.of_proxy([*lines, tls("error", "x", NOW)], NOW)
    assert (found.count, found.addresses.most_common(1), found.seconds) == (4, [("203.0.113.5", 3)], 3600)
    assert not found.names
    tried = [{**lines[1], "tried": name} for name in ("worker-general-1", "worker-general-1", "admin", None)]
    (line, *_) = logs.findings(Logs(logs.of_proxy(tried, NOW)))
    assert line.measured.endswith("the most (4) from 203.0.113.5, as worker-general-1 (2), admin (1)")
    assert logs.entries(['{"a": 1}', "panic: runtime error", "7", ""]) == [{"a": 1}]


def test_a_flood_says_of_which_time_it_is():
    found = logs.of_proxy([failed("203.0.113.5", NOW - 30)] * logs.LINES, NOW)
    assert (found.count, found.seconds) == (logs.LINES, 30)
    (line, *_) = logs.findings(Logs(found))
    assert (line.level, line.measured) == (
        WARNING,
        "5,000 in the last 30 s (older ones were not read) from 1 address, the most (5,000) from 203.0.113.5",
    )
    assert line.mend.endswith("nft insert rule inet prefect prerouting ip saddr 203.0.113.5 drop")


STATUS = """\
Status for the jail: prefect
|- Filter
|  |- Currently failed:\t1
|  |- Total failed:\t22
|  `- Journal matches:\t_SYSTEMD_UNIT=docker.service + _UID=0
`- Actions
   |- Currently banned:\t2
   |- Total banned:\t3
   `- Banned IP list:\t203.0.113.5 2001:db8:1:2::
"""


@pytest.mark.parametrize(
    ("blocked", "level", "words", "mend"),
    [
        (logs.of_jail(STATUS), OK, "blocked: 203.0.113.5, 2001:db8:1:2::", ""),
        (logs.of_jail(STATUS[: STATUS.rindex(":\t") + 2]), OK, "nobody is blocked", ""),
        (logs.Blocked(True, [str(number) for number in range(7)]), OK, "blocked: 0, 1, 2, 3, 4 and 2 more", ""),
        # Nothing on stdout: it does not run.
        (
            logs.of_jail(""),
            WARNING,
            "nobody is blocked, because fail2ban does not run",
            "systemctl status fail2ban; systemctl restart fail2ban",
        ),
    ],
)
def test_who_is_blocked(blocked, level, words, mend):
    lines = [{**failed("2001:db8:1:2::abcd", NOW), "network": "2001:db8:1:2::"}]
    (line, *_) = logs.findings(Logs(logs.of_proxy(lines, NOW), blocked=blocked))
    assert (line.level, line.mend) == (level, mend)
    assert line.measured == f"1 in the last hour from 1 address, the most (1) from 2001:db8:1:2::; {words}"


SSHD = """\
1795752548.16 host sshd-session[1]: Accepted publickey for root from 192.0.2.1 port 1 ssh2: ED25519 SHA256:x
1795752548.69 host sshd-session[2]: Invalid user bob from 203.0.113.5 port 2
1795752548.70 host sshd-session[2]: Connection closed by invalid user bob 203.0.113.5 port 2 [preauth]
1795752548.95 host sshd-session[3]: Connection closed by authenticating user root 2001:db8::5 port 3 [preauth]
1795752548.96 host sshd-session[4]: Failed password for root from 203.0.113.5 port 4 ssh2
1795752548.97 host sshd-session[5]: Invalid user x from 192.0.2.9 port 9 from 203.0.113.5 port 5
1795752548.98 host sshd-session[6]: error: maximum authentication attempts exceeded for root from 203.0.113.5 port 6 ssh2 [preauth]
1795752548.99 host sshd-session[7]: Connection closed by 203.0.113.7 port 7
"""


def test_failed_logins_at_sshd_are_counted_once_each_and_cannot_be_anothers():
    found = logs.of_ssh(SSHD.splitlines(), 1795752600.0)
    assert found.addresses == {"203.0.113.5": 4, "2001:db8::5": 1}
    assert found.seconds == 3600


@pytest.mark.parametrize(("count", "level"), [(0, OK), (99, OK), (100, WARNING)])
def test_how_many_failed_logins_are_told(count, level):
    failures = Failed(logs.Counter({"2001:db8::5": count} if count else {}))
    found = logs.failed_logins("failed logins", failures, 100, "keep it out")
    assert found.level is level
    assert mended(found)
    assert not level or "prerouting ip6 saddr 2001:db8::5 drop" in found.mend


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], None),
        ([tls("info", "certificate obtained successfully", NOW)], None),
        (
            [tls("error", "will retry", NOW - 60, error="HTTP 403\nurn:ietf:params:acme:error:caa")],
            "will retry: HTTP 403 urn",
        ),
        ([tls("error", "will retry", NOW - 60), tls("info", "certificate renewed successfully", NOW)], None),
        ([tls("error", "will retry", NOW - 90_000)], None),
        ([{**tls("error", "x", NOW), "logger": "http.log.error"}], None),
        # Caddy was stopped meanwhile.
        ([tls("error", "job failed", NOW, error="x: obtaining certificate: context canceled")], None),
        ([tls("error", "unable to unlock", NOW, error="remove x.lock: no such file or directory")], None),
    ],
)
def test_a_certificate_that_is_not_renewed(lines, words):
    error = logs.renewal_error(lines, NOW)
    found = logs.renewals(Logs(renewal=error))
    assert found.level is (OK if words is None else WARNING)
    assert words is None or words in found.measured
    assert mended(found)


# --- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "level", "words"),
    [
        (Seen(300, 3.71), OK, "stored after 3.7 s"),
        (Seen(300, 40.0), WARNING, "stored after 40.0 s"),
        (Seen(300, 200.0), BAD, "stored after 200.0 s"),
        (Seen(300, None), BAD, "an event sent 5 minutes ago is not in the database"),
        # Not yet, on a slow machine?
        (Seen(7.1, None), WARNING, "an event sent 7 s ago is not in the database"),
        (Seen(0, None, "503: no server"), BAD, "the API takes no event: 503: no server"),
    ],
)
def test_an_event_that_does_not_arrive(seen, level, words):
    (found,) = events.findings(seen)
    assert (found.level, found.measured) == (level, words)
    assert mended(found)


def test_the_event_of_the_look_before_answers_if_it_is_neither_new_nor_old(tmp_path):
    assert [events.answers(Sent("x", NOW - age), NOW) for age in (3, 60, 300, 5000)] == [False, True, True, False]
    assert not events.answers(None, NOW)
    # One of the future, of a clock that was set back, is not waited for: another is sent.
    assert [events.just_sent(Sent("x", NOW - age), NOW) for age in (-86400, 0, 14, 60)] == [False, True, True, False]
    assert not events.just_sent(None, NOW)
    (tmp_path / "sent").write_text('{"id": "x", "at": 1.5}')
    assert events.remembered(tmp_path / "sent") == Sent("x", 1.5)
    for text in ("", "{}", '{"id": "x", "since": 1}', "[1]"):
        (tmp_path / "sent").write_text(text)
        assert events.remembered(tmp_path / "sent") is None
    assert events.remembered(tmp_path / "none") is None


# --- crash detection -------------------------------------------------------------------------------------------------


def automation() -> dict[str, Any]:
    """What the playbook asks of the server, with the seconds that the inventory gives."""
    text = (ROOT / "ansible/roles/workers/tasks/detection.yml").read_text()
    wanted = yaml.safe_load(text.replace("{{ workers_crash_seconds }}", "90"))[0]["prefect_automation"]
    wanted["trigger"]["within"] = 90.0
    return wanted


def test_crash_detection_is_as_the_playbook_makes_it():
    wanted = automation()
    trigger, actions = wanted["trigger"], wanted["actions"]
    assert work.edited(trigger, actions) == []
    # As the server gives it: with more, and names of events in any order.
    shuffled = {**trigger, "id": "x", "match_related": {}, "expect": trigger["expect"][::-1]}
    assert work.edited(shuffled, [{**actions[0], "force": False}]) == []
    assert set(work.TRIGGER) == set(trigger) - {"within"}


@pytest.mark.parametrize(
    ("trigger", "action", "words"),
    [
        ({"within": 30.0}, {}, ["within"]),
        ({"after": []}, {}, ["after"]),
        ({"posture": "Reactive", "threshold": 2}, {}, ["posture", "threshold"]),
        ({}, {"state": "FAILED"}, ["actions"]),
        ({}, {"type": "do-nothing"}, ["actions"]),
    ],
)
def test_crash_detection_that_somebody_has_edited(trigger, action, words):
    wanted = automation()
    edited = work.edited({**wanted["trigger"], **trigger}, [{**wanted["actions"][0], **action}])
    assert edited == words
    found = work.crash_detection(Work(detection=(1, 1), edited=edited))
    assert (found.level, found.measured) == (BAD, f"edited: {', '.join(words)}")
    assert mended(found)


# --- drift -----------------------------------------------------------------------------------------------------------


def test_what_is_as_it_was_deployed():
    found = drift.findings(Drift(80, [], [], []))
    assert [one.level for one in found] == [OK, OK, OK]
    assert all(mended(one) for one in found)
    # A host that only runs workers.
    assert len(drift.findings(Drift(20))) == 2


@pytest.mark.parametrize(
    ("given", "check", "words"),
    [
        (Drift(0), "deployed files", "site.yml has kept no list of them"),
        (Drift(9, ["/etc/a"]), "deployed files", "changed by hand or gone: /etc/a"),
        (
            Drift(9, [f"/{name}" for name in "abcdefg"]),
            "deployed files",
            "changed by hand or gone: /a, /b, /c, /d, /e and 2 more",
        ),
        (Drift(9, [], ["prefect-backup.timer"]), "unit files", "changed, not reloaded: prefect-backup.timer"),
        (Drift(9, [], [], ["caddy"]), "container configuration", "outdated: caddy"),
    ],
)
def test_what_is_no_longer_as_it_was_deployed(given, check, words):
    (found,) = [one for one in drift.findings(given) if one.level]
    assert (found.check, found.level, found.measured) == (check, WARNING, words)
    assert mended(found)


def test_what_systemd_and_compose_say():
    shown = "Id=prefect-a.service\nNeedDaemonReload=no\n\nId=prefect-b.timer\nNeedDaemonReload=yes\n"
    assert drift.unread(shown) == ["prefect-b.timer"]
    assert drift.unread("") == []
    made = drift.hashes("caddy 1\nserver 2\n\n")
    assert made == {"caddy": "1", "server": "2"}
    assert drift.stale(made, {"caddy": "1", "server": "3", "postgres": "4"}) == ["server"]
    # compose could not say.
    assert drift.stale(made, {}) == []


# --- updates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "level"), [(Updates(), OK), (Updates(["openssl"]), WARNING), (Updates([], 5 * 86400.0), WARNING)]
)
def test_security_updates_that_wait(given, level):
    (found,) = updates.findings(given)
    assert found.level is level
    assert mended(found)


def test_what_apt_says():
    said = (
        "Inst openssl [3.5.1-1] (3.5.1-1+deb13u1 Debian-Security:13/stable-security [amd64])\n"
        "Inst bash [5.2-1] (5.2-2 Debian:13.2/stable [amd64])\nConf openssl (…)\n"
    )
    assert updates.security_updates(said) == ["openssl"]


# --- the whole -------------------------------------------------------------------------------------------------------


def test_what_is_dear_is_not_looked_at_each_minute():
    endpoint = Endpoint("https://x", "backups", "/p", "/c")
    good_for = {name: one.good_for for name, one in registry.groups(Settings("0", endpoint), None).items()}  # type: ignore[arg-type]
    assert {name for name, seconds in good_for.items() if not seconds} == {
        "containers",
        "public endpoint",
        "work",
        "database",
        "units",
        "machine",
        "messages",
        "audit",
    }
    assert good_for["updates"] == good_for["drift"] == 3600 and good_for["backups"] == 900


# --- what automations send -------------------------------------------------------------------------------------------


def test_hosts_that_automations_may_not_reach():
    lines = [
        'NOTICE    Nov 27 05:00:00.000 [17]: Proxying refused on filtered domain "example.org"',
        'NOTICE    Nov 27 05:00:01.000 [17]: Proxying refused on filtered domain "example.org"',
        "NOTICE    Nov 27 05:00:02.000 [17]: Reloaded config",
    ]
    (found,) = automations.findings(automations.refused(lines))
    assert (found.level, found.measured) == (Level.WARNING, "refused: example.org (2 times)")
    assert found.mend.startswith("add it to automations_allowed_hosts")
    assert automations.findings(automations.refused([]))[0].level is Level.OK
    # Nothing may leave: nothing was refused that somebody waits for.
    assert automations.findings(None) == []


# --- the database ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("look", [work.look, database.look])
def test_a_look_waits_for_no_lock_for_ever(monkeypatch, look):
    """As a table is locked by VACUUM FULL."""
    given: list[dict[str, Any]] = []

    def connect(**options: Any) -> None:
        given.append(options)
        raise psycopg.OperationalError("enough")

    monkeypatch.setattr(psycopg, "connect", connect)
    host = SimpleNamespace(postgres=Postgres("/nowhere", Path()))
    with pytest.raises(Failure):
        look(host)
    assert [one["options"] for one in given] == ["-c statement_timeout=15000"]
    # A dump's or a restore's may last.
    with pytest.raises(Failure), host.postgres.connect():
        pass
    assert given[1]["options"] == ""
