"""The docker pool: what an image is made by, which images stay, which settings are refused, what a pool's template becomes."""

from __future__ import annotations

import copy
import importlib.util
from datetime import UTC, datetime, timedelta
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from .test_modules import work_pool

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "ansible" / "roles" / "docker_pool"


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, SourceFileLoader(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load("prefect_flows_image", ROLE / "files" / "prefect-flows-image")
settings_of = load("prefect_docker_pool", ROOT / "ansible/filter_plugins/prefect_docker_pool.py")


# --- images ------------------------------------------------------------------------------------------------------


def test_an_image_is_built_under_a_name_that_no_deployment_has():
    given = ["/etc/ssl/certs/ca-certificates.crt", "HTTPS_PROXY"]
    settings = {"base": "prefecthq/prefect:1", "uv": "/opt/uv/bin", "keep": 5}
    command = tool.build_command("abc", Path("/releases/abc"), Path("/releases/abc/Dockerfile"), settings, "r1", given)
    assert command[:3] == ["docker", "buildx", "build"]
    assert {"--build-arg=BASE=prefecthq/prefect:1", "--build-context=uv=/opt/uv/bin"} <= set(command)
    assert "--secret=id=authorities,src=/etc/ssl/certs/ca-certificates.crt" in command
    assert not [word for word in command if "uv-settings" in word]
    # The value of a proxy may hold a password: the name is enough.
    assert "--build-arg=HTTPS_PROXY" in command
    assert "--label=prefect-kit.recipe=r1" in command
    # The release has the same path there as on the server.
    assert "--build-arg=DIRECTORY=/opt/prefect/flows/releases/abc" in command
    assert command[-2:] == ["--tag=prefect-flows:unchecked-abc", "/releases/abc"]


def test_the_check_has_no_network_and_no_rights():
    command = tool.check_command("abc")
    assert {"--network=none", "--read-only", "--cap-drop=ALL", "--rm"} <= set(command)
    assert command[-3:] == ["prefect-flows:unchecked-abc", "python", "/mnt/check_image.py"]


def test_another_base_or_another_way_is_another_recipe():
    assert len({tool.recipe("a", b"x"), tool.recipe("b", b"x"), tool.recipe("a", b"y")}) == 3
    assert tool.recipe("a", b"x") == tool.recipe("a", b"x")


def test_deployed_releases_are_remembered_once_each():
    assert tool.with_deployed(["b", "a"], "a") == ["a", "b"]
    assert tool.with_deployed([], "a") == ["a"]
    assert len(tool.with_deployed([str(number) for number in range(60)], "a")) == tool.REMEMBERED


def test_which_images_stay():
    images = {"now": "1", "before": "2", "old": "3", "used": "4", "refused": "5"}
    assert tool.reasons(images, {"4"}, ["now", "before", "old", "used"], 2) == {
        "now": "deployed",
        "before": "one of the last 2 deployed",
        "old": "",
        "used": "a container uses it",
        "refused": "",
    }
    assert set(tool.reasons(images, set(), ["now"], 0).values()) == {""}


@pytest.mark.parametrize(
    ("labels", "status", "hours", "left"),
    [
        ({"io.prefect.flow-run-id": "1"}, "exited", 2, True),
        ({"io.prefect.flow-run-id": "1"}, "exited", 0.5, False),
        ({"io.prefect.flow-run-id": "1"}, "running", 2, False),
        ({"com.docker.compose.project": "prefect"}, "exited", 2, False),
        (None, "exited", 2, False),
    ],
)
def test_only_forgotten_containers_of_flow_runs_go(labels, status, hours, left):
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    ended = (now - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.123456789Z")
    container = {
        "Config": {"Labels": labels},
        "State": {"Status": status, "FinishedAt": ended},
        "NetworkSettings": {"Networks": {"prefect-flows": {}}},
    }
    assert tool.is_left(container, now) is left
    # A docker worker that a person runs has the same labels, and another network.
    container["NetworkSettings"]["Networks"] = {"bridge": {}}
    assert not tool.is_left(container, now)


def test_images_that_a_person_has_made_beside_the_releases_are_left_alone():
    def image(number: str, release: str | None, *tags: str) -> dict[str, Any]:
        labels = {"prefect-kit.release": release} if release else None
        return {"Id": number, "Config": {"Labels": labels}, "RepoTags": list(tags)}

    images = [
        image("1", "a1", "prefect-flows:a1"),
        image("2", "b2", "prefect-flows:unchecked-b2"),
        # Tagged by hand, built from one of ours (the label is inherited), and ours under a second name.
        image("3", None, "prefect-flows:mine"),
        image("4", "a1", "prefect-flows:with-ffmpeg"),
        image("5", "c3", "prefect-flows:c3", "registry.example.org/prefect-flows:c3"),
        {"Id": "6", "Config": {"Labels": None}, "RepoTags": None},
    ]
    assert tool.ours(images) == {"a1": "1", "unchecked-b2": "2", "c3": "5"}


def test_proxies_are_read_as_a_login_reads_them():
    text = "# x\nHTTPS_PROXY=http://a:1\nexport NO_PROXY=\"b,c\"\n  http_proxy='d'\n"
    assert tool.variables(text) == {"HTTPS_PROXY": "http://a:1", "NO_PROXY": "b,c", "http_proxy": "d"}


def test_the_tool_knows_the_role_s_names():
    role = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())
    assert role["__docker_pool_network"] == tool.NETWORK
    dropin = (ROOT / "systemd/prefect-deploy@.service.d/docker-pool.conf").read_text()
    assert f"FLOWS_IMAGE={tool.NAME}:%i" in dropin
    assert "64202" in (ROOT / "flows/Dockerfile").read_text()


# --- settings ----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "prefect_work_pools": [
        {"name": "general"},
        {"name": "d", "type": "docker"},
        {"name": "k", "type": "kubernetes"},
        {"name": "e", "type": "ecs"},
    ],
    "prefect_workers": [],
    **yaml.safe_load((ROLE / "defaults" / "main.yml").read_text()),
}


