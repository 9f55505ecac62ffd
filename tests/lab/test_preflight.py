"""The preflight: each refusal with its exact words, and the proof that it changed nothing, on the host and here.

On a VPS of its own that no playbook ever gets past the preflight of. Settings are refused before a host is connected
to, so one run looks at many inventories' worth of them: each host of that run is the same VPS with one thing wrong.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dns.resolver
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.lab.vps import inventory
from tests.lab.vps.images import LabImages
from tests.lab.vps.playbook import REPOSITORY, PlaybookRun, run_playbook
from tests.lab.vps.vps import Vps

NAME = "bare"
DOMAIN = "prefect.lab.test"
# No task has this tag: only what always runs does, which is the preflight.
PREFLIGHT_ONLY = ("--tags", "never-such-tag")
FATAL = re.compile(r"^fatal: \[(?P<host>[^\]]+)\]: FAILED! => *\n(?P<result>(?: {4}.*\n|\n)+)", re.MULTILINE)
# Every file of the root file system with its owner, rights, size and time of its last change of any kind (which
# nobody can set back); users, listeners, units, mounts. What the lab's Python keeps of Ansible's modules is left out; the
# first file there also changes the directories above it (overlayfs copies them up).
SNAPSHOT = r"""
touch /var/cache/prefect-lab-bytecode/first
find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /dev -o -path /var/log -o -path /var/cache/prefect-lab-bytecode \) -prune -o \
    -printf '%p %y %m %U %G %s %C@ %l\n' | sort
getent passwd; getent group; hostname; mount
ss --no-header --listening --numeric --tcp --udp
systemctl list-unit-files --no-legend | grep -v '^session-'
"""
NAME_WORDS = "a lower-case letter, then up to 30 lower-case letters, digits and hyphens"


# Whom this machine asks for names, as the refusal tells it.
SERVERS = dns.resolver.Resolver().nameservers
NAME_SERVERS = f"{' or '.join(SERVERS)}, this machine's name server{'s' if len(SERVERS) > 1 else ''}"


@dataclass(frozen=True)
class Case:
    """Settings with something wrong, and the problems that are said of them."""

    variables: dict[str, Any]
    problems: list[str]


@pytest.fixture(scope="module")
def bare(make_vps: Callable[..., Vps]) -> Vps:
    """A VPS as its provider hands it over."""
    return make_vps(NAME)


@pytest.fixture(scope="module")
def good(lab: LabImages) -> dict[str, Any]:
    """Settings that nothing is wrong with. What is downloaded is asked for in the tests of that alone."""
    return inventory.group_variables(DOMAIN, lab, {"preflight_unreachable": "ignore"})


@pytest.fixture
def write_inventory(bare: Vps, good: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """`write_inventory({host: variables}, **changes)`: hosts that are all the bare VPS, and settings for all of them."""

    def write(hosts: dict[str, dict[str, Any]] | None = None, **changes: Any) -> Path:
        directory = tmp_path / "inventory"
        (directory / "group_vars").mkdir(parents=True)
        all_hosts = {name: inventory.host_variables(bare) | own for name, own in (hosts or {NAME: {}}).items()}
        settings = {name: value for name, value in (good | changes).items() if value is not ...}
        (directory / "hosts.yml").write_text(yaml.safe_dump({"prefect": {"hosts": all_hosts}}))
        (directory / "group_vars" / "all.yml").write_text(yaml.safe_dump(settings))
        return directory

    return write


def state(vps: Vps, directory: Path) -> tuple[str, list[str]]:
    """What is on the VPS, and what is in the inventory's directory."""
    return vps.ssh(SNAPSHOT).stdout, sorted(str(path) for path in directory.rglob("*"))


