"""The password with which the server connects to its database, as Postgres and its clients have it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from typing import Any

#: Postgres's own (scram_iterations).
ITERATIONS = 4096
#: Of a line of a password file (libpq): any database, since one that is being restored is migrated, too.
LINE = "postgres:5432:*:prefect_server:"
#: Printable characters of ASCII, without what needs an escape there.
FITS = re.compile(r"[!-\[\]-~]+")


def prefect_scram(password: str, salt: bytes = b"") -> str:
    """What Postgres keeps of a password (RFC 5803): given this, it never gets to see the password itself.

    Args:
        password: ASCII, of which SASLprep makes nothing else.
        salt: 16 random octets where none are given.
    """
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(octets).decode() for octets in (salt, stored, server))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


def prefect_pgpass(passwords: list[str]) -> str:
    """The server's password file: a line for each of these passwords, in which nothing needs an escape."""
    return "".join(f"{LINE}{password}\n" for password in passwords)


def prefect_passwords(text: str) -> list[str]:
    """The passwords of `prefect_pgpass`."""
    return [line.removeprefix(LINE) for line in text.splitlines() if line.startswith(LINE)]


def prefect_password_fits(password: str) -> bool:
    """Whether a password can be given to Postgres and to its clients as it is."""
    return FITS.fullmatch(password) is not None


class FilterModule:
    """Found by Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_password_fits": prefect_password_fits,
            "prefect_passwords": prefect_passwords,
            "prefect_pgpass": prefect_pgpass,
            "prefect_scram": prefect_scram,
        }
