"""What the preflight says of settings and of hosts: each problem with its exact text."""

from __future__ import annotations

import copy
import importlib.util
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prefect_preflight import numbers

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"
SUPPORTED = ["3.8.8", "3.9.1"]
NAME_WORDS = "a lower-case letter, then up to 30 lower-case letters, digits and hyphens"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ANSIBLE / "filter_plugins" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


preflight = load("prefect_settings")
preflight_host = load("prefect_host")


def read(path: str) -> dict[str, Any]:
    return yaml.safe_load((ANSIBLE / "roles" / path).read_text())


ROLES = read("preflight/vars/main.yml")["__preflight_roles"]
DEFAULTS: dict[str, Any] = {}
for role in ROLES:
    DEFAULTS |= read(f"{role}/defaults/main.yml")
OPTIONS = preflight.prefect_options([ANSIBLE / "roles" / role / "meta/argument_specs.yml" for role in ROLES])


@pytest.fixture
def settings(tmp_path) -> dict[str, Any]:
    """Every setting with a value that is right: the defaults, and what has none."""
    return {
        **copy.deepcopy(DEFAULTS),
        "prefect_domain": "prefect.example.org",
        "prefect_email": "ops@example.org",
        "prefect_version": SUPPORTED[0],
        "prefect_postgres_image": "postgres:17.12-trixie",
        "prefect_image": f"prefecthq/prefect:{SUPPORTED[0]}-python3.13",
        "prefect_secrets_dir": str(tmp_path / "secrets"),
        "prefect_workers": [{"name": "general-1", "pool": "general", "limit": 4}],
        "stack_postgres_memory_mb": 512,
        "stack_server_memory_mb": 768,
        "stack_caddy_cpu_percent": 100,
        "flows_directory": str(ANSIBLE.parent / "flows"),
        "flows_pool": "general",
    }


@pytest.fixture
def said(settings):
    """`said(prefect_tls="x")`: the problems of settings that are right but for these."""

    def problems(**changes: Any) -> list[str]:
        values = {**settings, **changes}
        return preflight.prefect_settings_problems(values, OPTIONS, list(values), SUPPORTED)

    return problems


def test_right_settings_have_no_problem(said):
    assert said() == []


def test_every_setting_is_given_by_the_defaults(settings):
    assert set(settings) == set(OPTIONS)


def test_all_problems_are_said_at_once(said):
    assert said(prefect_domain="", prefect_domian="x.org", host_timezone="Berlin") == [
        'there is no setting "prefect_domian"; did you mean "prefect_domain"?',
        "prefect_domain is not set; with prefect_tls acme it must be a DNS name in lower case, such as prefect.example.org "
        "(without a name of your own: prefect_tls: internal)",
        'host_timezone is "Berlin"; it must be a name such as Europe/Berlin or Etc/UTC',
    ]


def test_a_value_of_the_wrong_type_hides_none_of_the_others(said):
    assert said(
        prefect_users="ada", prefect_domain="x", host_timezone="Berlin", prefect_work_pools=None, backups_jobs=0
    ) == [
        'prefect_users is "ada"; it must be a list',
        "prefect_work_pools is not set; it must be a list",
        'prefect_domain is "x"; with prefect_tls acme it must be a DNS name in lower case, such as prefect.example.org '
        "(without a name of your own: prefect_tls: internal)",
        'host_timezone is "Berlin"; it must be a name such as Europe/Berlin or Etc/UTC',
        'backups_jobs is "0"; it must be 1 or more',
    ]


def test_a_setting_that_cannot_be_computed(settings):
    del settings["prefect_domain"]
    values = {**settings, "__failed": {"prefect_domain": "'mine' is undefined"}, "host_timezone": "Berlin"}
    assert preflight.prefect_settings_problems(values, OPTIONS, list(OPTIONS), SUPPORTED) == [
        "prefect_domain cannot be computed from what it is set to: 'mine' is undefined",
        'host_timezone is "Berlin"; it must be a name such as Europe/Berlin or Etc/UTC',
    ]


# --- names and types ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("prefect_domian", 'there is no setting "prefect_domian"; did you mean "prefect_domain"?'),
        ("prefect_worker", 'there is no setting "prefect_worker"; did you mean "prefect_workers"?'),
        ("prefect_colour", 'there is no setting "prefect_colour"; docs/settings.md lists what there is'),
        ("preflight_colour", 'there is no setting "preflight_colour"; docs/settings.md lists what there is'),
        ("backups_notify_urls", 'the setting "backups_notify_urls" is called "watch_notify_urls" now: rename it'),
        ("host_timezon", 'there is no setting "host_timezon"; did you mean "host_timezone"?'),
    ],
)
def test_unknown_setting(said, name, problem):
    assert said(**{name: "x"}) == [problem]