@pytest.fixture
def preflight(bare: Vps) -> Callable[..., PlaybookRun]:
    """`preflight(inventory, *arguments)` runs site.yml, and fails the test when anything is not as it was before."""

    def run(directory: Path, *arguments: str) -> PlaybookRun:
        before = state(bare, directory)
        done = run_playbook(directory, "site.yml", *arguments, timeout=300)
        after = state(bare, directory)
        assert set(before[0].splitlines()) ^ set(after[0].splitlines()) == set()
        assert before[1] == after[1]
        assert done.recap["changed"] == 0 and done.recap["unreachable"] == 0, done.stdout
        return done

    return run


def refusals(run: PlaybookRun) -> dict[str, str]:
    """The words that each host was refused with."""
    return {
        found["host"]: yaml.safe_load(textwrap.dedent(found["result"]))["msg"] for found in FATAL.finditer(run.stdout)
    }


def refusal_of_settings(host: str, problems: list[str], directory: Path) -> str:
    listed = "".join(f"- {problem}\n" for problem in problems)
    return (
        f"Refusing to change {host}:\n{listed}Edit {directory}/group_vars/all.yml (or where you set it), and run the "
        "playbook again. Nothing has been changed."
    )


def refusal_of_host(host: str, *problems: str) -> str:
    listed = "".join(f"- {problem}\n" for problem in problems)
    return f"Refusing to change {host}:\n{listed}Nothing has been changed."


# --- settings ----------------------------------------------------------------------------------------------------


def certificate(directory: Path, name: str, days: int = 30) -> dict[str, Any]:
    """A certificate and its key, written to a new directory, as settings; `days` from now it ends."""
    directory.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (directory / "cert.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (directory / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return {
        "prefect_tls": "files",
        "prefect_tls_certificate": str(directory / "cert.pem"),
        "prefect_tls_key": str(directory / "key.pem"),
    }


def cases_of_the_proxy() -> dict[str, Case]:
    acme = {"prefect_tls": "acme"}
    no_domain = (
        "with prefect_tls acme it must be a DNS name in lower case, such as prefect.example.org (without a name of your "
        "own: prefect_tls: internal)"
    )
    return {
        "domain-empty": Case(
            {"prefect_domain": ""},
            [
                "prefect_domain is not set; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address"
            ],
        ),
        "domain-url": Case(
            {"prefect_domain": f"https://{DOMAIN}", **acme}, [f'prefect_domain is "https://{DOMAIN}"; {no_domain}']
        ),
        "domain-address": Case(
            {"prefect_domain": "192.0.2.10", **acme}, [f'prefect_domain is "192.0.2.10"; {no_domain}']
        ),
        "email": Case(
            {"prefect_email": "ops", **acme},
            ['prefect_email is "ops"; with prefect_tls acme it must be an e-mail address, such as ops@example.org'],
        ),
        "acme-directory": Case(
            {"prefect_acme_directory": "ca.example.org", **acme},
            ['prefect_acme_directory is "ca.example.org"; it must begin with https://'],
        ),
        "tls": Case({"prefect_tls": "none"}, ['prefect_tls is "none"; allowed are acme, internal and files']),
        "user-name": Case(
            {"prefect_users": [{"name": "Ada"}]},
            [f'prefect_users: the name "Ada" is not allowed; allowed is {NAME_WORDS}'],
        ),
        "user-twice": Case(
            {"prefect_users": [{"name": "ada"}, {"name": "ada", "kind": "service"}]},
            ['prefect_users: the name "ada" stands twice'],
        ),
        "user-reserved": Case(
            {"prefect_users": [{"name": "playbook"}]},
            ['prefect_users: the name "playbook" is reserved for the playbook and its workers'],
        ),
        "role": Case(
            {"prefect_users": [{"name": "ada", "role": "owner"}]},
            [
                'prefect_users, entry 1: role is "owner"; allowed are admin, operator, deployer, viewer, trigger and worker'
            ],
        ),
        "blocks": Case(
            {"prefect_workers_blocks": ["db-password"]},
            [
                'prefect_workers_blocks has "db-password"; it must be TYPE/NAME, such as secret/db-password, TYPE/* for all of a'
                " type, or *"
            ],
        ),
        "no-user": Case({"prefect_users": []}, ["prefect_users is empty; without a user nobody can log in"]),
    }


