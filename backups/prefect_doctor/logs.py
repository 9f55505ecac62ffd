"""What the journal says of failed logins, at the reverse proxy and at sshd, and of certificates that are not renewed.

The Caddyfile sends these lines, and no others, to stderr: PRIORITY=3 finds them by the journal's index, so that the cost is that of
what went wrong, and not of all that was logged. Of what was tried, the log has the name of an account alone.
Past a limit fail2ban blocks an address at the proxy (caddy/fail2ban/).
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect_backups.words import duration

from .asked import said
from .finding import Finding, Level

#: Seconds of the journal: of failed logins, and of renewals (Caddy tries again for days, at most 6 hours apart).
LOGINS, RENEWALS = 3600, 86400
#: Lines that are read at most.
LINES = 5000
#: Failed logins of an hour. The proxy: whoever mistypes needs a handful, and scanners come without a password; more is somebody who
#: guesses (each costs a tenth of a second of a core), or a program with an old password, which asks every few seconds.
PROXY_WARNING = 100
#: Where it is, fail2ban blocks who fails too often at the proxy.
JAIL = Path("/etc/fail2ban/jail.d/prefect.conf")
#: How many are named, of those that are blocked, and of the accounts that were tried.
NAMED = 5
#: sshd: any address of the internet is tried some hundred times an hour, in vain, since passwords are off. So many more are a
#: nuisance to log and processor.
SSH_WARNING = 2000

#: An attempt at sshd ends in one or several of these lines, all with the address and port at the end, which no name can forge.
SSH_FAILED = re.compile(
    r"^(?:Invalid user |Failed \w+ for |Connection (?:closed|reset) by (?:invalid|authenticating) user |"
    r"Disconnected from (?:invalid|authenticating) user |error: maximum authentication attempts exceeded ).*?"
    r"([0-9a-fA-F:.]+) port (\d+)(?: ssh2)?(?: \[preauth\])?$"
)


@dataclass(frozen=True)
class Failed:
    """Logins that have failed."""

    #: How many, by address.
    addresses: Counter[str] = field(default_factory=Counter)
    #: How many, by the account whose name was tried; of other names and of sshd it is not known.
    names: Counter[str] = field(default_factory=Counter)
    #: Seconds that they are of: less than an hour where that had more lines than are read.
    seconds: float = LOGINS

    @property
    def count(self) -> int:
        """How many in all."""
        return self.addresses.total()


@dataclass(frozen=True)
class Blocked:
    """Who is blocked, where fail2ban is to block."""

    #: Whether it does: it runs, with the kit's jail.
    works: bool
    addresses: Sequence[str] = ()

    @property
    def words(self) -> str:
        """That, for a person."""
        if not self.works:
            return "nobody is blocked, because fail2ban does not run"
        if not self.addresses:
            return "nobody is blocked"
        more = f" and {len(self.addresses) - NAMED:,} more" if len(self.addresses) > NAMED else ""
        return f"blocked: {', '.join(self.addresses[:NAMED])}{more}"


@dataclass(frozen=True)
class Logs:
    """What was found."""

    proxy: Failed = field(default_factory=Failed)
    #: None: sshd has no journal here.
    ssh: Failed | None = None
    #: The newest error of a certificate that was not renewed, and seconds since; None: none, or it has been renewed since.
    renewal: tuple[str, float] | None = None
    #: Who is blocked at the proxy; None: nobody is to be, or no login has failed.
    blocked: Blocked | None = None


def entries(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Lines of Caddy's; what is no JSON is left out (a panic)."""
    made = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            made.append(entry)
    return made


def of_proxy(lines: Sequence[dict[str, Any]], now: float) -> Failed:
    """Its failed logins of the last hour. `now` is in seconds since 1970."""
    found: Counter[str] = Counter()
    names: Counter[str] = Counter()
    oldest = now - LOGINS
    if len(lines) >= LINES:
        oldest = max(oldest, min(float(line.get("ts", now)) for line in lines))
    for line in lines:
        if line.get("logger") == "http.log.access.failed_login" and float(line.get("ts", 0)) >= oldest:
            # Of IPv6 the /64, which is what is blocked.
            found[str(line.get("network") or line.get("request", {}).get("remote_ip", "?"))] += 1
            names.update(filter(None, [line.get("tried")]))
    return Failed(found, names, now - oldest)


def of_ssh(lines: Sequence[str], now: float) -> Failed:
    """sshd's failed logins: one for each connection, whatever it has tried. Lines are the journal's `short-unix`."""
    connections: set[tuple[str, str]] = set()
    for line in lines:
        if match := SSH_FAILED.match(line.partition(": ")[2]):
            connections.add((match[1], match[2]))
    oldest = float(lines[0].partition(" ")[0]) if len(lines) >= LINES else now - LOGINS
    return Failed(Counter(address for address, _ in connections), seconds=now - oldest)