def test_inventories_have_variables_of_their_own(said):
    own = ("host_rack", "docker_users", "stack_colour", "flows_owner", "workers_count", "checks_enabled")
    assert said(**dict.fromkeys(own, "x")) == []


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("prefect_domain", None, "prefect_domain is not set; it must be text"),
        ("prefect_domain", ["a.org"], "prefect_domain is \"['a.org']\"; it must be text"),
        (
            "prefect_version",
            3.1,
            'prefect_version is the value "3.1" without quotes; it must be text, so write it in quotes',
        ),
        (
            "host_reboot_time",
            810,
            'host_reboot_time is the value "810" without quotes; it must be text, so write it in quotes',
        ),
        (
            "prefect_tls_key",
            False,
            'prefect_tls_key is the value "False" without quotes; it must be text, so write it in quotes',
        ),
        ("prefect_tls", "letsencrypt", 'prefect_tls is "letsencrypt"; allowed are acme, internal and files'),
        ("preflight_dns_mismatch", "ok", 'preflight_dns_mismatch is "ok"; allowed are refuse and warn'),
        (
            "prefect_runs_retention_days",
            "many",
            'prefect_runs_retention_days is "many"; it must be a whole number',
        ),
        ("stack_caddy_memory_mb", 1.5, 'stack_caddy_memory_mb is "1.5"; it must be a whole number'),
        ("workers_api_timeout", True, 'workers_api_timeout is "True"; it must be a whole number'),
        (
            "workers_domain_on_loopback",
            "maybe",
            'workers_domain_on_loopback is "maybe"; it must be true or false',
        ),
        ("prefect_users", "ada", 'prefect_users is "ada"; it must be a list'),
        ("docker_daemon_settings", [], 'docker_daemon_settings is "[]"; it must be a mapping'),
        ("prefect_users", ["ada"], 'prefect_users, entry 1 is "ada"; it must be a mapping'),
        (
            "prefect_users",
            [{"name": "ada"}, {"nmae": "bob"}],
            [
                'prefect_users, entry 2: there is no key "nmae"; allowed are name, kind, role, deployments, pools and blocks',
                'prefect_users, entry 2: the key "name" is missing',
            ],
        ),
        (
            "prefect_users",
            [{"name": "ada", "kind": "robot"}],
            'prefect_users, entry 1: kind is "robot"; allowed are person and service',
        ),
        (
            "prefect_workers",
            [{"name": "a", "pool": "general", "limits": 2}],
            'prefect_workers, entry 1: there is no key "limits"; allowed are name, pool, queues, limit, health_port, blocks, deployments, write_variables, environment, secrets, memory_max, cpu_weight and devices',
        ),
        (
            "prefect_workers",
            [{"name": "a", "pool": "general", "limit": "two"}],
            'prefect_workers, entry 1: limit is "two"; it must be a whole number',
        ),
        (
            "prefect_workers",
            [{"name": "a", "pool": "general", "queues": "high"}],
            'prefect_workers, entry 1: queues is "high"; it must be a list',
        ),
        (
            "prefect_work_pools",
            [{"name": "general", "queues": [{"name": "high"}]}],
            'prefect_work_pools, entry 1: queues, entry 1: the key "priority" is missing',
        ),
        ("host_firewall_tcp_ports", ["ssh"], 'host_firewall_tcp_ports, entry 1 is "ssh"; it must be a whole number'),
    ],
)
def test_wrong_type(said, setting, value, problem):
    assert said(**{setting: value}) == ([problem] if isinstance(problem, str) else problem)


def test_text_that_reads_as_a_number_is_one(said):
    """`-e prefect_runs_retention_days=30` gives text."""
    assert said(prefect_runs_retention_days="30", workers_domain_on_loopback="no", preflight_min_memory_mb="900") == []
    assert said(prefect_runs_retention_days="-30") == ['prefect_runs_retention_days is "-30"; it must be 1 or more']


def test_settings_in_their_types(settings):
    """What the other filters are given: text of the command line as numbers, and nothing where something is wrong."""
    values = {
        **settings,
        "backups_jobs": "4",
        "backups_offsite": [{"name": "far", "repository": "/mnt/x", "prune": "no"}],
    }
    typed = preflight.prefect_typed(values, OPTIONS)
    assert typed["backups_jobs"] == 4 and typed["backups_offsite"][0]["prune"] is False
    wrong = {**values, "backups_offsite": "far"}
    assert preflight.prefect_typed(wrong, OPTIONS) == {}
    # Only what is needed counts.
    assert preflight.prefect_typed(wrong, OPTIONS, ["backups_"]) == {}
    assert preflight.prefect_typed(wrong, OPTIONS, ["prefect_workers"])["prefect_workers"] == values["prefect_workers"]


def test_a_key_that_may_be_left_out_may_be_empty(said):
    assert said(prefect_workers=[{"name": "a", "pool": "general", "limit": None, "queues": None}]) == []
    assert said(prefect_workers=[{"name": "a", "pool": None}]) == [
        'prefect_workers, entry 1: the key "pool" is missing'
    ]


# --- the reverse proxy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("domain", ["", "prefect", "Prefect.Example.org", "https://prefect.example.org", "a..b",
                                    "-a.org", "a.org.", "10.0.0.1", "10.0.0.256", "a_b.org", "a b.org"])  # fmt: skip
def test_bad_domain_with_acme(said, domain):
    fact = f'is "{domain}"' if domain else "is not set"
    assert said(prefect_domain=domain) == [
        f"prefect_domain {fact}; with prefect_tls acme it must be a DNS name in lower case, such as "
        "prefect.example.org (without a name of your own: prefect_tls: internal)"
    ]


@pytest.mark.parametrize("domain", ["", "prefect", "10.0.0.256", "10.0.0", "fd00::1", "https://10.0.0.1"])
def test_bad_domain_without_acme(said, domain):
    fact = f'is "{domain}"' if domain else "is not set"
    assert said(prefect_domain=domain, prefect_tls="internal") == [
        f"prefect_domain {fact}; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address"
    ]


def test_good_domains(said):
    assert said(prefect_domain="a.b-c.xn--p1ai") == []
    assert said(prefect_domain="10.0.0.1", prefect_tls="internal", prefect_email="") == []


def test_bad_email(said):
    for email in ("", "ops", "ops@host", "a b@example.org"):
        fact = f'is "{email}"' if email else "is not set"
        assert said(prefect_email=email) == [
            f"prefect_email {fact}; with prefect_tls acme it must be an e-mail address, such as ops@example.org"
        ]
    assert said(prefect_email="ops", prefect_tls="internal") == [
        'prefect_email is "ops"; it must be an e-mail address or empty'
    ]


def test_bad_acme_directory(said):
    assert said(prefect_acme_directory="http://ca.example.org") == [
        'prefect_acme_directory is "http://ca.example.org"; it must begin with https://'
    ]


def test_bad_users(said):
    assert said(prefect_users=[]) == ["prefect_users is empty; without a user nobody can log in"]
    assert said(prefect_users=[{"name": "Ada Lovelace"}]) == [
        f'prefect_users: the name "Ada Lovelace" is not allowed; allowed is {NAME_WORDS}'
    ]
    assert said(prefect_users=[{"name": "ada"}, {"name": "bob"}, {"name": "ada"}]) == [
        'prefect_users: the name "ada" stands twice'
    ]
    for name in ("playbook", "backups", "worker-general-1"):
        assert said(prefect_users=[{"name": name}]) == [
            f'prefect_users: the name "{name}" is reserved for the playbook and its workers'
        ]