def cases_of_files(tmp_path: Path) -> dict[str, Case]:
    path = "with prefect_tls files it must be the absolute path of a PEM file on the control machine"
    other_key = certificate(tmp_path / "fits", DOMAIN)
    other_key["prefect_tls_key"] = certificate(tmp_path / "other-key", DOMAIN)["prefect_tls_key"]
    expired = certificate(tmp_path / "expired", DOMAIN, days=-1)
    begin, end = (datetime.now(UTC) + timedelta(days=days) for days in (-60, -1))
    other_name = certificate(tmp_path / "other-name", "other.lab.test")
    weak = tmp_path / "weak" / "users" / "admin"
    weak.parent.mkdir(parents=True)
    weak.write_text("password1\n")
    (tmp_path / "file").write_text("")
    of_certificate = 'prefect_tls_certificate is "{}"; that certificate'.format
    return {
        "files-missing": Case(
            {"prefect_tls": "files", "prefect_tls_certificate": "/nowhere/cert.pem"},
            [f'prefect_tls_certificate is "/nowhere/cert.pem"; {path}', f"prefect_tls_key is not set; {path}"],
        ),
        "files-other-key": Case(
            other_key,
            [
                f"{of_certificate(other_key['prefect_tls_certificate'])} does not belong to the key "
                f'"{other_key["prefect_tls_key"]}" (prefect_tls_key)'
            ],
        ),
        "files-expired": Case(
            expired,
            [
                f"{of_certificate(expired['prefect_tls_certificate'])} is valid from {begin:%Y-%m-%d} to "
                f"{end:%Y-%m-%d}, which is not now"
            ],
        ),
        "files-other-name": Case(
            other_name,
            [
                f'{of_certificate(other_name["prefect_tls_certificate"])} is for "other.lab.test", not for "{DOMAIN}" '
                "(prefect_domain)"
            ],
        ),
        "password": Case(
            {"prefect_secrets_dir": str(tmp_path / "weak")},
            [
                f'the password of "admin" in {weak} has 9 bytes; allowed are 16 to 72 (delete the file to have one '
                "generated)"
            ],
        ),
        "secrets-dir": Case(
            {"prefect_secrets_dir": str(tmp_path / "file" / "secrets")},
            [
                f'prefect_secrets_dir is "{tmp_path}/file/secrets"; it must be the absolute path of a directory on the '
                "control machine that you may write to (it is made when it is missing)"
            ],
        ),
        "flows": Case(
            {"flows_directory": str(tmp_path)},
            [
                f'flows_directory is "{tmp_path}"; it must be the absolute path of a directory on the control machine '
                f'with the file "{name}" in it'
                for name in ("prefect.yaml", "requirements.txt")
            ],
        ),
        "archive": Case(
            {"prefect_images_archive": "/nowhere/images.tar"},
            [
                'prefect_images_archive is "/nowhere/images.tar"; it must be empty, or the absolute path of a file on the '
                "control machine"
            ],
        ),
    }


