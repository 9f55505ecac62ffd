"""upgrade.yml --tags postgres: to another major version and back, with a flow run under way."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab import restores
from tests.lab.conftest import Aloud
from tests.lab.restores import mark, marker, restored, until
from tests.lab.runs import Runs
from tests.lab.seed import counts, psql
from tests.lab.vps import images
from tests.lab.vps.endpoint import Endpoint
from tests.lab.vps.vps import Vps

NEXT = images.POSTGRES_NEXT
# Longer than the API is away for, which the run has to outlive.
RUN_SECONDS = 120


@pytest.fixture(scope="module", autouse=True)
def no_timers(vps: Vps) -> Iterator[None]:
    with restores.no_timers(vps):
        yield


@pytest.fixture(scope="module")
def before(vps: Vps, endpoint: Endpoint) -> str:
    """A backup of the version before; its marker says so."""
    mark(endpoint, "before")
    return restores.back_up(vps)


@pytest.fixture(scope="module")
def later(aloud: Aloud) -> tuple[str, ...]:
    """The options of upgrade.yml that go to the later Postgres."""
    with aloud(f"the image {NEXT}"):
        archive = images.ensure_postgres_next()
    given = {"prefect_postgres_image": NEXT} | ({"prefect_images_archive": str(archive)} if archive else {})
    return ("--tags", "postgres", "-e", json.dumps(given))


@pytest.fixture(scope="module")
def runs(vps: Vps, endpoint: Endpoint) -> Iterator[Runs]:
    made = Runs(vps, endpoint)
    yield made
    made.remove()


def major(vps: Vps) -> str:
    """The major version of the Postgres that serves."""
    return psql(vps, "SHOW server_version").split(".")[0]


def owners(vps: Vps) -> str:
    """Who has the database and what is in it: the server's role, in each cluster."""
    return psql(
        vps,
        "SELECT DISTINCT owner::regrole FROM (SELECT datdba AS owner FROM pg_database WHERE datname = 'prefect'"
        " UNION ALL SELECT relowner FROM pg_class WHERE relnamespace = 'public'::regnamespace)",
    )


def left_over(vps: Vps) -> str:
    """What an upgrade of Postgres leaves nothing of."""
    found = vps.ssh(
        "ls /var/lib/prefect/backups/postgres-upgrade.json 2> /dev/null; docker ps --all --format '{{.Names}}' | grep verify; "
        "systemctl list-units --plain --no-legend 'prefect-upgrade*' | grep -E ' (active|activating|failed) '",
        check=False,
    ).stdout
    return f"{found}{' '.join(restores.leftovers(vps))}"


def test_the_data_come_to_the_next_major_version(vps, playbook, endpoint, runs, before, later):
    """Not without a death on the way, which is taken back; and the flow run that is under way ends Completed."""
    refused = playbook("site.yml", "-e", f"prefect_postgres_image={NEXT}", check=False)
    assert refused.recap["changed"] == 0
    assert f"ansible-playbook upgrade.yml --tags postgres -e prefect_postgres_image={NEXT}" in refused.joined
    rehearsed = playbook("upgrade.yml", *later, "-e", "rehearse_only=true")
    assert "the API will be away for about" in rehearsed.joined
    rows = counts(vps)
    died = vps.ssh(f"PREFECT_BACKUPS_FAILPOINT=kill:load prefect-upgrade --postgres {NEXT}", check=False)
    assert died.returncode == 255
    until("the end of what it has left", lambda: left_over(vps))
    assert (major(vps), marker(endpoint)) == ("17", "before")

    run = runs.start(runs.deployment("through-an-upgrade-of-postgres"), parameters={"seconds": RUN_SECONDS})
    runs.wait(run, "Running")
    done = playbook("upgrade.yml", *later)
    assert "serves. The API was away for" in done.joined
    assert (major(vps), marker(endpoint), owners(vps)) == ("18", "before", "prefect_server")
    after = counts(vps)
    assert all(after[table] >= rows[table] for table in rows), (rows, after)
    assert runs.wait(run, "Completed", limit=RUN_SECONDS)["run_count"] == 1
    assert left_over(vps) == ""
    # site.yml keeps it, as the inventory does not say which.
    assert playbook("site.yml", "--tags", "stack").recap["changed"] == 0


def test_a_backup_of_the_version_before_comes_back(vps, endpoint, before):
    mark(endpoint, "later")
    restored(vps, "--id", before)
    assert (marker(endpoint), owners(vps)) == ("before", "prefect_server")


def test_the_way_back_says_what_it_loses(vps, playbook, endpoint):
    mark(endpoint, "later")
    refused = restores.run(vps, "prefect-upgrade", "--postgres-back")
    assert (refused.exit, refused.facts["code"]) == (28, "DECLINED")
    assert "flow runs were made since the upgrade" in refused.facts["error"]
    assert (major(vps), marker(endpoint)) == ("18", "later")
    playbook("upgrade.yml", "--tags", "postgres", "-e", "back=true", "-e", "lose_newer=true")
    assert (major(vps), marker(endpoint)) == ("17", "before")
    assert left_over(vps) == ""
    assert playbook("site.yml", "--tags", "stack").recap["changed"] == 0