def test_bad_monitors(said, settings):
    assert said(prefect_monitors=["grafana", "uptime-1"]) == []
    assert said(prefect_monitors=["Uptime"]) == [
        f'prefect_monitors: the name "Uptime" is not allowed; allowed is {NAME_WORDS}'
    ]
    assert said(prefect_monitors=["up", "up"]) == ['prefect_monitors: the name "up" stands twice']
    assert said(prefect_monitors=["playbook"]) == [
        'prefect_monitors: the name "playbook" is reserved for the playbook and its workers'
    ]
    assert said(prefect_users=[{"name": "ada"}, {"name": "bob"}], prefect_monitors=["up", "ada"]) == [
        'prefect_monitors: the name "ada" is in prefect_users, too, which may read the same and all the rest; '
        "take it out of one of them"
    ]
    path = give_password(settings, "up", b"short")
    assert said(prefect_monitors=["up"]) == [
        f'the password of "up" in {path} has 5 bytes; allowed are 16 to 72 (delete the file to have one generated)'
    ]


# --- certificates ------------------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path):
    """`certificate(names, begin, end)` writes cert.pem and key.pem; days are counted from now."""

    def write(names: list[str], begin: int = -1, end: int = 30) -> dict[str, str]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "prefect.example.org")])
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now + timedelta(days=begin))
            .not_valid_after(now + timedelta(days=end))
        )
        if names:
            entries = [x509.IPAddress(ip_address(name)) if name[0].isdigit() else x509.DNSName(name) for name in names]
            builder = builder.add_extension(x509.SubjectAlternativeName(entries), critical=False)
        (tmp_path / "cert.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        write_key(tmp_path / "key.pem", key, serialization.NoEncryption())
        return {
            "prefect_tls": "files",
            "prefect_tls_certificate": str(tmp_path / "cert.pem"),
            "prefect_tls_key": str(tmp_path / "key.pem"),
        }

    return write


def write_key(path: Path, key: ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption):
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def test_single_sign_on(said):
    well = {"prefect_sso_proxy": "http://oauth2-proxy:4180", "prefect_sso_roles": {"data team": "deployer"}}
    assert said(**well) == []
    assert said(**(well | {"prefect_sso_proxy": "oauth2-proxy/x"})) == [
        'prefect_sso_proxy is "oauth2-proxy/x"; it must be an address without a path, such as http://oauth2-proxy:4180'
    ]
    assert said(**(well | {"prefect_sso_proxy": ""})) == [
        "prefect_sso_roles has groups, but prefect_sso_proxy is not set"
    ]
    assert said(**(well | {"prefect_sso_roles": {}})) == [
        "prefect_sso_roles is empty; name the groups that may do something: {GROUP: ROLE}"
    ]
    assert said(**(well | {"prefect_sso_roles": {"a,b": "viewer", "c": "trigger"}})) == [
        'prefect_sso_roles: "a,b" is no name of a group that can be told from others',
        'prefect_sso_roles: "c" has the role "trigger"; allowed are admin, deployer, operator, viewer',
    ]


def test_networks_that_may_connect(said):
    assert said(prefect_tls="internal", prefect_allowed_networks=["10.8.0.0/24", "2001:db8::/32", "203.0.113.7"]) == []
    assert said(prefect_tls="internal", prefect_allowed_networks=["10.8.0.1/24"]) == [
        'prefect_allowed_networks: "10.8.0.1/24" is no address or network, such as 203.0.113.7 or 203.0.113.0/24'
    ]
    (words,) = said(prefect_allowed_networks=["10.8.0.0/24"])
    assert words.startswith("prefect_allowed_networks keeps out Let's Encrypt")
    assert said(prefect_allowed_networks=["10.8.0.0/24"], prefect_acme_directory="https://ca.internal/acme") == []


BLOCK_WORDS = "it must be TYPE/NAME, such as secret/db-password, TYPE/* for all of a type, or *"


def test_roles_of_accounts(said):
    assert said(prefect_users=[{"name": "ada", "role": "viewer"}]) == [
        "prefect_users: nobody has the role admin; one has to, for work pools, blocks and automations"
    ]
    users = [
        {"name": "ada"},
        {"name": "shop", "role": "trigger"},
        {"name": "till", "role": "trigger", "deployments": ["order/ship", "order", "a//b", "/x"]},
        {"name": "bob", "role": "operator", "deployments": ["order/ship"], "blocks": ["secret/x", "x"]},
        {"name": "eve", "role": "admin", "blocks": ["secret/x"], "pools": ["general"]},
        {"name": "cluster-1", "role": "worker"},
        {
            "name": "cluster-2",
            "role": "worker",
            "pools": ["general", "gpu"],
            "deployments": ["order/ship"],
            "blocks": ["secret/x"],
        },
    ]
    assert said(prefect_users=users) == [
        'prefect_users: "shop" has the role trigger and no deployments; name those that it may run: [FLOW/DEPLOYMENT]',
        'prefect_users: "till": deployments has "order"; it must be FLOW/DEPLOYMENT',
        'prefect_users: "till": deployments has "a//b"; it must be FLOW/DEPLOYMENT',
        'prefect_users: "till": deployments has "/x"; it must be FLOW/DEPLOYMENT',
        'prefect_users: "bob" has deployments, which are of the roles trigger and worker alone; its role is operator',
        f'prefect_users: "bob": blocks has "x"; {BLOCK_WORDS}',
        'prefect_users: "eve" has pools, which only the role worker has; its role is admin',
        'prefect_users: "eve" has blocks; the role admin reads all anyway',
        'prefect_users: "cluster-1" has the role worker and no pools; name the work pools that it takes flow runs from: [POOL]',
        'prefect_users: "cluster-2": pools has "gpu"; prefect_work_pools has "general"',
    ]


def test_blocks_of_workers(said):
    assert said(prefect_workers_blocks=["secret/db", "s3-bucket/*", "*"]) == []
    workers = [{"name": "general-1", "pool": "general", "blocks": ["secret/a b", "secret/x*"]}]
    assert said(prefect_workers_blocks=["db", "Secret/db"], prefect_workers=workers) == [
        f'prefect_workers_blocks has "db"; {BLOCK_WORDS}',
        f'prefect_workers_blocks has "Secret/db"; {BLOCK_WORDS}',
        f'prefect_workers: "general-1": blocks has "secret/a b"; {BLOCK_WORDS}',
        f'prefect_workers: "general-1": blocks has "secret/x*"; {BLOCK_WORDS}',
    ]


@pytest.mark.parametrize("name", ["prefect.example.org", "*.example.org"])
def test_a_certificate_that_fits(said, certificate, name):
    assert said(**certificate(["other.example.org", name])) == []


def test_a_certificate_for_an_address(said, certificate):
    assert said(prefect_domain="10.0.0.1", **certificate(["10.0.0.1"])) == []


def test_certificate_files_that_are_not_there(said, certificate, tmp_path, monkeypatch):
    words = "with prefect_tls files it must be the absolute path of a PEM file on the control machine"
    assert said(prefect_tls="files") == [
        f"prefect_tls_certificate is not set; {words}",
        f"prefect_tls_key is not set; {words}",
    ]
    monkeypatch.chdir(tmp_path)
    assert said(**{**certificate(["prefect.example.org"]), "prefect_tls_key": "key.pem"}) == [
        f'prefect_tls_key is "key.pem"; {words}'
    ]


def test_files_that_are_no_certificate_and_no_key(said, certificate, tmp_path):
    files = certificate(["prefect.example.org"])
    (tmp_path / "cert.pem").write_text("not a certificate")
    (tmp_path / "key.pem").write_text("not a key")
    assert said(**files) == [
        f'prefect_tls_certificate is "{tmp_path}/cert.pem"; that file holds no certificate in PEM',
        f'prefect_tls_key is "{tmp_path}/key.pem"; that file holds no private key in PEM that is free of a passphrase',
    ]


def test_a_key_with_a_passphrase(said, certificate, tmp_path):
    files = certificate(["prefect.example.org"])
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(tmp_path / "key.pem", key, serialization.BestAvailableEncryption(b"secret"))
    assert said(**files) == [
        f'prefect_tls_key is "{tmp_path}/key.pem"; that file holds no private key in PEM that is free of a passphrase'
    ]


def test_a_key_of_another_certificate(said, certificate, tmp_path):
    files = certificate(["prefect.example.org"])
    write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP256R1()), serialization.NoEncryption())
    assert said(**files) == [
        f'prefect_tls_certificate is "{tmp_path}/cert.pem"; that certificate does not belong to the key '
        f'"{tmp_path}/key.pem" (prefect_tls_key)'
    ]