def cases_of_versions_and_types() -> dict[str, Case]:
    drifted = {"prefect_version": "3.7.0", "prefect_image": "prefecthq/prefect:3.7.0-python3.13"}
    supported = 'this release of the kit supports "3.8.8" and "3.9.1"'
    return {
        "version": Case(
            {**drifted},
            [f'prefect_version is "3.7.0"; {supported}'],
        ),
        "image-drifted": Case(
            {"prefect_image": drifted["prefect_image"]},
            [f'prefect_image is "prefecthq/prefect:3.7.0-python3.13", which is Prefect "3.7.0"; {supported}'],
        ),
        "image-unpinned": Case(
            {"prefect_caddy_image": "caddy:latest"},
            ['prefect_caddy_image is "caddy:latest"; it must be pinned by a tag other than latest, or by a digest'],
        ),
        "image-postgres": Case(
            {"prefect_postgres_image": "postgres:16.4"},
            [
                'prefect_postgres_image is "postgres:16.4"; it must be of Postgres 17 or 18'
            ],
        ),
        "unknown": Case(
            {"prefect_domian": DOMAIN}, ['there is no setting "prefect_domian"; did you mean "prefect_domain"?']
        ),
        "type": Case(
            {"prefect_runs_retention_days": "a while"},
            ['prefect_runs_retention_days is "a while"; it must be a whole number'],
        ),
        "type-of-number": Case(
            {"prefect_version": 3.8},
            ['prefect_version is the value "3.8" without quotes; it must be text, so write it in quotes'],
        ),
        "key": Case(
            {"prefect_workers": [{"name": "a", "pool": "general", "limits": 4}]},
            ['prefect_workers, entry 1: there is no key "limits"; allowed are name, pool, queues, limit, health_port, blocks, deployments, write_variables, environment, secrets, memory_max, cpu_weight and devices'],
        ),
        "retention": Case({"prefect_events_retention_days": 0}, ['prefect_events_retention_days is "0"; it must be 1 or more']),
    }  # fmt: skip


def cases_of_workers_and_host() -> dict[str, Case]:
    worker = {"name": "a", "pool": "general"}
    return {
        "worker-pool": Case(
            {"prefect_workers": [{"name": "a", "pool": "gpu"}]},
            ['prefect_workers: worker "a": its pool is "gpu"; prefect_work_pools has "general"'],
        ),
        "worker-queue": Case(
            {"prefect_workers": [{**worker, "queues": ["urgent"]}]},
            [
                'prefect_workers: worker "a": its queue is "urgent"; the pool "general" has "default", "high" and "low"',
            ],
        ),
        "worker-twice": Case({"prefect_workers": [worker, worker]}, ['prefect_workers: the name "a" stands twice']),
        "worker-limit": Case(
            {"prefect_workers": [{**worker, "limit": 0}]},
            ['prefect_workers: worker "a": its limit is "0"; it must be 1 or more'],
        ),
        "pool-priority": Case(
            {
                "prefect_work_pools": [
                    {"name": "general", "queues": [{"name": "a", "priority": 1}, {"name": "b", "priority": 1}]}
                ]
            },
            [
                'prefect_work_pools: pool "general": two queues have the priority "1"; Prefect keeps one queue at each',
            ],
        ),
        "no-pool": Case(
            {"prefect_work_pools": [], "prefect_workers": []},
            ["prefect_work_pools is empty; without a work pool no flow runs"],
        ),
        "timezone": Case(
            {"host_timezone": "Berlin"},
            ['host_timezone is "Berlin"; it must be a name such as Europe/Berlin or Etc/UTC'],
        ),
        "reboot-time": Case(
            {"host_reboot_time": "3am"}, ['host_reboot_time is "3am"; it must be a time such as 03:30']
        ),
        "several": Case(
            {
                "prefect_domain": "x",
                "prefect_tls": "internal",
                "host_timezone": "Berlin",
                "prefect_domian": "y",
                "prefect_users": "ada",
                "docker_pool_memory": "1",
            },
            [
                'there is no setting "prefect_domian"; did you mean "prefect_domain"?',
                'prefect_users is "ada"; it must be a list',
                'prefect_domain is "x"; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address',
                'host_timezone is "Berlin"; it must be a name such as Europe/Berlin or Etc/UTC',
                'docker_pool_memory is "1"; it must be a size from 256m up, such as 512m or 2g',
            ],
        ),
    }


