"""What the tests of prefect-backup share: other settings, its units as systemd runs them, what is left over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab import restores
from tests.lab.restores import STAGING, until
from tests.lab.seed import psql
from tests.lab.vps.vps import Vps

BACKUP = "prefect-backup.service"
VERIFY = "prefect-backup-verify.service"
REPOSITORY = "/var/backups/prefect/repository"
# Other settings, and another repository and state that these lead to; where the units may write.
ETC = "/run/backups-etc"
SCRATCH = "/var/backups/prefect/scratch"
STATE = "/var/lib/prefect/backups/scratch"
FLIP = (
    "import sys; file = open(sys.argv[1], 'r+b'); file.seek(0, 2); file.seek(file.tell() // 2); byte = file.read(1)[0];"
    " file.seek(-1, 1); file.write(bytes([byte ^ 1]))"
)


def restic(repository: str = REPOSITORY) -> str:
    """The beginning of a command line of restic."""
    return f"RESTIC_REPOSITORY={repository} RESTIC_PASSWORD_FILE=/etc/prefect/backups/password restic --no-cache"


def other_settings(vps: Vps, **more: Any) -> dict[str, str]:
    """The environment in which the tools have the host's settings, but for `more`."""
    settings = json.loads(vps.ssh("cat /etc/prefect/backups/settings.json").stdout) | more
    vps.ssh(f"install -d -m 700 {ETC} {SCRATCH} {STATE}; cat > {ETC}/settings.json", text=json.dumps(settings))
    return {"PREFECT_BACKUPS_ETC": ETC}


def remove_others(vps: Vps) -> None:
    vps.ssh(f"rm -rf {ETC} {SCRATCH} {STATE}")


# --- as systemd runs it ------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a unit ended: systemd's word for it, the exit code or signal of its process, all that it said."""

    result: str
    status: int
    said: str


def dropin(unit: str) -> str:
    """The file that holds what tests add to a unit (unit_environment)."""
    return f"/run/systemd/system/{unit}.d/test.conf"


@contextmanager
def unit_environment(vps: Vps, unit: str, **variables: str) -> Iterator[None]:
    """A unit runs with these variables; that it has failed with them is forgotten."""
    file = dropin(unit)
    directory = file.rpartition("/")[0]
    lines = "".join(f'Environment="{name}={value}"\n' for name, value in variables.items())
    vps.ssh(f"mkdir -p {directory} && cat > {file} && systemctl daemon-reload", text=f"[Service]\n{lines}")
    try:
        yield
    finally:
        failed = unit.replace("@.", "@*.")
        vps.ssh(f"rm -r {directory} && systemctl daemon-reload; systemctl reset-failed '{failed}' 2> /dev/null || true")


def cursor(vps: Vps) -> str:
    """Where the journal ends now."""
    return vps.ssh("journalctl --lines 0 --show-cursor").stdout.split("cursor: ")[1].strip()


def journal(vps: Vps, unit: str, since: str) -> str:
    """What a unit has said since a cursor."""
    return vps.ssh(f"journalctl --quiet --output=cat --after-cursor='{since}' _SYSTEMD_UNIT={unit}").stdout


def start(vps: Vps, unit: str, meanwhile: str = "true") -> Ended:
    """Start a unit as its timer does, run a shell command on the VPS, and wait until the unit has ended."""
    since = cursor(vps)
    vps.ssh(f"systemctl reset-failed {unit} 2> /dev/null; systemctl start --no-block {unit} && {meanwhile}")
    return ended(vps, unit, since)


def ended(vps: Vps, unit: str, since: str) -> Ended:
    """Wait until a unit has ended, and what it does after it."""

    def at_work() -> str:
        state = vps.ssh(f"systemctl list-jobs --no-legend {unit}; systemctl is-active {unit}", check=False).stdout
        return "" if state.strip() in ("inactive", "failed") else state

    until(f"the end of {unit}", at_work, limit=600)
    shown = vps.ssh(f"systemctl show --property=Result,ExecMainStatus {unit}").stdout
    facts = dict(line.split("=", 1) for line in shown.splitlines())
    said = journal(vps, unit, since)
    print(f"--- {unit}: {facts}", said, sep="\n")
    return Ended(facts["Result"], int(facts["ExecMainStatus"]), said)


def when(happens: str, do: str, unit: str = BACKUP) -> str:
    """A shell command: once the unit's process is there and `happens` (a command) succeeds, `do` with its $pid."""
    return (
        f"until pid=$(systemctl show --property=MainPID --value {unit}); test $pid != 0; do :; done; "
        f"while kill -0 $pid 2> /dev/null; do if {happens}; then {do}; break; fi; done"
    )


# --- what is there -----------------------------------------------------------------------------------------------


def listed(vps: Vps, **environment: str) -> list[dict[str, Any]]:
    """The backups, newest first, as `prefect-backup list --json` has them."""
    return restores.run(vps, "prefect-backup", "list", **environment).facts["backups"]


def ids(vps: Vps, **environment: str) -> list[str]:
    return [one["id"] for one in listed(vps, **environment)]


_LEFT = f"""
ls -A {STAGING} | sed 's/^/staging: /'
ls -A /var/backups/prefect/verify | sed 's/^/verify: /'
for repository in {REPOSITORY} {SCRATCH}/*/; do
  test -e $repository/config || continue
  find $repository -name '*-tmp-*' | sed 's/^/half-written: /'
  find $repository/locks -type f | sed 's/^/locked: /'
done
docker ps --all --format '{{{{.Names}}}}' | grep verify
pgrep -a 'restic|pg_dump'
docker exec prefect-postgres psql -U prefect -d postgres -Atc "SELECT 'connection: ' || query FROM pg_stat_activity
  WHERE application_name = 'prefect-backups'" || echo "no database answers"
true
"""


def leftovers(vps: Vps) -> list[str]:
    """What no backup and no verification should leave."""
    done = vps.ssh(_LEFT, check=False)
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


@contextmanager
def stopped_postgres(vps: Vps) -> Iterator[None]:
    """Postgres is stopped; afterwards all runs again."""
    vps.ssh("docker stop prefect-postgres")
    try:
        yield
    finally:
        vps.ssh("docker start prefect-postgres")
        until("all runs again", lambda: restores.leftovers(vps))


@contextmanager
def filled(vps: Vps, megabytes: int) -> Iterator[None]:
    """A further table, full of what no compression makes smaller."""
    psql(
        vps,
        "DROP TABLE IF EXISTS filler; CREATE TABLE filler AS"
        " SELECT row, string_agg(uuid_send(gen_random_uuid()), '') AS noise"
        f" FROM generate_series(1, {megabytes * 16}) AS row, generate_series(1, 4096) GROUP BY row",
    )
    try:
        yield
    finally:
        psql(vps, "DROP TABLE filler")