@pytest.mark.parametrize(("begin", "end"), [(-30, -1), (1, 30)])
def test_a_certificate_that_is_not_valid_now(said, certificate, tmp_path, begin, end):
    files = certificate(["prefect.example.org"], begin, end)
    first, last = (datetime.now(UTC) + timedelta(days=day) for day in (begin, end))
    assert said(**files) == [
        f'prefect_tls_certificate is "{tmp_path}/cert.pem"; that certificate is valid from {first:%Y-%m-%d} to '
        f"{last:%Y-%m-%d}, which is not now"
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["other.example.org"], '"other.example.org"'),
        (["example.org", "*.prefect.example.org", "10.0.0.1"], '"example.org", "*.prefect.example.org" and "10.0.0.1"'),
        ([], "no name"),
    ],
)
def test_a_certificate_for_another_name(said, certificate, tmp_path, names, words):
    assert said(**certificate(names)) == [
        f'prefect_tls_certificate is "{tmp_path}/cert.pem"; that certificate is for {words}, not for '
        '"prefect.example.org" (prefect_domain)'
    ]


# --- secrets -----------------------------------------------------------------------------------------------------


def give_password(settings: dict[str, Any], name: str, password: bytes) -> Path:
    path = Path(settings["prefect_secrets_dir"]) / "users" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(password)
    return path


@pytest.mark.parametrize(
    ("password", "weakness"),
    [
        (b"short-0123456\n", "has 13 bytes; allowed are 16 to 72"),
        (b"", "has 0 bytes; allowed are 16 to 72"),
        (b"abcdefgh" * 10, "has 80 bytes; allowed are 16 to 72"),
        (
            b"correct horse battery staple\n",
            "holds a blank, a control or a non-ASCII character, which browsers and clients encode differently",
        ),
        (
            "pässwörter-für-alle".encode(),
            "holds a blank, a control or a non-ASCII character, which browsers and clients encode differently",
        ),
        (b"aaaabbbbccccdddd\n", "is made of 4 different characters; 6 or more are needed"),
    ],
)
@pytest.mark.parametrize("account", ["admin", "playbook", "backups", "worker-general-1"])
def test_weak_password(said, settings, account, password, weakness):
    path = give_password(settings, account, password)
    (problem,) = said()
    assert problem == f'the password of "{account}" in {path} {weakness} (delete the file to have one generated)'
    assert not password.strip() or password.decode().strip() not in problem


def test_good_passwords(said, settings):
    give_password(settings, "admin", b"tr0ub4dor&3-and-more\n")
    give_password(settings, "playbook", b"A1b2C3d4E5f6G7h8I9j0KLMN")
    give_password(settings, "somebody-who-is-gone", b"short")
    assert said() == []


def test_a_secrets_directory_that_cannot_be_written(said, tmp_path):
    (tmp_path / "file").write_text("")
    for directory in (str(tmp_path / "file" / "secrets"), "secrets", "None/secrets"):
        assert said(prefect_secrets_dir=directory) == [
            f'prefect_secrets_dir is "{directory}"; it must be the absolute path of a directory on the control machine '
            "that you may write to (it is made when it is missing)"
        ]


