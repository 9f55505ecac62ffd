"""What a host reaches before a first installation: real servers on loopback, and each refusal with its exact text."""

from __future__ import annotations

import importlib.util
import io
import json
import socket
import ssl
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from types import ModuleType
from typing import Any

import dns.message
import dns.resolver
import dns.rrset
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ANSIBLE = Path(__file__).resolve().parents[2] / "ansible"


def load(path: str) -> ModuleType:
    # Two files have the same name, in library/ and in filter_plugins/.
    spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ANSIBLE / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


module = load("library/prefect_reach.py")
reach = load("filter_plugins/prefect_reach.py")
lookup = load("lookup_plugins/prefect_dns.py")
host = load("filter_plugins/prefect_host.py")


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/slow/"):
            threading.Event().wait(1)
        status = int(self.path.strip("/").partition("/")[0] or 200) if self.path[1:4].isdigit() else 200
        self.send_response(status)
        self.end_headers()
        self.wfile.write(f'<html><a href="{self.server.link}#sha256=00">uv.whl</a></html>'.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def authority(tmp_path) -> tuple[str, Path]:
    """The certificate (PEM) of a server on 127.0.0.1 that is its own authority, and the file with it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Inspection of Example Ltd")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    file = tmp_path / "server.pem"
    file.write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return pem.decode(), file


@pytest.fixture
def serve(authority) -> Iterator[Callable[..., str]]:
    """`serve(tls=True, link="")` gives the address of a server that answers /503/… with 503 and all else with a page."""
    servers = []

    def start(tls: bool = True, link: str = "file") -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        server.link = link
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(authority[1])
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def asking(authority, monkeypatch) -> Callable[..., Any]:
    """`asking(trust=True)`: as a host that trusts the authority, or one that does not, without waiting between tries."""
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return lambda trust=True, timeout=3, patience=3: module.Asking(
        module.trusting([authority[0]] if trust else []), timeout, patience
    )


def closed_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def test_a_registry_that_answers(serve, asking):
    url = serve()
    assert asking().endpoint("registry", [f"{url}/v2/"]) == []
    # Docker Hub's answer to whoever has not logged in.
    assert asking().endpoint("registry", [f"{url}/401/"]) == []


def test_one_mirror_that_answers_is_enough(serve, asking):
    urls = [f"https://127.0.0.1:{closed_port()}/v2/", f"{serve()}/v2/"]
    assert asking().endpoint("registry", urls) == []


def test_a_registry_that_does_not_answer(asking):
    (wrong,) = asking().endpoint("registry", [f"https://127.0.0.1:{closed_port()}/v2/"])
    assert reach.prefect_reach_problems([wrong]) == [
        'it cannot download images from "127.0.0.1": Connection refused; let it through, or set prefect_images_archive to an archive '
        "of the images, or registry-mirrors or proxies in docker_daemon_settings"
    ]


def test_an_index_with_an_error_and_a_name_that_is_none(serve, asking):
    wrong = asking().index(f"{serve()}/503", "uv")
    (name,) = asking().endpoint("acme", ["https://nowhere.invalid/directory"])
    assert reach.prefect_reach_problems([*wrong, name]) == [
        'it cannot download Python packages from "127.0.0.1": it answers 503 Service Unavailable; let it through, or name an index '
        "that it reaches as index-url in its /etc/pip.conf and /etc/uv/uv.toml",
        'it cannot ask for a certificate at "nowhere.invalid" (prefect_acme_directory): that name does not resolve there; let '
        "it through, or choose prefect_tls: internal or files",
    ]


def test_an_index_whose_files_are_elsewhere_and_out_of_reach(serve, asking):
    port = closed_port()
    (wrong,) = asking().index(serve(link=f"https://127.0.0.1:{port}/uv.whl"), "uv")
    assert (wrong["name"], wrong["kind"], wrong["text"]) == ("index", "way", "Connection refused")
    assert asking().index(serve(), "uv") == []


def test_a_server_that_says_nothing(asking):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        (wrong,) = asking(timeout=0.5, patience=1).endpoint(
            "registry", [f"https://127.0.0.1:{silent.getsockname()[1]}/v2/"]
        )
    assert (wrong["kind"], wrong["text"]) == ("way", "no answer within 1 s")


def test_an_index_that_is_only_slow(serve, asking):
    url = serve()
    assert asking(timeout=0.3, patience=5).endpoint("registry", [f"{url}/slow/"]) == []


def test_a_network_that_inspects_tls(serve, asking):
    url = serve()
    wrong = asking(trust=False).endpoint("registry", [f"{url}/v2/"]) + asking(trust=False).index(url, "uv")
    assert reach.prefect_reach_problems(wrong) == [
        'it does not trust the certificates that it is shown for "127.0.0.1", made by "CN=Inspection of Example Ltd"; if '
        "that is your company's inspection of TLS, put the authority's PEM file into host_extra_ca_certificates"
    ]


def test_a_mirror_that_apt_cannot_use():
    wrong = {"name": "mirror", "host": "deb.example.org", "kind": "apt", "text": "Failed to fetch x", "certificate": ""}
    assert reach.prefect_reach_problems([wrong]) == [
        'it cannot download Debian\'s packages from "deb.example.org": Failed to fetch x; let it through, or name a mirror that it '
        "reaches in its /etc/apt/sources.list.d (a proxy: /etc/apt/apt.conf.d)"
    ]


def test_the_index_is_the_one_that_the_host_is_told(tmp_path):
    assert module.indexes("https://default/simple", tmp_path, {}) == ["https://default/simple"]
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://ours/simple\n")
    assert module.indexes("https://default/simple", tmp_path, {}) == ["https://ours/simple", "https://default/simple"]
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv/uv.toml").write_text('[[index]]\nurl = "https://ours/simple"\ndefault = true\n')
    assert module.indexes("https://default/simple", tmp_path, {}) == ["https://ours/simple"]
    assert module.indexes("x", tmp_path, {"PIP_INDEX_URL": "file:///srv", "UV_DEFAULT_INDEX": "https://uv/"}) == [
        "https://uv/"
    ]


def test_pip_tells_its_own_index():
    assert reach.prefect_package_index().startswith("https://")


# --- what is asked ---------------------------------------------------------------------------------------------------

PLAN: dict[str, Any] = {
    "prefect_image": "prefecthq/prefect:3.8.8-python3.13",
    "prefect_postgres_image": "postgres:17.12-trixie",
    "prefect_caddy_image": "registry.example.org:5000/caddy:2.11.7",
    "prefect_images_archive": "",
    "prefect_tls": "internal",
    "prefect_acme_directory": "https://acme.example.org/directory",
    "docker_daemon_settings": {},
}
HUB = f"https://{reach.DOCKER_HUB}/v2/"


@pytest.mark.parametrize(
    ("changes", "asked"),
    [
        ({}, [[HUB], ["https://registry.example.org:5000/v2/"]]),
        ({"prefect_images_archive": "/srv/images.tar"}, []),
        (
            {"prefect_images_archive": "/srv/images.tar", "prefect_tls": "acme"},
            [["https://acme.example.org/directory"]],
        ),
        (
            {"docker_daemon_settings": {"registry-mirrors": ["https://mirror.example.org/"]}},
            [["https://mirror.example.org/v2/", HUB], ["https://registry.example.org:5000/v2/"]],
        ),
        ({"docker_daemon_settings": {"insecure-registries": ["registry.example.org:5000"]}}, [[HUB]]),
    ],
)
def test_what_a_first_installation_downloads_from(changes, asked):
    assert [each["urls"] for each in reach.prefect_endpoints({**PLAN, **changes})] == asked


def test_dockers_proxy_is_used_for_images():
    plan = {**PLAN, "docker_daemon_settings": {"proxies": {"https-proxy": "http://proxy:3128"}}}
    assert {each["proxy"] for each in reach.prefect_endpoints(plan)} == {"http://proxy:3128"}


# --- the archive of the images -----------------------------------------------------------------------------------------


def read_archive(path: Path) -> dict[str, Any]:
    """As roles/preflight/tasks/server.yml does."""
    command = ["tar", "--extract", "--to-stdout", "--file", str(path), "manifest.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    return {"rc": done.returncode, "stdout": done.stdout, "stderr": done.stderr}


@pytest.fixture
def archive(tmp_path) -> Callable[..., Path]:
    def write(tags: list[str] | None, text: str | None = None) -> Path:
        """With neither tags nor text: without a manifest."""
        path = tmp_path / "images.tar.gz"
        with tarfile.open(path, "w:gz") as made:
            content = (text or json.dumps([{"RepoTags": [tag]} for tag in tags or []])).encode()
            entry = tarfile.TarInfo("manifest.json" if tags or text else "other")
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
        return path

    return write


HELD = ["prefecthq/prefect:3.8.8-python3.13", "docker.io/library/postgres:17.12-trixie", "caddy:2.11.7"]
IMAGES = {**PLAN, "prefect_caddy_image": "caddy:2.11.7"}


def test_an_archive_that_holds_the_images(archive):
    path = str(archive(HELD))
    assert reach.prefect_archive_problem(read_archive(path), {**IMAGES, "prefect_images_archive": path}) == ""
    pinned = {**IMAGES, "prefect_images_archive": path, "prefect_caddy_image": "caddy@sha256:" + "0" * 64}
    assert reach.prefect_archive_problem(read_archive(path), pinned) == ""


def test_an_archive_of_other_images(archive):
    path = str(archive([*HELD[:2], "caddy:2.10.0"]))
    assert reach.prefect_archive_problem(read_archive(path), {**IMAGES, "prefect_images_archive": path}) == (
        f'prefect_images_archive is "{path}"; it holds "caddy:2.10.0", "postgres:17.12-trixie" and '
        '"prefecthq/prefect:3.8.8-python3.13", and not "caddy:2.11.7" (prefect_caddy_image); make it with: docker save '
        "--output FILE IMAGE…"
    )


def test_files_that_are_no_archive_of_images(archive, tmp_path):
    words = "that file is no archive as docker save writes it; make it with: docker save --output FILE IMAGE…"
    (tmp_path / "note.txt").write_text("images")
    for path in (archive(None), tmp_path / "note.txt"):
        said = reach.prefect_archive_problem(read_archive(path), {**IMAGES, "prefect_images_archive": str(path)})
        assert said == f'prefect_images_archive is "{path}"; {words}'
    path = archive(None, "not json")
    assert reach.prefect_archive_problem(read_archive(path), {**IMAGES, "prefect_images_archive": str(path)}) == (
        f'prefect_images_archive is "{path}"; its manifest.json is not one of docker save'
    )


def test_an_archive_that_this_machine_cannot_uncompress_is_left_to_the_host():
    said = {"rc": 2, "stdout": "", "stderr": "tar (child): zstd: Cannot exec: No such file or directory"}
    assert reach.prefect_archive_problem(said, IMAGES) == ""


# --- name servers ------------------------------------------------------------------------------------------------------


@pytest.fixture
def name_server() -> Iterator[Callable[[dict[tuple[str, str], list[str]]], dns.resolver.Resolver]]:
    """`name_server({("a.test", "A"): ["192.0.2.1"]})`: a resolver that asks a real server on loopback."""
    sockets = []

    def start(zone: dict[tuple[str, str], list[str]]) -> dns.resolver.Resolver:
        listening = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listening.bind(("127.0.0.1", 0))
        sockets.append(listening)

        def answer() -> None:
            while True:
                try:
                    wire, client = listening.recvfrom(4096)
                except OSError:
                    return
                query = dns.message.from_wire(wire)
                reply = dns.message.make_response(query)
                question = query.question[0]
                name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
                if (name, kind) in zone:
                    reply.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *zone[name, kind]))
                elif not any(known == name for known, _ in zone):
                    reply.set_rcode(dns.rcode.NXDOMAIN)
                listening.sendto(reply.to_wire(), client)

        threading.Thread(target=answer, daemon=True).start()
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], listening.getsockname()[1]
        return resolver

    yield start
    for each in sockets:
        each.close()


def test_names_are_looked_up_and_it_is_told_where(name_server):
    resolver = name_server({("a.test", "A"): ["192.0.2.7"], ("a.test", "AAAA"): ["2001:db8::7"]})
    assert lookup.resolve(["a.test", "b.test", "192.0.2.1"], resolver) == {
        "servers": ["127.0.0.1"],
        "addresses": {"a.test": ["192.0.2.7", "2001:db8::7"], "b.test": [], "192.0.2.1": ["192.0.2.1"]},
        "silent": [],
    }


def test_a_name_server_that_does_not_answer_takes_no_longer_than_it_may():
    resolver = dns.resolver.Resolver(configure=False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        resolver.nameservers, resolver.port = ["127.0.0.1"], deaf.getsockname()[1]
        answer = lookup.resolve(["a.test", "b.test"], resolver, seconds=0.3)
    assert answer["silent"] == ["a.test", "b.test"]
    assert lookup.SECONDS < 10
    assert host.prefect_domain_problem("a.test", answer, "b.test", []) == (
        '"a.test" (prefect_domain) cannot be looked up: no answer from 127.0.0.1, this machine\'s name server'
    )


def test_a_machine_without_a_name_server():
    answer = {"servers": [], "addresses": {"a.test": []}, "silent": ["a.test"]}
    assert host.prefect_domain_problem("a.test", answer, "a.test", []) == (
        '"a.test" (prefect_domain) cannot be looked up: this machine has no name server (/etc/resolv.conf)'
    )


# --- the first contact -------------------------------------------------------------------------------------------------

LOGIN = "root@192.0.2.10"
WHERE = '"192.0.2.10" (ansible_host of prefect-1)'


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            "Failed to connect to the host via ssh: No ED25519 host key is known for 192.0.2.10 and you have requested "
            "strict checking.\nHost key verification failed.",
            f"this machine does not know the host key of {WHERE} yet. Log in once by hand: ssh root@192.0.2.10, compare the "
            "fingerprint with the one that your provider shows, and answer yes",
        ),
        (
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nHost key verification failed.",
            f"the host key of {WHERE} is another one than this machine remembers. Has the server been reinstalled? Then run: "
            "ssh-keygen -R 192.0.2.10, and log in once by hand: ssh root@192.0.2.10. If not, do not connect: somebody may "
            "answer in its place",
        ),
        (
            "Failed to connect to the host via ssh: root@192.0.2.10: Permission denied (publickey).",
            f'{WHERE} accepts no ssh key of yours for the user "root". Give it one: ssh-copy-id root@192.0.2.10, or name the '
            "right user and key in hosts.yml (ansible_user, ansible_ssh_private_key_file), until this works: ssh root@192.0.2.10",
        ),
        (
            "ssh: connect to host 192.0.2.10 port 22: No route to host",
            f"nothing lets this machine in at port 22 of {WHERE} (No route to host). Is the address right (ansible_host in "
            "hosts.yml), is the server up, does a firewall of your provider's let port 22 through? Try: ssh root@192.0.2.10",
        ),
        (
            "ssh: Could not resolve hostname prefect-1: Name or service not known",
            f"{WHERE} does not resolve on this machine. Set ansible_host in hosts.yml to an address that this works with: ssh "
            "root@192.0.2.10",
        ),
        (
            "non-zero return code sudo: a password is required",
            "the user that Ansible logs in as (ansible_user) may not use sudo there without a password. Run it with "
            "--ask-become-pass, log in as root (ansible_user: root), or let that user use sudo",
        ),
        ("kex error", "it cannot be logged in to: kex error. Try: ssh root@192.0.2.10"),
    ],
)
def test_the_words_for_a_host_that_lets_nobody_in(said, problem):
    assert reach.prefect_connection_problem({"unreachable": True, "msg": said}, LOGIN, 22, "prefect-1") == problem
    # sudo ends the command and not the connection.
    assert reach.prefect_connection_problem({"rc": 1, "stdout": said}, LOGIN, 22, "prefect-1") == problem


def test_a_host_that_lets_in():
    assert reach.prefect_connection_problem({"rc": 0, "stdout": "debian", "stderr": "motd"}, LOGIN) == ""


def test_another_port_than_22():
    tried = {"unreachable": True, "msg": "Connection refused"}
    said = reach.prefect_connection_problem(tried, "a.example.org", 2222, "a.example.org")
    assert said.startswith('nothing lets this machine in at port 2222 of "a.example.org" (Connection refused). ')
    assert said.endswith("let port 2222 through? Try: ssh -p 2222 a.example.org")
    tried["msg"] = "IDENTIFICATION HAS CHANGED"
    changed = reach.prefect_connection_problem(tried, "a.example.org", 2222)
    assert "ssh-keygen -R '[a.example.org]:2222', and log in once by hand: ssh -p 2222 a.example.org" in changed


# --- phases ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "skipped", "phases"),
    [
        (["all"], [], host.PHASES),
        (["preflight"], [], host.PHASES),
        (["checks"], [], ["checks"]),
        (["flows", "stack"], [], ["stack", "flows"]),
        (["all"], ["flows"], [phase for phase in host.PHASES if phase != "flows"]),
    ],
)
def test_the_phases_that_run(tags, skipped, phases):
    assert host.prefect_phases(tags, skipped) == list(phases)


def test_the_list_of_a_first_installation():
    plan = {
        "server": True,
        "timezone": "Etc/UTC",
        "admin": "ops",
        "ports": [8443],
        "url": "https://p.example.org",
        "tls": "acme",
        "images": ["caddy:2.11.7"],
        "archive": "",
        "schedule": "hourly",
        "offsite": [],
        "pools": ["general"],
        "workers": ["general-1"],
        "people": 0,
        "flows": "/home/ada/flows",
    }
    assert host.prefect_first_run(
        ["host", "stack", "backups", "workers", "flows", "watch", "checks"], "prefect-1", plan
    ) == [
        "No installation has reached its end on prefect-1 yet, and a check (--check) compares with what is installed. The "
        "preflight has found nothing in the way. Without --check, site.yml would:",
        "- host: take passwords out of sshd, let in the user ops by key, close all TCP ports but 22, 80, 443, 8443, set the "
        "time zone to Etc/UTC, turn on security updates",
        "- stack: pull caddy:2.11.7, start them, and serve https://p.example.org with a certificate made by the ACME authority",
        "- backups: install restic and the tools, and back up hourly, with no copy off-site (backups_offsite)",
        "- workers: make the work pools general, and start the workers general-1",
        "- flows: place a release of the flows in /home/ada/flows, and deploy it",
        "- watch: check the server each minute, and alert nobody (watch_notify_urls)",
        "- checks: run a smoke flow, and make the first backup",
        "Nothing has been changed.",
    ]
    elsewhere = host.prefect_first_run(list(host.PHASES), "gpu-1", {**plan, "server": False, "ports": []})
    assert [line.partition(":")[0] for line in elsewhere[1:-1]] == ["- host", "- workers", "- flows"]
    assert "close all TCP ports but 22, set" in elsewhere[1]