def renewal_error(lines: Iterable[dict[str, Any]], now: float) -> tuple[str, float] | None:
    """The newest error of a certificate, with its age in seconds; None where one was obtained since."""
    newest: tuple[str, float] | None = None
    for line in lines:
        logger, at = str(line.get("logger", "")), float(line.get("ts", 0))
        if not logger.startswith(("tls", "pki")) or at < now - RENEWALS:
            continue
        # A proxy that is stopped ends what it was doing, and finds its lock removed: no failure.
        stopped = str(line.get("error", "")).endswith("context canceled") or line.get("msg") == "unable to unlock"
        if line.get("level") == "error" and not stopped:
            words = ": ".join(str(line[name]) for name in ("msg", "error") if line.get(name))
            newest = (" ".join(words.split())[:300], now - at)
        elif str(line.get("msg")).endswith((" obtained successfully", " renewed successfully")):
            newest = None
    return newest


def _journal(seconds: int, *matches: str, output: str = "cat") -> list[str]:
    bounds = (f"--since=-{seconds}s", f"--lines={LINES}", "--quiet", "--no-pager", f"--output={output}")
    return said("journalctl", *bounds, *matches).splitlines()


def of_jail(status: str) -> Blocked:
    """What `fail2ban-client status prefect` says; of one that does not run it says nothing."""
    found = re.search(r"Banned IP list:(.*)", status)
    return Blocked(found is not None, found[1].split() if found else ())


def look() -> Logs:
    """Asks the journal twice, and fail2ban when there were failed logins."""
    now = time.time()
    proxy = entries(_journal(RENEWALS, "PRIORITY=3", "_SYSTEMD_UNIT=docker.service", "CONTAINER_TAG=prefect-caddy"))
    ssh = _journal(LOGINS, "_SYSTEMD_UNIT=ssh.service", output="short-unix")
    failed = of_proxy(proxy, now)
    blocked = of_jail(said("fail2ban-client", "status", "prefect")) if failed.count and JAIL.exists() else None
    return Logs(failed, of_ssh(ssh, now), renewal_error(proxy, now), blocked)


def failed_logins(check: str, found: Failed, warning: int, mend: str, blocked: Blocked | None = None) -> Finding:
    """How many, from how many addresses, which one most, and who is blocked."""
    limit = f"less than {warning:,} an hour"
    if not found.count:
        return Finding(check, Level.OK, "none in the last hour", limit)
    address, most = found.addresses.most_common(1)[0]
    when = (
        "the last hour" if found.seconds >= LOGINS else f"the last {duration(found.seconds)} (older ones were not read)"
    )
    addresses = "1 address" if len(found.addresses) == 1 else f"{len(found.addresses):,} addresses"
    words = f"{found.count:,} in {when} from {addresses}, the most ({most:,}) from {address}"
    # What was read of a shorter time stands for as many in the rest of the hour.
    level = Level.WARNING if found.count * LOGINS / max(found.seconds, 1.0) >= warning else Level.OK
    if found.names:
        words += f", as {', '.join(f'{name} ({count:,})' for name, count in found.names.most_common(NAMED))}"
    if blocked is not None:
        words += f"; {blocked.words}"
        if not blocked.works:
            return Finding(check, Level.WARNING, words, limit, "systemctl status fail2ban; systemctl restart fail2ban")
    # What fail2ban calls by an address is the /64.
    network = f"ip6 saddr {address}{'' if blocked is None else '/64'}" if ":" in address else f"ip saddr {address}"
    block = f"nft insert rule inet prefect prerouting {network} drop"
    return Finding(check, level, words, limit, f"{mend}: {block}" if level else "")


def renewals(found: Logs) -> Finding:
    """Whether a certificate could not be renewed in the last day. How long the served one is valid is a check of its own."""
    check, limit = "certificate renewal", "no error in 24 h"
    if found.renewal is None:
        return Finding(check, Level.OK, "no error", limit)
    words, age = found.renewal
    mend = "journalctl _SYSTEMD_UNIT=docker.service CONTAINER_TAG=prefect-caddy PRIORITY=3 -n 20 -o cat; is port 80 open, does the domain resolve to this host?"
    return Finding(check, Level.WARNING, f"{duration(age)} ago: {words}", limit, mend)


def findings(found: Logs) -> Sequence[Finding]:
    """All of them."""
    proxy = "a client of yours with an old password? Correct it; else block the address until the next reboot"
    ssh = "journalctl -u ssh -n 50; block the address until the next reboot"
    made = [failed_logins("failed logins", found.proxy, PROXY_WARNING, proxy, found.blocked)]
    if found.ssh is not None:
        made.append(failed_logins("failed ssh logins", found.ssh, SSH_WARNING, ssh))
    return [*made, renewals(found)]