def test_passwords_of_accounts_that_are_gone_are_named(settings):
    directory = Path(settings["prefect_secrets_dir"])
    for name in ("admin", "grace", "note.txt"):
        give_password(settings, name, b"0123456789abcdef")
    (directory / "salts").mkdir()
    # What has no salt the playbook has never let in: it is somebody else's.
    for name in ("admin", "grace"):
        (directory / "salts" / name).write_text("x")
    assert preflight.prefect_left_passwords(["admin", "playbook"], str(directory)) == [
        f'the account "grace" is not in the inventory, and its password is still in {directory}/users/grace; delete that file, '
        'or "grace" has the same password when it is added again'
    ]
    assert preflight.prefect_left_passwords(["admin"], str(directory / "nowhere")) == []


def test_nothing_is_written_there(said, settings):
    said()
    assert not Path(settings["prefect_secrets_dir"]).exists()


# --- versions ----------------------------------------------------------------------------------------------------


def test_version_that_the_kit_does_not_support(said):
    assert said(prefect_version="3.9.1", prefect_image="prefecthq/prefect:3.9.1-python3.13") == []
    words = 'this release of the kit supports "3.8.8" and "3.9.1"'
    # The image, whose default follows the version, is not told of a second time.
    assert said(prefect_version="3.7.0", prefect_image="prefecthq/prefect:3.7.0-python3.13") == [
        f'prefect_version is "3.7.0"; {words}'
    ]
    for image in "prefecthq/prefect:3.7.0-python3.13", f"registry.example.org:5000/prefect:3.7.0@sha256:{'0a' * 32}":
        assert said(prefect_image=image) == [f'prefect_image is "{image}", which is Prefect "3.7.0"; {words}']


@pytest.mark.parametrize(
    "image", ["caddy", "caddy:latest", "registry.example.org:5000/caddy", "caddy@sha256:abc", "", "Caddy:2"]
)
def test_unpinned_image(said, image):
    fact = f'is "{image}"' if image else "is not set"
    assert said(prefect_caddy_image=image) == [
        f"prefect_caddy_image {fact}; it must be pinned by a tag other than latest, or by a digest"
    ]


@pytest.mark.parametrize(
    "image",
    [
        "registry.example.org:5000/tools/prefect:3.8.8-ours.1",
        "prefecthq/prefect:release-7",
        f"prefecthq/prefect@sha256:{'0a' * 32}",
        f"prefecthq/prefect:3.8.8@sha256:{'0a' * 32}",
    ],
)
def test_pinned_image(said, image):
    assert said(prefect_image=image) == []


def test_postgres_of_another_major_version(said):
    assert said(prefect_postgres_image="postgres:16.4") == [
        'prefect_postgres_image is "postgres:16.4"; it must be of Postgres 17 or 18'
    ]
    assert said(prefect_postgres_image="postgres:18.1-trixie") == []
    assert said(prefect_postgres_image="postgres:17") == []


def test_a_digest_does_not_hide_the_version_of_postgres(said):
    digest = f"@sha256:{'0a' * 32}"
    assert said(prefect_postgres_image=f"postgres:17.12-trixie{digest}") == []
    assert said(prefect_postgres_image=f"registry.example.org:5000/postgres:17{digest}") == []
    assert said(prefect_postgres_image=f"postgres:19.1-trixie{digest}") == [
        f'prefect_postgres_image is "postgres:19.1-trixie{digest}"; it must be of Postgres 17 or 18'
    ]
    for name in "postgres", "registry.example.org:5000/postgres":
        assert said(prefect_postgres_image=f"{name}{digest}") == [
            f'prefect_postgres_image is "{name}{digest}"; beside its digest it must have a tag, which tells its major '
            "version, such as postgres:17@sha256:…"
        ]


def test_missing_archive(said):
    assert said(prefect_images_archive="/nowhere/images.tar") == [
        'prefect_images_archive is "/nowhere/images.tar"; it must be empty, or the absolute path of a file on the control machine'
    ]


# --- pools and workers -------------------------------------------------------------------------------------------


def test_bad_pools(said):
    assert said(prefect_work_pools=[], prefect_workers=[]) == [
        "prefect_work_pools is empty; without a work pool no flow runs"
    ]
    general = {"name": "general"}
    assert said(prefect_work_pools=[general, {"name": "GPU"}]) == [
        f'prefect_work_pools: the name "GPU" is not allowed; allowed is {NAME_WORDS}'
    ]
    assert said(prefect_work_pools=[general, general]) == ['prefect_work_pools: the name "general" stands twice']
    assert said(prefect_work_pools=[general, {"name": "prefect-agents"}]) == [
        'prefect_work_pools: pool "prefect-agents": Prefect keeps names that begin with "prefect" for itself'
    ]
    assert said(prefect_work_pools=[{**general, "concurrency_limit": -1}]) == [
        'prefect_work_pools: pool "general": concurrency_limit is "-1"; it must be 0 or more'
    ]


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        (
            [{"name": "a", "priority": 1}, {"name": "b", "priority": 1}],
            'pool "general": two queues have the priority "1"; Prefect keeps one queue at each',
        ),
        (
            [{"name": "a", "priority": 1}, {"name": "a", "priority": 2}],
            'pool "general", queues: the name "a" stands twice',
        ),
        (
            [{"name": "a/b", "priority": 1}],
            f'pool "general", queues: the name "a/b" is not allowed; allowed is {NAME_WORDS}',
        ),
        ([{"name": "a", "priority": 0}], 'pool "general": priority of queue "a" is "0"; it must be 1 or more'),
        (
            [{"name": "a", "priority": 1, "concurrency_limit": -5}],
            'pool "general": concurrency_limit of queue "a" is "-5"; it must be 0 or more',
        ),
    ],
)
def test_bad_queues(said, queues, problem):
    assert said(prefect_work_pools=[{"name": "general", "queues": queues}]) == [f"prefect_work_pools: {problem}"]


@pytest.mark.parametrize(
    ("worker", "problem"),
    [
        ({"pool": "gpu"}, 'worker "w": its pool is "gpu"; prefect_work_pools has "general"'),
        (
            {"queues": ["urgent"]},
            'worker "w": its queue is "urgent"; the pool "general" has "default", "high" and "low"',
        ),
        ({"limit": 0}, 'worker "w": its limit is "0"; it must be 1 or more'),
        ({"health_port": 80}, 'health_port is "80"; allowed are 1024 to 65535'),
        ({"name": "w@1"}, f'the name "w@1" is not allowed; allowed is {NAME_WORDS}'),
    ],
)
def test_bad_worker(said, worker, problem):
    assert said(prefect_workers=[{"name": "w", "pool": "general", **worker}]) == [f"prefect_workers: {problem}"]


