"""The two ways to a certificate that the main VPS does not use: one that is given, and one from an ACME authority.

The VPS is changed from internal to files, to acme and back, as a person does who edits prefect_tls and runs site.yml.
Both certificates come from an authority made here, whose root is given to the host; the ACME server is a real one,
which looks for the answers to its challenges at the domain.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab.vps.engine import docker
from tests.lab.vps.images import CADDY
from tests.lab.vps.network import NETWORK
from tests.lab.vps.playbook import PlaybookRun
from tests.lab.vps.vps import Vps

ACME_HOST = "acme.lab.test"
ACME_CONTAINER = "prefect-lab-acme"
ACME_ISSUER = "Lab ACME"
FILES_ISSUER = "Lab authority"
INTERNAL_ISSUER = "Prefect - ECC Intermediate"
NEAR_ITS_END = {"since": timedelta(days=355), "left": timedelta(days=10)}
LIFETIME = timedelta(days=30)  # more than Caddy's own intermediate certificate has below our root
SERVED_LIMIT = 60  # seconds until the certificate is served
RUN_LIMIT = 90  # seconds until a flow run has ended
CA_USAGE = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)
CERTIFICATE = """
import sys, time
sys.path.insert(0, "/opt/prefect/backups/current")
from prefect_doctor import way_in
found = way_in.certificate(*way_in.served_certificate(sys.argv[1], "/etc/ssl/certs/ca-certificates.crt"), time.time())
print(found.level.name, found.measured, sep="\\n")
"""
CADDYFILE = f"""{{
	admin off
	pki {{
		ca local {{
			intermediate_cn "{ACME_ISSUER}"
			root {{
				cert /lab/lab-authority.pem
				key /lab/lab-authority.key
			}}
		}}
	}}
}}
https://{ACME_HOST} {{
	tls internal
	acme_server
}}
"""


@dataclass
class Authority:
    """A certificate authority, with its root in a file."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate
    path: Path

    def give(self, domain: str, directory: Path) -> dict[str, str]:
        """Make a certificate near its end, and its key, for a domain; gives the settings that name the two files."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            unsigned(domain, FILES_ISSUER, key, **NEAR_ITS_END)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(domain)]), critical=False)
            # Python 3.13, and so the host's worker, takes no certificate without it.
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        write(directory / "cert.pem", certificate)
        write(directory / "key.pem", key)
        return {
            "prefect_tls_certificate": str(directory / "cert.pem"),
            "prefect_tls_key": str(directory / "key.pem"),
        }


def unsigned(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    since: timedelta = timedelta(hours=1),
    left: timedelta = LIFETIME,
) -> x509.CertificateBuilder:
    """A certificate that is still to be signed."""

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - since).not_valid_after(now + left)


def write(path: Path, what: x509.Certificate | ec.EllipticCurvePrivateKey) -> None:
    """Write a certificate or a key as PEM, for its owner only."""
    if isinstance(what, x509.Certificate):
        text = what.public_bytes(serialization.Encoding.PEM)
    else:
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        text = what.private_bytes(*form)
    path.touch(mode=0o600)
    path.write_bytes(text)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("authority")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        unsigned(FILES_ISSUER, FILES_ISSUER, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(CA_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write(directory / "lab-authority.pem", certificate)
    write(directory / "lab-authority.key", key)
    return Authority(key, certificate, directory / "lab-authority.pem")


@pytest.fixture(scope="module")
def acme_directory(vps: Vps, authority: Authority) -> Iterator[str]:
    """The address of an ACME server on the lab's network."""
    docker("rm", "--force", "--volumes", ACME_CONTAINER, check=False)
    (authority.path.parent / "Caddyfile").write_text(CADDYFILE)
    command = ("caddy", "run", "--config", "/lab/Caddyfile", "--adapter", "caddyfile")
    labels = ("--label=prefect-lab", f"--network={NETWORK}", f"--network-alias={ACME_HOST}")
    docker("create", f"--name={ACME_CONTAINER}", *labels, CADDY, *command)
    try:
        docker("cp", str(authority.path.parent), f"{ACME_CONTAINER}:/lab")
        docker("start", ACME_CONTAINER)
        address = f"https://{ACME_HOST}/acme/local/directory"
        ask = ("curl", "--silent", "--retry", "20", "--retry-delay", "1", "--retry-all-errors", "--cacert")
        said = docker("exec", ACME_CONTAINER, *ask, f"/lab/{authority.path.name}", address, check=False)
        assert "newOrder" in said.stdout, docker("logs", ACME_CONTAINER).stderr
        yield address
    finally:
        docker("rm", "--force", "--volumes", ACME_CONTAINER)