def test_bad_settings(preflight, write_inventory, tmp_path):
    cases = {
        **cases_of_the_proxy(),
        **cases_of_files(tmp_path),
        **cases_of_versions_and_types(),
        **cases_of_workers_and_host(),
    }
    directory = write_inventory({name: case.variables for name, case in cases.items()})
    run = preflight(directory)
    assert run.returncode == 2
    said = refusals(run)
    wanted = {name: refusal_of_settings(name, case.problems, directory) for name, case in cases.items()}
    for name in wanted:
        assert said.get(name) == wanted[name]
    assert said.keys() == wanted.keys()
    # Not one task before it: none of the hosts has been connected to.
    assert all(run.hosts[name]["ok"] == 0 and run.hosts[name]["failed"] == 1 for name in wanted)


def test_a_missing_domain_stops_a_whole_run_at_its_first_task(preflight, write_inventory):
    directory = write_inventory(prefect_domain=...)
    run = preflight(directory)
    assert run.returncode == 2
    assert refusals(run) == {
        NAME: refusal_of_settings(
            NAME,
            [
                "prefect_domain is not set; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address"
            ],
            directory,
        )
    }
    assert re.findall(r"^TASK \[(.*)\]", run.stdout, re.MULTILINE) == [
        "There is a host to provision",
        "preflight : Refuse settings that are missing or wrong",
    ]
    assert run.hosts[NAME]["ok"] == 0


def test_a_setting_on_the_command_line(preflight, write_inventory):
    """`-e` gives text for everything."""
    directory = write_inventory()
    run = preflight(directory, "-e", "prefect_runs_retention_days=0", "-e", "prefect_workers=none")
    problems = [
        'prefect_workers is "none"; it must be a list',
        'prefect_runs_retention_days is "0"; it must be 1 or more',
    ]
    assert refusals(run)[NAME] == refusal_of_settings(NAME, problems, directory)
    assert run.returncode == 2


# --- the inventory -----------------------------------------------------------------------------------------------


