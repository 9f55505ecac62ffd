"""How the Authorization header of an account begins: what the reverse proxy lets through to the computing of a hash."""

from __future__ import annotations

import base64
import re
from typing import Any

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


#: A line `NAME HASH` of users.caddy or before.caddy.
HASHED = re.compile(r"(?m)^\s*([^\s#]\S*) (\$2[aby]\$\S+)$")
#: Characters of a new password by which it is told from the one before: two of 24 random letters and digits begin with the same
#: four once in fifteen million times.
TOLD = 4


def basic_prefix(name: str, password: str = "") -> str:
    """A regular expression for the base64 of `NAME:`, how its password begins, and whatever follows, and of nothing else.

    Base64 carries six bits a character. Those of the name that do not fill one leave a class of characters: without
    it, names that differ in their last character would pass too.
    """
    octets = f"{name}:{password}".encode()
    whole, left = divmod(len(octets) * 8, 6)
    encoded = base64.b64encode(octets + b"\0\0\0").decode()
    prefix = re.escape(encoded[:whole])
    if not left:
        return prefix
    first = ALPHABET.index(encoded[whole])
    return f"{prefix}[{re.escape(ALPHABET[first : first + 2 ** (6 - left)])}]"


def prefect_known_names(names: list[str]) -> str:
    """The regular expression that a whole Authorization header of one of the accounts matches.

    Two such headers do not match: Caddy puts a comma between them.
    """
    return f"^(?i:basic) (?:{'|'.join(basic_prefix(name) for name in names)})[A-Za-z0-9+/=]*$"


def prefect_new_logins(passwords: dict[str, str]) -> str:
    """The regular expression that an Authorization header with one of these new passwords matches, and none with the one before.

    It tells how they begin: of a password that a person has chosen not more than a quarter.
    """
    begins = [basic_prefix(name, password[: min(TOLD, len(password) // TOLD)]) for name, password in passwords.items()]
    return f"^(?i:basic) (?:{'|'.join(begins)})[A-Za-z0-9+/=]*$"


def prefect_hashes(text: str) -> dict[str, str]:
    """The hash of each account's password, by name, in a text with lines `NAME HASH`."""
    return dict(HASHED.findall(text))


def prefect_former(wanted: str, there: str, before: str) -> dict[str, str]:
    """The hashes of passwords that the reverse proxy takes beside the new ones, by account, until their holder has the new one.

    Only of those that site.yml gives their password itself: workers, whose flow runs have begun with the one before, and the
    backups. A person's new password ends the former one at once.

    Args:
        wanted: the accounts as they are to be; `there`: as the host has them.
        before: what an earlier run has left of this.
    """
    now, had, left = prefect_hashes(wanted), prefect_hashes(there), prefect_hashes(before)
    found = {}
    for name, hashed in now.items():
        former = left.get(name) or had.get(name, hashed)
        if former != hashed and (name.startswith("worker-") or name == "backups"):
            found[name] = former
    return found


def prefect_still_former(
    former: dict[str, str], process: list[str], docker: list[str], phases: list[str], containers: list[str]
) -> dict[str, str]:
    """Those of `prefect_former` that are still needed at the end of a run.

    Args:
        process: the process workers of all hosts that the run was about; `docker`: the docker workers.
        phases: those of site.yml that were run.
        containers: `WORKER CONTAINER` for each whose flow run goes on with the former password.
    """
    done = {f"worker-{name}" for name in process if "workers" in phases}
    if {"workers", "docker_pool"} & {*phases}:
        done |= {f"worker-{name}" for name in docker}
    if "backups" in phases:
        done.add("backups")
    done -= {f"worker-{line.split()[0]}" for line in containers if line.strip()}
    return {name: hashed for name, hashed in former.items() if name not in done}


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_former": prefect_former,
            "prefect_hashes": prefect_hashes,
            "prefect_known_names": prefect_known_names,
            "prefect_new_logins": prefect_new_logins,
            "prefect_still_former": prefect_still_former,
        }
