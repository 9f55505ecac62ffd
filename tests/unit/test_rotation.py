"""New secrets in the place of old ones: what is decided, and in which order. That nothing is lost meanwhile is tested in the lab."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import pytest
import start
import yaml
from health import Looks, Report
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.nativetypes import NativeEnvironment

from .test_caddyfile import CADDY, Caddy, Proxy

ROOT = Path(__file__).resolve().parents[2]
ANSIBLE = ROOT / "ansible"


def plugin(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / f"filter_plugins/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


passwords = plugin("prefect_passwords")
proxy_names = plugin("prefect_proxy")


# --- the database's password ---------------------------------------------------------------------------------------


def test_postgres_is_given_what_it_would_compute() -> None:
    """The example of RFC 7677: who has this can answer as the server did, and check the client's proof."""
    verifier = passwords.prefect_scram("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    kind, salt, keys = verifier.split("$")
    assert (kind, salt) == ("SCRAM-SHA-256", "4096:W22ZaJ0SNY7soEsUEjb6gQ==")
    stored, server = map(base64.b64decode, keys.split(":"))
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    said = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}".encode()
    signature = base64.b64encode(hmac.digest(server, said, "sha256")).decode()
    assert signature == "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client = bytes(a ^ b for a, b in zip(proof, hmac.digest(stored, said, "sha256"), strict=True))
    assert hashlib.sha256(client).digest() == stored


def test_each_time_with_another_salt() -> None:
    assert passwords.prefect_scram("pencil") != passwords.prefect_scram("pencil")


def test_the_servers_password_file() -> None:
    text = passwords.prefect_pgpass(["new", "before"])
    assert text == "postgres:5432:*:prefect_server:new\npostgres:5432:*:prefect_server:before\n"
    assert passwords.prefect_passwords(text) == ["new", "before"]
    # As of a superuser, until release 0.5.
    assert passwords.prefect_passwords("postgres:5432:prefect:prefect:x\n") == []


@pytest.mark.parametrize(
    ("password", "fits"),
    [
        ("a1", True),
        ("it's:so$ {x}", False),
        ("it's:so${x}", True),
        ("", False),
        ("a\\b", False),
        ("a\nb", False),
        ("é", False),
    ],
)
def test_a_password_of_the_database_that_no_client_could_be_given(password: str, fits: bool) -> None:
    assert passwords.prefect_password_fits(password) is fits
    if fits:
        assert passwords.prefect_passwords(passwords.prefect_pgpass([password])) == [password]
        assert passwords.prefect_scram(password).startswith("SCRAM-SHA-256$4096:")


def computed(role: str, name: str, **given: Any) -> Any:
    """What a variable of a role is with these others. Those that are strings with Jinja in them are computed, too."""
    environment = NativeEnvironment()
    environment.filters |= {
        "b64decode": lambda text: base64.b64decode(text).decode(),
        "bool": bool,
        "prefect_passwords": passwords.prefect_passwords,
    }
    variables = yaml.safe_load((ANSIBLE / f"roles/{role}/vars/main.yml").read_text())
    # Those that this one names first: as in Ansible, where a variable is computed when it is asked for.
    known: dict[str, Any] = {}
    for other, text in variables.items():
        if other in given:
            continue
        if other == name or other in variables[name]:
            known[other] = environment.from_string(text).render(**{**known, **given})
    return known[name]


OLD, NEW, OTHER = "old", "new", "another"


@pytest.mark.parametrize(
    ("there", "asked", "refused", "changes"),
    [
        # A new host, and one on which all is well.
        ([], False, False, False),
        ([NEW], False, False, False),
        ([NEW], True, False, False),
        # Lost secrets are no rotation.
        ([OLD], False, True, False),
        ([OLD], True, True, True),
        # Begun by an earlier run.
        ([OLD, NEW], False, False, True),
        ([NEW, OLD], False, False, True),
        ([OLD, OTHER], False, True, False),
        ([OLD, OTHER], True, True, True),
    ],
)
def test_a_change_of_the_databases_password_is_asked_for_or_gone_on_with(
    there: list[str], asked: bool, refused: bool, changes: bool
) -> None:
    file = {"content": base64.b64encode(passwords.prefect_pgpass(there).encode()).decode()} if there else {}
    given = {"__stack_pgpass": file, "__stack_postgres_password": NEW, "stack_change_database_password": asked}
    assert computed("stack", "__stack_password_is_another", **given) is refused
    given["__stack_password_is_another"] = refused
    assert computed("stack", "__stack_password_changes", **given) is changes


def tasks(role: str, file: str) -> list[dict[str, Any]]:
    return yaml.safe_load((ANSIBLE / f"roles/{role}/tasks/{file}.yml").read_text())