def test_passwords_beside_the_inventory_are_not_taken_for_hosts(write_inventory):
    directory = write_inventory()
    (directory / "secrets" / "users").mkdir(parents=True)
    (directory / "secrets" / "users" / "admin").write_text("0123456789abcdef\n")
    (directory / "ca.crt").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    listed = run_playbook(directory, "site.yml", "--list-hosts")
    assert "hosts (1):\n      bare\n" in listed.stdout
    assert "WARNING" not in listed.stdout
    # Which is why a run without that configuration is refused.
    program = [REPOSITORY / ".venv/bin/ansible-playbook", "-i", directory, REPOSITORY / "ansible/site.yml"]
    environment = {name: value for name, value in os.environ.items() if name != "ANSIBLE_CONFIG"}
    done = subprocess.run(program, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    run = PlaybookRun(done.returncode, done.stdout, 0)
    ansible = REPOSITORY / "ansible"
    assert (
        f"Refusing to change {NAME}: Ansible has not read the kit's ansible.cfg, and without it takes the passwords beside "
        f"the inventory for names of hosts. Run it in the directory {ansible}, or with ANSIBLE_CONFIG={ansible}/ansible.cfg. "
        "Nothing has been changed."
    ) in run.joined.replace('"', "")
    assert run.hosts[NAME]["ok"] == run.recap["changed"] == 0


# --- the host ----------------------------------------------------------------------------------------------------


@contextmanager
def meanwhile(vps: Vps, command: str, undo: str) -> Iterator[None]:
    """Something is done to the VPS, and undone in the end."""
    try:
        vps.ssh(command)
        yield
    finally:
        vps.ssh(undo)


def test_a_host_that_fits_is_let_through(preflight, write_inventory):
    run = preflight(write_inventory(preflight_unreachable="refuse"), *PREFLIGHT_ONLY)
    assert run.returncode == 0, run.stdout
    assert run.recap["failed"] == 0


def test_the_first_contact(bare, preflight, write_inventory, tmp_path):
    """A host key that is not known, a key that is not accepted, a port that nobody listens at: all three at once."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    # Not by the connection that an earlier run has left open.
    args = inventory.host_variables(bare)["ansible_ssh_common_args"] + " -o ControlPath=none"
    run = preflight(
        write_inventory(
            {
                "unknown": {"ansible_ssh_common_args": args.replace(str(bare.known_hosts), "/dev/null")},
                "other-key": {
                    "ansible_ssh_common_args": args,
                    "ansible_ssh_private_key_file": str(tmp_path / "other"),
                },
                "nobody": {"ansible_ssh_common_args": args, "ansible_port": 9},
            }
        )
    )
    where, ssh = f'"{bare.address}" (ansible_host of ', f"ssh root@{bare.address}"
    assert refusals(run) == {
        "unknown": refusal_of_host(
            "unknown",
            f"this machine does not know the host key of {where}unknown) yet. Log in once by hand: {ssh}, compare the "
            "fingerprint with the one that your provider shows, and answer yes",
        ),
        "other-key": refusal_of_host(
            "other-key",
            f'{where}other-key) accepts no ssh key of yours for the user "root". Give it one: ssh-copy-id root@{bare.address}, '
            "or name the right user and key in hosts.yml (ansible_user, ansible_ssh_private_key_file), until this works: "
            f"{ssh}",
        ),
        "nobody": refusal_of_host(
            "nobody",
            f"nothing lets this machine in at port 9 of {where}nobody) (Connection refused). Is the address right "
            "(ansible_host in hosts.yml), is the server up, does a firewall of your provider's let port 9 through? Try: "
            f"ssh -p 9 root@{bare.address}",
        ),
    }
    assert run.returncode == 2


def test_no_way_out_and_an_archive_of_something_else(bare, preflight, write_inventory, tmp_path):
    """What is downloaded is asked for first; which index and which mirrors those are, this file must not say."""
    (tmp_path / "images.tar").write_text("none")
    deaf = "printf 'nameserver 127.0.0.1\n' > /run/deaf && mount --bind /run/deaf /etc/resolv.conf"
    with meanwhile(bare, deaf, "umount /etc/resolv.conf"):
        run = preflight(
            write_inventory(
                {
                    "registry": {"prefect_images_archive": ""},
                    "archive": {"prefect_images_archive": f"{tmp_path}/images.tar"},
                },
                preflight_unreachable="refuse",
            )
        )
    said = {host: words.splitlines() for host, words in refusals(run).items()}
    images = (
        '- it cannot download images from "registry-1.docker.io": that name does not resolve there; let it through, or set '
        "prefect_images_archive to an archive of the images, or registry-mirrors or proxies in docker_daemon_settings"
    )
    archive = (
        f'- prefect_images_archive is "{tmp_path}/images.tar"; that file is no archive as docker save writes it; make it with: '
        "docker save --output FILE IMAGE…"
    )
    assert images in said["registry"] and archive in said["archive"]
    for host in said:
        words = "\n".join(said[host])
        assert re.search(
            r'^- it cannot download Python packages from "\S+": that name does not resolve there; let it through, or name an '
            r"index that it reaches as index-url in its /etc/pip.conf and /etc/uv/uv.toml$",
            words,
            re.MULTILINE,
        )
        assert re.search(r'^- it cannot download Debian\'s packages from "\S+": ', words, re.MULTILINE), words
    assert run.returncode == 2


def test_a_check_of_a_bare_host_is_a_list(preflight, write_inventory):
    """Ansible's check mode needs tools on the host that site.yml has not brought there yet."""
    run = preflight(write_inventory(), "--check", "--diff")
    assert run.returncode == 0, run.stdout
    said = run.joined
    assert (
        f"No installation has reached its end on {NAME} yet, and a check (--check) compares with what is installed."
        in said
    )
    assert (
        "- host: take passwords out of sshd, let in the user ops by key, close all TCP ports but 22, 80, 443, " in said
    )
    assert "- checks: run a smoke flow, and make the first backup" in said
    assert run.recap["failed"] == 0


def test_too_little_memory_too_little_disk_and_a_domain_that_leads_elsewhere(bare, preflight, write_inventory):
    run = preflight(
        write_inventory(
            {
                "memory": {"preflight_min_memory_mb": 999999},
                "disk": {"preflight_min_free_disk_gb": 999999},
                "domain": {"prefect_tls": "acme"},
            }
        )
    )
    memory = int(bare.ssh("grep MemTotal /proc/meminfo").stdout.split()[1]) // 1024
    said = refusals(run)
    free = int(re.search(r"(\d+) GiB of disk", said["disk"])[1])
    assert abs(free - int(bare.ssh("df --block-size=1G --output=avail /var/lib | tail -1").stdout)) <= 1
    assert said == {
        "memory": refusal_of_host(
            "memory", f"it has {memory} MiB of memory; 999999 MiB are needed (preflight_min_memory_mb)"
        ),
        "disk": refusal_of_host(
            "disk",
            f"{free} GiB of disk space are free under /var/lib; 999999 GiB are needed (preflight_min_free_disk_gb)",
        ),
        "domain": refusal_of_host(
            "domain",
            f'"{DOMAIN}" (prefect_domain) resolves to nothing, not to this host ({bare.address}; asked at {NAME_SERVERS}), so no '
            "ACME authority would give it a certificate; set its DNS record and wait until it is seen, or go on all the same with "
            "-e preflight_dns_mismatch=warn (right behind NAT, where the public address is not the host's own), or choose "
            "prefect_tls: internal",
        ),
    }
    assert run.returncode == 2


def test_a_domain_that_leads_elsewhere_can_be_gone_on_with(bare, preflight, write_inventory):
    run = preflight(write_inventory(prefect_tls="acme"), "-e", "preflight_dns_mismatch=warn", *PREFLIGHT_ONLY)
    assert run.returncode == 0, run.stdout
    assert (
        f'WARNING: "{DOMAIN}" (prefect_domain) resolves to nothing, not to this host ({bare.address}; asked at {NAME_SERVERS}), '
        "so no ACME authority would give it a certificate. Going on, as preflight_dns_mismatch says."
    ) in run.joined


def test_a_port_that_another_process_has(bare, preflight, write_inventory):
    start = (
        "mkdir -p /run/empty && systemd-run --quiet --collect --unit=somebody python3 -m http.server 443 --directory "
        "/run/empty && "
        "timeout 10 sh -c 'until ss -Hltn sport = :443 | grep -q 443; do sleep 0.1; done'"
    )
    with meanwhile(bare, start, "systemctl stop somebody"):
        process = bare.ssh("systemctl show --property MainPID --value somebody").stdout.strip()
        run = preflight(write_inventory())
    assert refusals(run) == {
        NAME: refusal_of_host(
            NAME,
            f'port 443 is taken by "python3" (process {process}); find what it belongs to (systemctl status {process}), '
            "and disable that",
        )
    }
    assert run.returncode == 2


def test_a_user_without_a_key_would_be_locked_out(bare, preflight, write_inventory):
    """sshd takes a second file of keys by default: so the lab gets in, and the user has no key that lasts."""
    keys = "/root/.ssh/authorized_keys"
    with meanwhile(bare, f"mv {keys} {keys}2", f"mv {keys}2 {keys}"):
        run = preflight(write_inventory())
    assert refusals(run) == {
        NAME: refusal_of_host(
            NAME,
            "it knows no ssh key of yours, and this playbook turns passwords off in sshd, which would lock you out; set "
            f"host_admin_keys to your public keys, or run: ssh-copy-id root@{bare.address}",
        )
    }
    assert run.returncode == 2


def test_an_install_without_its_secrets_another_docker_and_another_firewall(bare, preflight, write_inventory):
    """No Docker is at hand: a program in dpkg-query's place says what it would say."""
    query = "printf '#!/bin/sh\\necho installed docker-ce\\n' > /usr/local/bin/dpkg-query && chmod +x /usr/local/bin/dpkg-query"
    unit = "/etc/systemd/system/nftables.service"
    service = f"printf '[Service]\\nExecStart=true\\n[Install]\\nWantedBy=sysinit.target\\n' > {unit}"
    install = "mkdir -p /opt/prefect/compose && touch /opt/prefect/compose/compose.yml"
    undo = f"systemctl disable nftables; rm -rf {unit} /usr/local/bin/dpkg-query /opt/prefect"
    with meanwhile(bare, f"{query} && {service} && systemctl enable nftables && {install}", undo):
        directory = write_inventory()
        run = preflight(directory)
    assert refusals(run) == {
        NAME: refusal_of_host(
            NAME,
            f'it has an install, but "{directory}/secrets/postgres_password" is missing on this machine, so new passwords '
            "would be made; copy the secrets directory from where it was installed (prefect_secrets_dir)",
            'it has Docker from elsewhere ("docker-ce"), which Debian\'s docker.io would replace; remove it first '
            "(apt-get purge docker-ce); its data in /var/lib/docker stays",
            "its nftables.service is enabled, whose rules are loaded beside the kit's, and whose start flushes Docker's; "
            "move them to host_firewall_tcp_ports, and run there: systemctl disable --now nftables",
        )
    }
    assert run.returncode == 2


def test_a_compose_project_of_somebody_elses(bare, preflight, write_inventory):
    """No Docker is at hand here either; what this asks of it, the lab's other VPSs answer."""
    program = "#!/bin/sh\nprintf 'db-1\\tprefect\\t/srv/prefect\\nwiki-1\\twiki\\t/srv/wiki\\n'\n"
    with meanwhile(
        bare,
        f"cat > /usr/local/bin/docker <<'E'\n{program}E\nchmod +x /usr/local/bin/docker",
        "rm /usr/local/bin/docker",
    ):
        run = preflight(write_inventory())
    assert refusals(run) == {
        NAME: refusal_of_host(
            NAME,
            'it has a Compose project "prefect" in "/srv/prefect" that is not the kit\'s ("db-1"), which the kit\'s '
            "project of that name would take over; give it another name (its containers are made again: docker compose "
            "--project-name), or take another host",
        )
    }
    assert run.returncode == 2


def test_another_system(bare, preflight, write_inventory):
    other = "printf 'ID=debian\\nVERSION_ID=12\\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\\n' > /run/os-release"
    with meanwhile(bare, f"{other} && mount --bind /run/os-release /etc/os-release", "umount /etc/os-release"):
        run = preflight(write_inventory())
    assert refusals(run) == {
        NAME: refusal_of_host(NAME, 'its system is "Debian GNU/Linux 12 (bookworm)"; supported is Debian 13 (trixie)')
    }
    assert run.returncode == 2


def test_another_architecture_without_python(bare, preflight, write_inventory):
    """No such machine is at hand: a program of that name says what one would say."""
    uname = "printf '#!/bin/sh\\necho armv7l\\n' > /usr/local/bin/uname && chmod +x /usr/local/bin/uname"
    hide, show = "mv /usr/bin/python3 /usr/bin/python3.hidden", "mv /usr/bin/python3.hidden /usr/bin/python3"
    with meanwhile(bare, f"{uname} && {hide}", f"rm -f /usr/local/bin/uname; {show}"):
        run = preflight(write_inventory())
    assert refusals(run) == {
        NAME: refusal_of_host(
            NAME,
            'its architecture is "armv7l"; supported are x86_64 and aarch64',
            "it has no python3, which Ansible needs; run there: apt-get install --yes python3",
        )
    }
    assert run.returncode == 2