def said(server: bool = True, **changes: Any) -> list[str]:
    return settings_of.prefect_docker_pool_problems({**SETTINGS, **changes}, server)


def test_defaults_and_a_docker_worker_on_the_server_are_right():
    assert said() == []
    assert said(prefect_workers=[{"name": "w", "pool": "d"}, {"name": "v", "pool": "general"}]) == []
    assert settings_of.prefect_docker_pool_problems({}) == []


def test_workers_elsewhere_are_no_workers_of_a_host():
    assert said(prefect_workers=[{"name": "w", "pool": "k"}, {"name": "v", "pool": "e"}]) == [
        'prefect_workers: worker "w": its pool "k" is of type "kubernetes"; the workers of such a pool run in the cluster '
        "(docs/kubernetes.md), so take it out of prefect_workers",
        'prefect_workers: worker "v": its pool "e" is of type "ecs"; the playbook makes no worker of such a pool '
        "(docs/serverless.md has how to), so take it out of prefect_workers",
    ]


def test_other_hosts_have_no_docker():
    assert said(server=False, prefect_workers=[{"name": "w", "pool": "d"}]) == [
        'prefect_workers: worker "w": its pool "d" is of type "docker"; such a worker needs a Docker engine, which this '
        "kit sets up on the server only (group prefect)"
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"docker_pool_memory": "64m"},
            'docker_pool_memory is "64m"; it must be a size from 256m up, such as 512m or 2g',
        ),
        (
            {"docker_pool_memory": "2G"},
            'docker_pool_memory is "2G"; it must be a size from 256m up, such as 512m or 2g',
        ),
        (
            {"docker_pool_volumes": ["data:/data"]},
            'docker_pool_volumes: "data:/data" is no pair of absolute paths, such as /srv/data:/data:ro',
        ),
        ({"docker_pool_keep_images": 0}, 'docker_pool_keep_images is "0"; it must be 1 or more'),
    ],
)
def test_bad_settings(changes, problem):
    assert said(**changes) == [problem]


# --- the pool's base job template --------------------------------------------------------------------------------

TEMPLATE = {
    "job_configuration": {"image": "{{ image }}", "privileged": "{{ privileged }}", "mem_limit": "{{ mem_limit }}"},
    "variables": {
        "type": "object",
        "properties": {"image": {"type": "string"}, "privileged": {"default": False}, "mem_limit": {}},
        "required": ["image", "privileged"],
    },
}
VIEW = {"prefect-docker": {"docker": {"default_base_job_configuration": TEMPLATE}}}


def wanted(**fixed: Any) -> dict[str, Any]:
    return work_pool.template_as_wanted(TEMPLATE, {"mem_limit": "1g"}, {"privileged": False, **fixed}, {})


def test_a_template_is_found_by_its_type():
    assert work_pool.template_of_type(VIEW, "docker") is TEMPLATE
    assert work_pool.template_of_type(VIEW, "ecs") is None


def test_fixed_values_are_no_variables_any_more_and_defaults_are():
    before = copy.deepcopy(TEMPLATE)
    template = wanted()
    assert before == TEMPLATE
    assert template["job_configuration"] == {
        "image": "{{ image }}",
        "privileged": False,
        "mem_limit": "{{ mem_limit }}",
    }
    assert template["variables"]["properties"] == {"image": {"type": "string"}, "mem_limit": {"default": "1g"}}
    assert template["variables"]["required"] == ["image"]
    with pytest.raises(KeyError, match="memory"):
        work_pool.template_as_wanted(TEMPLATE, {"memory": "1g"}, {}, {})


def test_a_template_follows_the_playbook_until_somebody_edits_it():
    ours = wanted()
    assert work_pool.template_decision(ours, wanted(), overwrite=False) == "same"
    assert work_pool.template_decision(ours, wanted(volumes=["/a:/b"]), overwrite=False) == "write"
    edited = copy.deepcopy(ours)
    edited["variables"]["properties"]["mem_limit"]["default"] = "2g"
    assert work_pool.template_decision(edited, wanted(), overwrite=False) == "keep"
    assert work_pool.template_decision(edited, wanted(), overwrite=True) == "write"


def test_a_template_of_others_stays_and_one_that_is_missing_is_written():
    assert work_pool.template_decision({}, wanted(), overwrite=False) == "write"
    assert work_pool.template_decision(TEMPLATE, wanted(), overwrite=False) == "keep"
    without = copy.deepcopy(wanted())
    del without["variables"]["$comment"]
    assert work_pool.template_decision(without, wanted(), overwrite=False) == "same"