def test_the_server_has_both_passwords_while_postgres_is_told() -> None:
    named = [task["name"] for task in tasks("stack", "database_password")]
    order = [
        "Let the server try both passwords",
        "Give the server's role its new password",
        "Write it, for Postgres and first for the server",
        "Restart the server with it",
        "Take the former password away",
    ]
    assert [name for name in named if name in order] == order


def test_no_password_of_the_database_is_shown_or_logged() -> None:
    for task in tasks("stack", "database_password"):
        if any(word in str(task) for word in ("prefect_pgpass", "prefect_scram", "__stack_postgres_password")):
            assert task["no_log"] is True, task["name"]
            assert "__stack_postgres_password" not in str(task.get("ansible.builtin.command", {}).get("argv"))


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`refusing(lines, right)`: a database that takes one of the lines alone; gives the lines that were tried."""
    monkeypatch.setattr(start, "PASSWORDS", tmp_path / "server_pgpass")
    monkeypatch.setattr(start, "PASSWORD", tmp_path / "pgpass")
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "server_pgpass"))
    tried: list[str] = []

    class Database:
        async def execute(self, *_: Any) -> str:
            return "UPDATE 1"

        async def close(self) -> None:
            pass

    async def run(lines: list[str], right: str) -> list[str]:
        (tmp_path / "server_pgpass").write_text("".join(f"{line}\n" for line in lines))

        async def connect(*_: Any, **__: Any) -> Database:
            tried.append(Path(os.environ["PGPASSFILE"]).read_text().splitlines()[0])
            if tried[-1] != right:
                raise asyncpg.InvalidPasswordError("no")
            return Database()

        monkeypatch.setattr(Looks, "connect", connect)
        await start.reset_windows(Looks(os.environ), Report(tmp_path / "health"))
        return tried

    return run


@pytest.mark.parametrize(("right", "tries"), [("a", ["a"]), ("b", ["a", "b"]), ("c", ["a", "b", "c"])])
def test_a_server_that_is_started_meanwhile_takes_the_password_that_works(
    refusing: Any, right: str, tries: list[str]
) -> None:
    assert asyncio.run(refusing(["a", "b", "c"], right)) == tries
    # The driver takes none that others may read.
    assert not start.PASSWORD.exists() or start.PASSWORD.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("lines", [["a"], ["a", "b"]])
def test_where_none_works_it_says_so(refusing: Any, lines: list[str]) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(refusing(lines, "another"))


# --- passwords of workers, at the reverse proxy --------------------------------------------------------------------

P0, P1, P2 = (f"$2b$10${letter * 53}" for letter in "abc")


def users(**hashes: str) -> str:
    lines = "".join(f"{name.replace('_', '-')} {hashed}\n" for name, hashed in hashes.items())
    return f"# By the playbook: name and bcrypt hash of each account.\n{lines}"


@pytest.mark.parametrize(
    ("wanted", "there", "before", "former"),
    [
        (users(worker_a=P0), "", "", {}),
        (users(worker_a=P0), users(worker_a=P0), "", {}),
        (users(worker_a=P1, worker_b=P0), users(worker_a=P0, worker_b=P0), "", {"worker-a": P0}),
        (users(backups=P1), users(backups=P0), "", {"backups": P0}),
        # A person's former password ends at once, and that of the playbook, which has none at work.
        (users(ada=P1, playbook=P1), users(ada=P0, playbook=P0), "", {}),
        # Killed after the reverse proxy had changed: the flow runs still have the one before.
        (users(worker_a=P1), users(worker_a=P1), users(worker_a=P0), {"worker-a": P0}),
        (users(worker_a=P2), users(worker_a=P1), users(worker_a=P0), {"worker-a": P0}),
        # Back to it, or without the worker.
        (users(worker_a=P0), users(worker_a=P1), users(worker_a=P0), {}),
        (users(), users(worker_a=P1), users(worker_a=P0), {}),
    ],
)
def test_whose_former_password_the_reverse_proxy_takes(
    wanted: str, there: str, before: str, former: dict[str, str]
) -> None:
    assert proxy_names.prefect_former(wanted, there, before) == former


@pytest.mark.parametrize(
    ("phases", "containers", "left"),
    [
        (["stack"], [], {"worker-a", "worker-d", "worker-far", "backups"}),
        (["workers"], [], {"worker-far", "backups"}),
        (["docker_pool"], [], {"worker-a", "worker-far", "backups"}),
        (["stack", "backups", "workers"], [], {"worker-far"}),
        (["stack", "backups", "workers"], ["d 0123456789ab"], {"worker-far", "worker-d"}),
    ],
)
def test_who_still_needs_it_at_the_end_of_a_run(phases: list[str], containers: list[str], left: set[str]) -> None:
    """The worker `far` is of a host that is not part of this run."""
    former = dict.fromkeys(("worker-a", "worker-d", "worker-far", "backups"), P0)
    assert set(proxy_names.prefect_still_former(former, ["a"], ["d"], phases, containers)) == left


def test_a_new_password_is_told_by_how_it_begins() -> None:
    new = re.compile(proxy_names.prefect_new_logins({"worker-a": "abcdefghijklmnop", "worker-b": "qrstuvwxyz012345"}))

    def header(user: str, password: str) -> str:
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    assert new.match(header("worker-a", "abcdefghijklmnop")) and new.match(header("worker-b", "qrstuvwxyz012345"))
    assert new.match(header("worker-a", "abcd of another"))
    for user, password in (
        ("worker-a", "abcefghijklmnopq"),
        ("worker-a", "qrstuvwxyz012345"),
        ("worker-c", "abcdefgh"),
    ):
        assert not new.match(header(user, password))
    # Of one that a person has chosen it tells less, and nothing of a very short one: that has none of before.
    assert "^(?i:basic) (?:YTp4[Q-T])" not in proxy_names.prefect_new_logins({"a": "xyz"})
    assert re.match(proxy_names.prefect_new_logins({"a": "xyz"}), header("a", "other"))


def before_file(former: dict[str, str], new: dict[str, str]) -> str:
    """The template as Ansible renders it."""
    environment = Environment(
        loader=FileSystemLoader(ANSIBLE / "roles/stack/templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= proxy_names.FilterModule().filters()
    given = {
        "__stack_former": former,
        "prefect_secrets_dir": "/secrets",
        "lookup": lambda _, path, **__: new[Path(path).name],
    }
    return environment.get_template("before.caddy.j2").render(given)


FORMER = "the-one-before"


def hashed(password: str) -> str:
    command = [CADDY, *"hash-password --algorithm bcrypt --bcrypt-cost 4 --plaintext".split(), password]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A reverse proxy while the password of `alice` is changed to `password`."""
    caddy = Caddy(tmp_path_factory.mktemp("changing"))
    (caddy.directory / "before.caddy").write_text(before_file({"alice": hashed(FORMER)}, {"alice": "password"}))
    with Proxy(caddy) as proxy:
        yield proxy


