"""The public endpoint: its address, and its certificate from an ACME authority or of the user's own."""

from __future__ import annotations

import ipaddress
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from .words import given, is_file, listed, quoted

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
# The last label is never a number: 10.0.0.256 is a mistyped address and not a name.
DOMAIN = re.compile(rf"(?=.{{1,253}}$)({LABEL}\.)+(?![0-9]+$){LABEL}")
EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
URL = re.compile(r"https://[^\s/]+(/\S*)?")


def _is_ipv4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def address_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the address of the server for other hosts."""
    address = settings["workers_server_address"]
    try:
        ipaddress.ip_address(address or "::1")
    except ValueError:
        return [f"workers_server_address is {quoted(address)}; it must be an IP address, or empty"]
    return []


def domain_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with the address that everybody uses."""
    domain = settings["prefect_domain"]
    if settings["prefect_tls"] == "acme":
        if DOMAIN.fullmatch(domain):
            return []
        return [
            f"{given('prefect_domain', domain)}; with prefect_tls acme it must be a DNS name in lower case, "
            "such as prefect.example.org (without a name of your own: prefect_tls: internal)"
        ]
    if DOMAIN.fullmatch(domain) or _is_ipv4(domain):
        return []
    return [
        f"{given('prefect_domain', domain)}; it must be a DNS name in lower case, such as prefect.example.org, or an IPv4 address"
    ]


def acme_problems(settings: dict[str, Any]) -> list[str]:
    """What is wrong with what an ACME authority is told, and with its own address."""
    email, directory = settings["prefect_email"], settings["prefect_acme_directory"]
    if settings["prefect_tls"] != "acme":
        return (
            [f"{given('prefect_email', email)}; it must be an e-mail address or empty"]
            if email and not EMAIL.fullmatch(email)
            else []
        )
    problems = []
    if not EMAIL.fullmatch(email):
        problems.append(
            f"{given('prefect_email', email)}; with prefect_tls acme it must be an e-mail address, such as ops@example.org"
        )
    if not URL.fullmatch(directory):
        problems.append(f"{given('prefect_acme_directory', directory)}; it must begin with https://")
    return problems


def certificate_problems(settings: dict[str, Any], now: datetime | None = None) -> list[str]:
    """What is wrong with a certificate of the user's own and its key; `now` is the time to judge by (with a zone)."""
    if settings["prefect_tls"] != "files":
        return []
    paths = {name: settings[name] for name in ("prefect_tls_certificate", "prefect_tls_key")}
    problems = [
        f"{given(name, path)}; with prefect_tls files it must be the absolute path of a PEM file on the control machine"
        for name, path in paths.items()
        if not is_file(path)
    ]
    if problems:
        return problems
    certificate = key = None
    try:
        # The first one is the server's; what follows is its chain.
        certificate = x509.load_pem_x509_certificates(Path(paths["prefect_tls_certificate"]).read_bytes())[0]
    except ValueError:
        problems.append(
            f"prefect_tls_certificate is {quoted(paths['prefect_tls_certificate'])}; that file holds no certificate in PEM"
        )
    try:
        key = serialization.load_pem_private_key(Path(paths["prefect_tls_key"]).read_bytes(), password=None)
    except (ValueError, TypeError):
        problems.append(
            f"prefect_tls_key is {quoted(paths['prefect_tls_key'])}; that file holds no private key in PEM "
            "that is free of a passphrase"
        )
    if not certificate:
        return problems
    fact = f"prefect_tls_certificate is {quoted(paths['prefect_tls_certificate'])}; that certificate"
    if key and certificate.public_key() != key.public_key():
        problems.append(f"{fact} does not belong to the key {quoted(paths['prefect_tls_key'])} (prefect_tls_key)")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin <= (now or datetime.now(UTC)) <= end:
        problems.append(f"{fact} is valid from {begin:%Y-%m-%d} to {end:%Y-%m-%d}, which is not now")
    names = _certificate_names(certificate)
    domain = settings["prefect_domain"]
    if not {domain, "*." + domain.partition(".")[2]} & set(names):
        problems.append(
            f"{fact} is for {listed(map(quoted, names)) if names else 'no name'}, "
            f"not for {quoted(domain)} (prefect_domain)"
        )
    return problems


def _certificate_names(certificate: x509.Certificate) -> list[str]:
    """DNS names and addresses that a certificate is for; clients look at no other part of it."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName) + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]