def test_bad_workers_together(said):
    one = {"name": "w", "pool": "general"}
    assert said(prefect_workers=[one, one]) == ['prefect_workers: the name "w" stands twice']
    assert said(prefect_workers=[{**one, "health_port": 8081}, {**one, "name": "v"}]) == [
        'prefect_workers: two workers have the health_port "8081"; each needs its own (8080 and up by position when unset)'
    ]


def test_no_workers_are_allowed(said):
    """Those of another host may do the work."""
    assert said(prefect_workers=[]) == []


# --- flows -------------------------------------------------------------------------------------------------------


@pytest.fixture
def flows(tmp_path) -> Path:
    directory = tmp_path / "flows"
    directory.mkdir()
    (directory / "prefect.yaml").write_text("deployments: []\n")
    (directory / "requirements.txt").write_text("prefect==3.8.8 \\\n    --hash=sha256:00\n")
    return directory


def test_flows_of_ones_own(said, flows):
    assert said(flows_directory=str(flows)) == []
    (flows / "requirements.txt").write_text("prefect==3.6.12\n")
    assert said(flows_directory=str(flows)) == []


def test_flows_that_are_not_there(said, flows):
    (flows / "prefect.yaml").unlink()
    assert said(flows_directory=str(flows)) == [
        f'flows_directory is "{flows}"; it must be the absolute path of a directory on the control machine with the file '
        '"prefect.yaml" in it'
    ]


def test_flows_without_prefect(said, flows):
    (flows / "requirements.txt").write_text("prefect-aws==1.0\n")
    assert said(flows_directory=str(flows)) == [
        f'flows_directory is "{flows}"; its requirements.txt has no line "prefect==…", and without Prefect no flow starts'
    ]


def test_flows_of_an_unknown_pool(said):
    assert said(flows_pool="gpu") == ['flows_pool is "gpu"; prefect_work_pools has "general"']


# --- the role host -----------------------------------------------------------------------------------------------

KEY = "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + "b" * 43


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        (
            "host_timezone",
            "Mars/Olympus",
            'host_timezone is "Mars/Olympus"; it must be a name such as Europe/Berlin or Etc/UTC',
        ),
        ("host_reboot_time", "3:30", 'host_reboot_time is "3:30"; it must be a time such as 03:30'),
        ("host_reboot_time", "24:00", 'host_reboot_time is "24:00"; it must be a time such as 03:30'),
        ("host_journal_max_size", "1 GB", 'host_journal_max_size is "1 GB"; it must be a size such as 500M or 2G'),
        (
            "host_journal_upload_url",
            "logs.example.org:19532",
            'host_journal_upload_url is "logs.example.org:19532"; it must be an address such as https://logs.example.org:19532',
        ),
        (
            "host_journal_upload_ca",
            "ca.pem",
            'host_journal_upload_ca is "ca.pem"; it must be the absolute path of a PEM file on the control machine',
        ),
        (
            "watch_notify_urls",
            ["mailto://a:b@example.org", "unsaid"],
            "watch_notify_urls, entry 2 is not an apprise URL, such as mailtos://user:password@example.org?to=ops@example.org",
        ),
        (
            "automations_allowed_hosts",
            ["hooks.slack.com", "https://example.org/x"],
            'automations_allowed_hosts: "https://example.org/x" is not a host name; write hooks.slack.com, for example, or '
            "*.webhook.office.com for all its subdomains",
        ),
        (
            "watch_heartbeat_url",
            "hc.example.org/unsaid",
            "watch_heartbeat_url is not a URL, such as https://hc-ping.com/your-uuid",
        ),
        (
            "watch_datadog_api_key",
            "0123456789abcdef unsaid",
            "watch_datadog_api_key is no API key of Datadog's: 16 to 200 letters and digits, without spaces",
        ),
        (
            "watch_datadog_site",
            "app.datadoghq.com",
            'watch_datadog_site is "app.datadoghq.com"; allowed are datadoghq.com, us3.datadoghq.com, us5.datadoghq.com, '
            "datadoghq.eu, ap1.datadoghq.com, ap2.datadoghq.com, uk1.datadoghq.com, ddog-gov.com and us2.ddog-gov.com",
        ),
        *(
            (
                "watch_datadog_url",
                url,
                f'watch_datadog_url is "{url}"; it must be an address such as https://datadog.example.org, or '
                "http://127.0.0.1:8080 on the server itself",
            )
            for url in (
                "http://proxy.example.org",
                "https://user:password@example.org",
                "proxy.example.org",
                "http://localhost.example.org",
            )
        ),
        (
            "watch_datadog_flow_run_states",
            ["Failed", "Running"],
            'watch_datadog_flow_run_states, entry 2 is "Running"; allowed are Failed, Crashed, TimedOut, Late, Cancelled, Paused, '
            "Suspended and Completed",
        ),
        (
            "host_admin_user",
            "root",
            f'host_admin_user is "root"; allowed is {NAME_WORDS}, and none of root, prefect, prefect-server, prefect-caddy, '
            "prefect-docker",
        ),
        (
            "host_admin_user",
            "Ops",
            f'host_admin_user is "Ops"; allowed is {NAME_WORDS}, and none of root, prefect, prefect-server, prefect-caddy, '
            "prefect-docker",
        ),
        (
            "host_admin_keys",
            [KEY, "-----BEGIN OPENSSH PRIVATE KEY-----"],
            "host_admin_keys, entry 2 is no public ssh key, such as: ssh-ed25519 AAAA… name",
        ),
        ("host_firewall_tcp_ports", [70000], 'host_firewall_tcp_ports: "70000" is not a port from 1 to 65535'),
        (
            "host_guessing_never_block",
            ["203.0.113.7", "office.example.org"],
            'host_guessing_never_block: "office.example.org" is no address or network, such as 203.0.113.7 or 203.0.113.0/24',
        ),
        (
            "host_guessing_never_block",
            ["203.0.113.7/24"],
            'host_guessing_never_block: "203.0.113.7/24" is no address or network, such as 203.0.113.7 or 203.0.113.0/24',
        ),
        (
            "host_guessing_longest_block_seconds",
            59,
            'host_guessing_longest_block_seconds is "59"; it must be from 60 (host_guessing_block_seconds) to 86400',
        ),
        (
            "host_firewall_trusted_interfaces",
            ['wg0" } accept'],
            'host_firewall_trusted_interfaces: "wg0" } accept" is no name of a network interface, such as wg0',
        ),
        (
            "host_firewall_trusted_interfaces",
            ["br-*-1"],
            'host_firewall_trusted_interfaces: "br-*-1" is no name of a network interface, such as wg0',
        ),
        (
            "host_cloud_metadata_users",
            ["dd-agent", "0 } accept"],
            'host_cloud_metadata_users: "0 } accept" is no name of a system user, such as dd-agent',
        ),
        (
            "host_extra_ca_certificates",
            ["/nowhere/ca.pem"],
            'host_extra_ca_certificates: "/nowhere/ca.pem" is not the absolute path of a PEM file with a certificate on '
            "the control machine",
        ),
        (
            "host_extra_ca_certificates",
            [str(ANSIBLE / "site.yml")],
            f'host_extra_ca_certificates: "{ANSIBLE}/site.yml" is not the absolute path of a PEM file with a certificate on the '
            "control machine",
        ),
    ],
)
def test_bad_host_setting(said, setting, value, problem):
    assert said(**{setting: value}) == [problem]