@pytest.mark.parametrize(
    ("user", "password", "status"),
    [
        ("alice", "password", 200),
        ("alice", FORMER, 200),
        ("alice", "the-one-before-it", 401),
        ("alice", "pa" + FORMER, 401),
        ("alice", "passwore", 401),
        ("bob", FORMER, 401),
        ("alicia", FORMER, 401),
    ],
)
def test_the_reverse_proxy_takes_both_passwords_meanwhile(
    changing: Proxy, user: str, password: str, status: int
) -> None:
    changing.seen.clear()
    login = base64.b64encode(f"{user}:{password}".encode()).decode()
    assert changing.ask("GET", Authorization=f"Basic {login}", X_Prefect_Account="root") == status
    assert [one.get("X-Prefect-Account") for one in changing.seen] == (["alice"] if status == 200 else [])
    assert not any("Authorization" in one for one in changing.seen)


@pytest.mark.parametrize("kind", ["oauth2-proxy", "authelia"])
def test_with_single_sign_on_too(tmp_path: Path, kind: str) -> None:
    caddy = Caddy(tmp_path)
    given = {"PREFECT_SSO": kind, "PREFECT_SSO_PROXY": "http://127.0.0.1:1"}
    alone = str(caddy.adapted(**given)).count("'handler': 'authentication'")
    (tmp_path / "before.caddy").write_text(before_file({"alice": P0}, {"alice": "password"}))
    assert str(caddy.adapted(**given)).count("'handler': 'authentication'") == alone + 1


def test_and_none_without_one(changing: Proxy) -> None:
    assert changing.ask("GET", Authorization="") == 401


# --- the server's own authority ------------------------------------------------------------------------------------


def rendered(text: str, **given: Any) -> str:
    """A text of the role with its variables in it, which may hold others."""
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    known = yaml.safe_load((ANSIBLE / "roles/stack/vars/main.yml").read_text()) | given
    while "{{" in text:
        text = environment.from_string(text).render(known)
    return text


VARS = yaml.safe_load((ANSIBLE / "roles/stack/vars/main.yml").read_text())


def issuers(caddy: Caddy) -> tuple[set[str], str]:
    """The authorities that Caddy makes, and the one that signs."""
    apps = caddy.adapted(PREFECT_TLS="internal")["apps"]
    (issuer,) = next(policy["issuers"] for policy in apps["tls"]["automation"]["policies"] if "issuers" in policy)
    assert issuer["module"] == "internal"
    return set(apps["pki"]["certificate_authorities"]), issuer.get("ca", "local")