Switch = Callable[..., PlaybookRun]


@pytest.fixture(scope="module")
def switch(vps: Vps, playbook: Any, inventory_variables: dict[str, Any], authority: Authority) -> Iterator[Switch]:
    """`switch("files", "stack,workers", **settings)` changes the mode; in the end the VPS is as it was."""
    modes = ["internal"]
    trusted = [*inventory_variables["host_extra_ca_certificates"], str(authority.path)]

    def change(mode: str, tags: str, **settings: Any) -> PlaybookRun:
        modes.append(mode)
        settings |= {"prefect_tls": mode, "host_extra_ca_certificates": trusted}
        return playbook("site.yml", "--tags", tags, "--extra-vars", json.dumps(settings))

    yield change
    if modes[-1] != "internal":
        change("internal", "stack,workers")
    vps.ssh(f"rm /usr/local/share/ca-certificates/{authority.path.stem}.crt && update-ca-certificates --fresh")
    # A kept VPS would otherwise show this certificate in the next session, whose authority is another.
    vps.ssh(f"rm -r /var/lib/prefect/caddy/caddy/acme /var/lib/prefect/caddy/caddy/certificates/{ACME_HOST}-*")


def served(endpoint: Any, root: Path) -> x509.Certificate:
    """The certificate that the reverse proxy shows, once a client that trusts nothing but `root` accepts it.

    Raises:
        AssertionError: if there is none after a while.
    """
    domain = endpoint.url.removeprefix("https://")
    context = ssl.create_default_context(cafile=root)
    deadline = time.monotonic() + SERVED_LIMIT
    while True:
        try:
            with (
                socket.create_connection((domain, 443), 5) as plain,
                context.wrap_socket(plain, server_hostname=domain) as secure,
            ):
                return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True))
        except OSError as error:
            assert time.monotonic() < deadline, f"no certificate of {root.name} at {domain}: {error!r}"
            time.sleep(0.5)


def issuer(certificate: x509.Certificate) -> str:
    return certificate.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value


def assert_a_flow_runs(endpoint: Any, root: Path) -> None:
    """A run started through the reverse proxy is taken and ended by the worker, which has to trust the certificate too."""
    context = ssl.create_default_context(cafile=root)
    login = ("admin", endpoint.passwords["admin"])
    with httpx.Client(base_url=f"{endpoint.url}/api", verify=context, auth=login, timeout=30, trust_env=False) as api:
        deployment = api.get("/deployments/name/smoke/smoke").raise_for_status().json()["id"]
        made = api.post(f"/deployments/{deployment}/create_flow_run", json={}).raise_for_status().json()["id"]
        deadline = time.monotonic() + RUN_LIMIT
        while (state := api.get(f"/flow_runs/{made}").json()["state_name"]) != "Completed":
            assert time.monotonic() < deadline, f"the flow run is {state} after {RUN_LIMIT} s"
            time.sleep(0.5)


def processes(vps: Vps, *names: str) -> str:
    """Main processes of containers."""
    return vps.ssh(f"docker inspect --format '{{{{.State.Pid}}}}' {' '.join(names)}").stdout