def test_example_automations_need_a_block_and_a_host(said):
    assert said(automations_examples=["failed"], automations_examples_block="alerts") == [
        'automations_examples_block is "alerts"; it must be TYPE/NAME, such as slack-webhook/alerts',
        "automations_examples can notify nobody while automations_allowed_hosts is empty: add the host that the block sends to",
    ]
    allowed = ["hooks.slack.com", "*.webhook.office.com", "192.0.2.1"]
    more = {"automations_examples": ["failed", "stuck"], "automations_examples_block": "slack-webhook/alerts"}
    assert said(automations_allowed_hosts=allowed, **more) == []


def test_a_certificate_without_its_key(said, certificate, tmp_path):
    certificate(["ca.example.org"])
    assert said(host_journal_upload_certificate=str(tmp_path / "cert.pem")) == [
        "host_journal_upload_certificate and host_journal_upload_key go together: set both, or none"
    ]


def test_good_host_settings(said, certificate, tmp_path):
    certificate(["ca.example.org"])
    assert (
        said(
            host_timezone="Europe/Berlin",
            host_reboot_time="23:59",
            host_journal_max_size="500M",
            host_journal_upload_url="https://logs.example.org:19532",
            host_journal_upload_certificate=str(tmp_path / "cert.pem"),
            host_journal_upload_key=str(tmp_path / "key.pem"),
            watch_heartbeat_url="https://hc.example.org/abc",
            watch_datadog_api_key="0123456789abcdef0123456789abcdef",
            watch_datadog_site="datadoghq.eu",
            watch_datadog_url="http://127.0.0.1:8080/datadog",
            watch_datadog_flow_run_states=["Failed"],
            host_admin_keys=[KEY, f"{KEY} ada@laptop", f'from="10.0.0.0/8" {KEY}'],
            host_firewall_tcp_ports=[8443, "9000"],
            host_firewall_trusted_interfaces=["wg0", "eth0.100", "br-*"],
            host_cloud_metadata_users=["dd-agent", "_apt"],
            host_guessing_never_block=["203.0.113.7", "203.0.113.0/24", "2001:db8::/32"],
            host_extra_ca_certificates=[str(tmp_path / "cert.pem")],
        )
        == []
    )


@pytest.mark.parametrize(("setting", "least"), numbers.LEAST.items())
def test_numbers_that_are_too_small(said, setting, least):
    assert said(**{setting: least - 1}) == [f'{setting} is "{least - 1}"; it must be {least} or more']
    assert said(**{setting: least}) == []


# --- what is seen on the host ------------------------------------------------------------------------------------

TRIXIE = ["debian", "13", "Debian GNU/Linux 13 (trixie)", "x86_64", "/usr/bin/python3", "systemd"]


@pytest.mark.parametrize(
    ("line", "value", "problem"),
    [
        (1, "12", 'its system is "Debian GNU/Linux 13 (trixie)"; supported is Debian 13 (trixie)'),
        (3, "riscv64", 'its architecture is "riscv64"; supported are x86_64 and aarch64'),
        (4, "", "it has no python3, which Ansible needs; run there: apt-get install --yes python3"),
        (5, "init", 'its first process is "init"; it must be systemd'),
    ],
)
def test_a_system_that_is_not_supported(line, value, problem):
    seen = [*TRIXIE]
    seen[line] = value
    assert preflight_host.prefect_system_problems("\r\n".join(seen) + "\r\n") == [problem]


def test_supported_systems():
    assert preflight_host.prefect_system_problems("\n".join(TRIXIE)) == []
    assert preflight_host.prefect_system_problems("\n".join(TRIXIE).replace("x86_64", "aarch64")) == []


def test_a_system_that_says_nothing():
    assert preflight_host.prefect_system_problems("") == [
        'its system is "unknown"; supported is Debian 13 (trixie)',
        'its architecture is ""; supported are x86_64 and aarch64',
        'its first process is ""; it must be systemd',
        "it has no python3, which Ansible needs; run there: apt-get install --yes python3",
    ]