def test_the_reverse_proxy_has_the_next_authority_before_it_signs_by_it(tmp_path: Path) -> None:
    caddy = Caddy(tmp_path)
    assert issuers(caddy) == ({"local"}, "local")
    (tmp_path / "ca.caddy").write_text(VARS["__stack_ca_entries"][0]["content"])
    assert issuers(caddy) == ({"local", "next"}, "local")
    (tmp_path / "issuer.caddy").write_text(VARS["__stack_issuer_entries"][0]["content"])
    assert issuers(caddy) == ({"local", "next"}, "next")


def test_it_is_served_by_both_before_the_one_of_before_goes() -> None:
    named = [task["name"] for task in tasks("stack", "switch_authority")]
    assert named == [
        "Have a certificate made by the next authority",
        "Serve with it",
        "Put the next authority in the place of the one before, and have a certificate made by it there",
        "Serve with that alone",
    ]
    end = tasks("stack", "end_authority")
    assert [task["name"] for task in end] == [
        "Have the reverse proxy take it",
        "Service",
        "See that it serves by the new authority",
        "Have clients trust it alone",
        "Remove what is left of the change",
        "Note that it is done",
    ]
    # By these, which go last, the next run finds what is not done.
    assert end[4]["loop"][-1] == "{{ __stack_authorities }}/next"
    assert [entry["path"] for entry in VARS["__stack_no_ca_entries"]] == [
        "{{ __stack_issuer_file }}",
        "{{ __stack_ca_file }}",
    ]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caddy's data, with two authorities, and a docker that makes a certificate of what it is given on stdin."""
    for name in ("local", "next"):
        (tmp_path / "caddy/caddy/pki/authorities" / name).mkdir(parents=True)
        (tmp_path / "caddy/caddy/pki/authorities" / name / "root.crt").write_text(name)
    (tmp_path / "caddy/caddy/certificates/local/p.example.org").mkdir(parents=True)
    (tmp_path / "caddy/caddy/certificates/local/p.example.org/p.example.org.json").write_text("by the one before")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/docker").write_text(
        "#!/bin/sh\n"
        'test "$1" = run || exit 0\n'
        "ca=$(sed -n 's/^\\t\\tca \\([a-z]*\\) {/\\1/p')\n"
        f'to={tmp_path}/caddy/caddy/certificates/$ca/p.example.org; mkdir -p "$to"\n'
        'echo "by $ca" > "$to/p.example.org.json"\n'
    )
    (tmp_path / "bin/docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def run_shell(place: Path, number: int) -> subprocess.CompletedProcess[str]:
    """A task of switch_authority.yml, by what it runs."""
    task = tasks("stack", "switch_authority")[number]
    given = {
        "__prefect_state": str(place),
        "prefect_caddy_image": "caddy:2",
        "prefect_domain": "p.example.org",
        **task["vars"],
    }
    shell = task["ansible.builtin.shell"]
    return subprocess.run(
        ["/bin/sh", "-c", rendered(shell["cmd"], **given)],
        input=rendered(shell["stdin"], **given),
        capture_output=True,
        text=True,
        timeout=30,
    )


FIRST, SECOND = 0, 2


def certificate(place: Path, authority: str) -> str:
    (found,) = (place / "caddy/caddy/certificates" / authority).glob("*/*.json")
    return found.read_text().strip()


def test_a_certificate_is_made_before_it_is_served(place: Path) -> None:
    assert run_shell(place, FIRST).returncode == 0
    assert certificate(place, "next") == "by next"
    assert certificate(place, "local") == "by the one before"
    # One that is there is taken.
    (place / "bin/docker").write_text("#!/bin/sh\nexit 1\n")
    assert run_shell(place, FIRST).returncode == 0


@pytest.mark.parametrize("state", ["", "one rename", "both renames", "a half copy"])
def test_the_next_authority_takes_the_place_of_the_one_before(place: Path, state: str) -> None:
    """Whoever was cut off, and wherever."""
    authorities = place / "caddy/caddy/pki/authorities"
    if state == "a half copy":
        (authorities / ".local.new").mkdir()
    if "rename" in state:
        (authorities / "local").rename(authorities / "local.before")
        (place / "caddy/caddy/certificates/local/p.example.org/p.example.org.json").unlink()
    if state == "both renames":
        (authorities / "local").mkdir()
        (authorities / "local/root.crt").write_text("next")
    done = run_shell(place, SECOND)
    assert done.returncode == 0, done.stderr
    assert (authorities / "local/root.crt").read_text() == (authorities / "next/root.crt").read_text() == "next"
    assert certificate(place, "local") == "by local"
    assert not (authorities / ".local.new").exists()


def test_workers_are_restarted_for_the_newest_authority_alone() -> None:
    newest = plugin("prefect_workers").prefect_newest_authority
    old, new = (f"-----BEGIN CERTIFICATE-----\n{word}\n-----END CERTIFICATE-----\n" for word in ("old", "new"))
    assert newest(old + new) == newest(new) != newest(old)
    assert newest("") == ""