def test_a_given_certificate(
    vps: Vps, endpoint: Any, switch: Switch, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> None:
    given = authority.give(endpoint.url.removeprefix("https://"), tmp_path_factory.mktemp("given"))
    before = processes(vps, "prefect-postgres", "prefect-server")
    switch("files", "host,stack,workers", **given)
    shown = served(endpoint, authority.path)
    assert shown == x509.load_pem_x509_certificate(Path(given["prefect_tls_certificate"]).read_bytes())
    assert issuer(shown) == FILES_ISSUER
    assert processes(vps, "prefect-postgres", "prefect-server") == before, "more than Caddy was restarted"
    assert_a_flow_runs(endpoint, authority.path)
    # As the doctor sees it, once the role backups has told it whom to trust.
    level, measured = vps.ssh(
        f"/opt/prefect/backups/venv/bin/python - {endpoint.url}", text=CERTIFICATE
    ).stdout.splitlines()
    assert level == "WARNING"
    assert re.match(r"expires .* UTC, in 10 days", measured)


def test_a_broken_certificate_does_not_replace_the_one_that_works(
    vps: Vps, endpoint: Any, authority: Authority
) -> None:
    path = "/etc/prefect/caddy/cert.pem"
    working = served(endpoint, authority.path)
    before = processes(vps, "prefect-caddy")
    vps.ssh(f"cp -p {path} {path}.kept && printf broken > {path}")
    try:
        assert vps.ssh("systemctl reload prefect-stack", check=False).returncode != 0
        log = vps.ssh("journalctl --unit prefect-stack --since -1min --output cat").stdout
        assert "failed to find any PEM data in certificate input" in log
        assert served(endpoint, authority.path) == working
        assert processes(vps, "prefect-caddy") == before
        assert vps.ssh("systemctl is-active prefect-stack").stdout.strip() == "active"
    finally:
        vps.ssh(f"mv {path}.kept {path} && systemctl reload prefect-stack")
    assert served(endpoint, authority.path) == working


def test_a_certificate_by_acme(
    vps: Vps, endpoint: Any, switch: Switch, authority: Authority, acme_directory: str
) -> None:
    done = switch("acme", "stack", prefect_acme_directory=acme_directory, preflight_dns_mismatch="warn")
    # The control machine's name server does not know the lab.
    assert "Going on, as preflight_dns_mismatch says." in done.joined
    assert issuer(served(endpoint, authority.path)) == ACME_ISSUER
    assert_a_flow_runs(endpoint, authority.path)


def test_a_certificate_near_its_end_is_renewed_by_acme(
    vps: Vps, endpoint: Any, authority: Authority, tmp_path: Path
) -> None:
    """Caddy looks every ten minutes, and when it starts."""
    domain = endpoint.url.removeprefix("https://")
    before = served(endpoint, authority.path)
    authority.give(domain, tmp_path)
    kept = f"/var/lib/prefect/caddy/caddy/certificates/{ACME_HOST}-acme-local-directory/{domain}"
    for name, kind in (("cert.pem", "crt"), ("key.pem", "key")):
        # Into the file that is there, whose owner is Caddy.
        vps.ssh(f"test -f {kept}/{domain}.{kind} && cat > {kept}/{domain}.{kind}", text=(tmp_path / name).read_text())
    vps.ssh("docker restart prefect-caddy")
    deadline = time.monotonic() + SERVED_LIMIT
    while (shown := served(endpoint, authority.path)).serial_number == before.serial_number or issuer(
        shown
    ) != ACME_ISSUER:
        assert time.monotonic() < deadline, f"{shown.serial_number} of {issuer(shown)} after {SERVED_LIMIT} s"
        time.sleep(0.5)


def test_back_to_the_internal_authority(vps: Vps, endpoint: Any, switch: Switch, playbook: Any) -> None:
    before = endpoint.ca.read_bytes()
    switch("internal", "stack,workers")
    assert issuer(served(endpoint, endpoint.ca)) == INTERNAL_ISSUER
    assert endpoint.ca.read_bytes() == before, "clients would have to be given another root"
    assert vps.ssh("find /etc/prefect/caddy -name '*.pem'").stdout == "", "a key that nobody uses was left behind"
    again = playbook("site.yml", "--tags", "stack")
    assert again.recap["changed"] == 0, again.changed_tasks