SEEN = {
    "memory_mb": 1967,
    "least_memory_mb": 1700,
    "free_gb": 20,
    "least_free_gb": 8,
    "installed": False,
    "password": "/home/ada/secrets/postgres_password",
    "password_exists": True,
    "accounts": "/home/ada/secrets/users",
    "accounts_exist": True,
    "others": ["config-files docker-ce", "disabled nftables.service", "not-found firewalld.service"],
    "containers": "wiki-1\twiki\t/srv/wiki\nprefect-server\tprefect\t/opt/prefect/compose\nrunner\t\t",
    "listeners": "",
    "ours": False,
    "keys": "ssh-ed25519 AAAA ada\n",
    "admin_keys": [],
    "login": "root@192.0.2.10",
    "domain_problem": "",
}
NGINX = '\n'.join((
    'LISTEN 0 511 0.0.0.0:80 0.0.0.0:* users:(("nginx",pid=700,fd=6),("nginx",pid=699,fd=6))',
    'LISTEN 0 511 [::]:80 [::]:* users:(("nginx",pid=700,fd=7),("nginx",pid=699,fd=7))',
    'LISTEN 0 5 *:443 *:*',
))  # fmt: skip


def test_a_host_that_can_carry_it():
    assert preflight_host.prefect_host_problems(SEEN) == []


@pytest.mark.parametrize(
    ("changes", "problems"),
    [
        ({"memory_mb": 967}, ["it has 967 MiB of memory; 1700 MiB are needed (preflight_min_memory_mb)"]),
        (
            {"free_gb": 3},
            ["3 GiB of disk space are free under /var/lib; 8 GiB are needed (preflight_min_free_disk_gb)"],
        ),
        ({"free_gb": 3, "installed": True}, []),
        ({"password_exists": False}, []),
        (
            {"password_exists": False, "installed": True},
            [
                'it has an install, but "/home/ada/secrets/postgres_password" is missing on this machine, so new passwords '
                "would be made; copy the secrets directory from where it was installed (prefect_secrets_dir)"
            ],
        ),
        ({"accounts_exist": False}, []),
        (
            {"accounts_exist": False, "installed": True},
            [
                'it has accounts, but "/home/ada/secrets/users" is missing on this machine, so all of them would get new passwords, '
                "and nobody be let in with the present ones; take it from the recovery kit (inventory/secrets/users), or, if you "
                "want that, make it, empty: mkdir /home/ada/secrets/users"
            ],
        ),
        (
            {"others": ["installed containerd.io", "installed docker-ce"]},
            [
                'it has Docker from elsewhere ("docker-ce", "containerd.io"), which Debian\'s docker.io would replace; '
                "remove it first (apt-get purge docker-ce containerd.io); its data in /var/lib/docker stays"
            ],
        ),
        (
            {"others": ["enabled nftables.service", "enabled-runtime firewalld.service"]},
            [
                "its nftables.service is enabled, whose rules are loaded beside the kit's, and whose start flushes "
                "Docker's; move them to host_firewall_tcp_ports, and run there: systemctl disable --now nftables",
                "its firewalld.service is enabled, whose rules are loaded beside the kit's, and close the kit's ports; "
                "move them to host_firewall_tcp_ports, and run there: systemctl disable --now firewalld",
            ],
        ),
        # What systemctl says of a host without the unit may also go to stderr.
        ({"others": [" nftables.service"]}, []),
        (
            {
                "containers": "prefect-api-1\tprefect\t/srv/prefect\nprefect-db-1\tprefect\t/srv/prefect\nprefect-caddy\t\t"
            },
            [
                'it has a container "prefect-caddy" that is not the kit\'s, whose own has that name; rename it (docker rename '
                "prefect-caddy prefect-caddy-other), or take another host",
                'it has a Compose project "prefect" in "/srv/prefect" that is not the kit\'s ("prefect-api-1", "prefect-db-1"), '
                "which the kit's project of that name would take over; give it another name (its containers are made "
                "again: docker compose --project-name), or take another host",
            ],
        ),
        (
            {"listeners": NGINX},
            [
                'port 80 is taken by "nginx" (process 700); find what it belongs to (systemctl status 700), and disable that',
                "port 443 is taken by a process that cannot be seen; find what it belongs to (ss -ltnp sport = :443), and "
                "disable that",
            ],
        ),
        ({"listeners": NGINX, "ours": True}, []),
        (
            {"keys": "# nothing\n"},
            [
                "it knows no ssh key of yours, and this playbook turns passwords off in sshd, which would lock you out; "
                "set host_admin_keys to your public keys, or run: ssh-copy-id root@192.0.2.10"
            ],
        ),
        ({"keys": "", "admin_keys": [KEY]}, []),
    ],
)
def test_a_host_that_cannot(changes, problems):
    assert preflight_host.prefect_host_problems({**SEEN, **changes}) == problems


def domain_problem(leads_to: list[str], host: str = "192.0.2.10", facts: tuple[str, ...] = ()) -> str:
    answer = {"servers": ["192.0.2.53"], "addresses": {"a.example.org": leads_to, host: [host]}, "silent": []}
    return preflight_host.prefect_domain_problem("a.example.org", answer, host, list(facts))


def test_a_domain_that_leads_elsewhere():
    problem = domain_problem(["192.0.2.7", "2001:db8::7"])
    assert preflight_host.prefect_host_problems({**SEEN, "domain_problem": problem}) == [
        '"a.example.org" (prefect_domain) resolves to 192.0.2.7, 2001:db8::7, not to this host (192.0.2.10; asked at '
        "192.0.2.53, this machine's name server), so no ACME authority would give it a certificate; set its DNS record and "
        "wait until it is seen, or go on all the same with -e preflight_dns_mismatch=warn (right behind NAT, where the public "
        "address is not the host's own), or choose prefect_tls: internal"
    ]
    assert "resolves to nothing, not to" in domain_problem([])


def test_a_domain_with_a_stale_address():
    assert domain_problem(["192.0.2.7", "2001:db8::7"], "192.0.2.7") == (
        '"a.example.org" (prefect_domain) also resolves to 2001:db8::7, which is not this host\'s (192.0.2.7; asked at '
        "192.0.2.53, this machine's name server), so an ACME authority may give it no certificate"
    )


def test_a_domain_that_leads_to_the_host():
    assert domain_problem(["192.0.2.7"], "10.0.0.4", ("10.0.0.4", "192.0.2.7")) == ""


def test_keys_that_were_not_looked_at_are_no_problem():
    assert preflight_host.prefect_host_problems({**SEEN, "keys": None}) == []
