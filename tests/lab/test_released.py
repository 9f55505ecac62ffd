"""A server that the last release of the kit has made, and the present site.yml has brought here: `git pull`, as CHANGELOG.md says.

All other tests of this shard run on it, too.
"""

from __future__ import annotations

import pytest

from tests.lab import restores
from tests.lab.seed import psql
from tests.lab.vps import images, provision
from tests.lab.vps.playbook import STACK_EFFECTS

pytestmark = pytest.mark.skipif(
    provision.released_kit() is None, reason="this clone does not have the commit of the release"
)
# What is changed on such a server, by what CHANGELOG.md says of it.
SAID = {
    # "A broken rule file leaves the firewall as it is at a restart, too."
    "Write the firewall, and install its unit",
    "Load the firewall",
    # "It makes the containers again": their programs are files now.
    "Make the directories",
    # "The firewall knows the kit's containers by the names of their bridges"
    "Stop and remove the stack's containers and networks",
    "Write the environment of the stack, and place its project, what its containers read, and its unit",
    *STACK_EFFECTS,
    # "connects to Postgres as a role of its own"
    "Write the password of the database, for Postgres and for the server",
    "Have the server's role own the database",
    "Remove the superuser's password from the host",
    "Let nobody in as the database's superuser but over its socket",
    # "The key that encrypts the secrets in blocks is no longer in the database"
    "Have the key that encrypts the secrets in blocks",
    "Remove the key from the database",
    # The tools: prefect-upgrade, exit codes, settings.
    "Make a directory for what is not whole yet",
    "Unpack the files on the host",
    "Give the release its environment, and put it in its place, whole",
    "Use the release",
    "Write the settings",
    "Install the units, and when they start",
    "Start the timers, now and at boot",
    # "`prefect-watch.timer` replaces …", accounts that may only monitor
    "Stop what did a part of it before",
    "Install the units and the program",
    "Start the timer, now and at boot",
    "Write the accounts",
    # "restarts every worker"
    "Make the directories, and place the lock of the workers",
    "Make it, and install what the lock names",
    "Unpack it on the host",
    "Put the program in its place, whole",
    "Let the workers run both, and install their units",
    "Make the automation that finds crashed flow runs",
    "Write what each worker does, its user, its limits and its devices",
    "Write the account of each worker",
    "Restart changed workers",
    "Note what each worker runs with",
    "Remove those that no worker runs any more",
    # "Workers are system users of their own now"
    "Make the groups of the workers, and of their work pools",
    "Make the users of the workers",
    "Stop the workers whose state it is",
    "Put aside the results that all workers shared",
    "Make the directory of the work pools' results",
    "Give them to the only work pool that there is",
    "Let the workers of each work pool share its results",
    "Give each worker its state",
    "Start the workers, now and at boot",
    # "deploys the flows once more with a new environment"
    "Place it",
    "Place the program that deploys, and its unit",
    "Write where the deployments go, and by which account",
    "Make the deployments",
    "Allow it no longer",
    "Note which release this is, and where it came from",
    # "is blocked, by Debian's fail2ban", "sshd offers no weak algorithms"
    "Say which failed logins block an address, and for how long",
    "Install fail2ban",
    "Take passwords out of sshd, and what is weak or of no use here",
    "Reload sshd",
    # It names the commit that the host was made with.
    "Write the recovery kit",
    # "The checks bring a smoke flow of their own"
    "Run the smoke flow through the public endpoint and count what came back",
}


def test_it_changes_what_the_changelog_says(vps, first_run):
    assert first_run.recap["failed"] == 0
    assert set(first_run.changed_tasks) <= SAID


def test_it_keeps_what_it_has(vps, endpoint):
    assert endpoint.get("/api/admin/version").raise_for_status().json() == images.EARLIER
    # That release proved itself by a run of an example flow, which the present one does not.
    body = {"deployments": {"id": {"any_": [restores.deployment(endpoint, "smoke/smoke")["id"]]}}}
    runs = endpoint.post("/api/flow_runs/filter", body).raise_for_status().json()
    assert "Completed" in {run["state_name"] for run in runs}
    assert int(psql(vps, "SELECT count(*) FROM log")) > 0
    made_by = {backup["kit"] for backup in restores.run(vps, "prefect-backup", "list").facts["backups"]}
    assert "0.4" in made_by


def test_its_worker_has_become_a_user_of_its_own(host):
    """With its state and its results; nothing is left that belongs to the user of before."""
    assert host.file("/var/lib/prefect-worker/general-1").user == "prefect_general-1"
    assert host.check_output("ls -A /var/lib/prefect-results") == "general"
    assert host.file("/var/lib/prefect-results").mode == 0o700
    assert host.check_output("find / -xdev -user prefect -print -quit") == ""


def test_nothing_is_left_of_what_prefect_watch_replaces(vps):
    left = vps.ssh(
        "ls /etc/systemd/system/prefect-backup-check* /etc/systemd/system/prefect-crashes* /etc/systemd/system/prefect-notify*"
        " /etc/systemd/system/timers.target.wants/prefect-crashes* /usr/local/sbin/prefect-notify;"
        " systemctl list-units --all --no-legend 'prefect-crashes*' 'prefect-backup-check*'",
        check=False,
    )
    assert left.stdout == ""


def test_the_second_run_changes_nothing(vps, playbook):
    again = playbook("site.yml")
    assert again.recap["changed"] == 0, again.changed_tasks
