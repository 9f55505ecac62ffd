"""flows/: what can be said of the examples, prefect.yaml and the lock without a server."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from prefect import Flow
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.flows import load_flow_from_entrypoint
from prefect.logging import disable_run_logger
from prefect.states import Failed
from prefect.utilities.templating import apply_values

ROOT = Path(__file__).resolve().parents[2]
FLOWS = ROOT / "flows"
PREFECT_YAML = yaml.safe_load((FLOWS / "prefect.yaml").read_text())
DEPLOYMENTS = PREFECT_YAML["deployments"]
MODULES = sorted(path.stem for path in FLOWS.glob("*.py"))


def load(deployment: dict, monkeypatch: pytest.MonkeyPatch) -> Flow:
    """Load the flow of a deployment as a worker does: from the release's directory."""
    monkeypatch.chdir(FLOWS)
    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
class TestDeployment:
    def test_its_flow_loads_and_says_what_it_does(self, deployment, monkeypatch):
        flow = load(deployment, monkeypatch)
        assert deployment.get("description") or flow.description

    def test_its_parameters_are_those_of_the_flow(self, deployment, monkeypatch):
        flow = load(deployment, monkeypatch)
        flow.validate_parameters(deployment.get("parameters", {}))

    def test_it_takes_release_interpreter_and_pool_from_the_environment(self, deployment):
        assert deployment["version"] == "{{ $FLOWS_VERSION }}"
        assert deployment["work_pool"]["name"] == "{{ $FLOWS_POOL }}"
        assert deployment["work_pool"]["work_queue_name"] == "default"
        assert deployment["work_pool"]["job_variables"]["command"] == "{{ $FLOWS_PYTHON }} -m prefect.engine"
        assert deployment["tags"]

    def test_its_schedules_are_cheap_and_can_be_found_again(self, deployment):
        for schedule in deployment.get("schedules", []):
            assert schedule["slug"], "without a slug a deploy would start a paused schedule again"
            assert "timezone" in schedule or "cron" not in schedule
            assert schedule.get("interval", 3600) >= 900


def test_prefect_reads_the_file_and_ignores_no_key():
    model = PrefectYamlModel.model_validate(PREFECT_YAML)
    for given, read in zip(DEPLOYMENTS, model.deployments, strict=True):
        assert set(given) == set(read.model_dump(exclude_unset=True))


def test_a_flow_and_a_name_make_one_deployment(monkeypatch):
    names = [(load(deployment, monkeypatch).name, deployment["name"]) for deployment in DEPLOYMENTS]
    assert len(set(names)) == len(names)


def test_directory_and_interpreter_are_of_one_release(monkeypatch):
    # Both are job variables, which a worker reads at once; the pull step reads the first when the run has started.
    step = "prefect.deployments.steps.set_working_directory"
    assert PREFECT_YAML["pull"] == [{step: {"directory": "{{ $RELEASE_DIRECTORY }}"}}]
    for deployment in DEPLOYMENTS:
        env = deployment["work_pool"]["job_variables"]["env"]
        assert env["RELEASE_DIRECTORY"] == "{{ $FLOWS_DIRECTORY }}", deployment["name"]
    # Prefect fills in a variable that is there when a deployment is made, so it must not be there then.
    assert "RELEASE_DIRECTORY" not in (ROOT / "systemd" / "prefect-deploy@.service").read_text()
    monkeypatch.delenv("RELEASE_DIRECTORY", raising=False)
    assert apply_values(PREFECT_YAML["pull"], {}, remove_notset=False) == PREFECT_YAML["pull"]


@pytest.mark.parametrize("module", MODULES)
def test_each_example_says_what_it_teaches(module, examples):
    assert "Teaches: " in examples(module).__doc__ or module == "smoke"


def test_the_table_in_the_readme_is_complete(monkeypatch):
    readme = (FLOWS / "README.md").read_text()
    rows = dict(re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|(.*?)\|", readme, re.MULTILINE))
    deployments: dict[str, list[str]] = {f"{module}.py": [] for module in MODULES}
    for deployment in DEPLOYMENTS:
        file = deployment["entrypoint"].partition(":")[0]
        deployments[file].append(f"`{load(deployment, monkeypatch).name}/{deployment['name']}`")
    assert {file: sorted(filter(None, cell.strip().split(", "))) for file, cell in rows.items()} == {
        file: sorted(names) for file, names in deployments.items()
    }


def test_the_lock_has_the_oldest_supported_version_and_no_address():
    """A client may be older than its server, not newer."""
    version = yaml.safe_load((ROOT / "ansible/roles/prefect/vars/main.yml").read_text())[
        "__prefect_supported_versions"
    ][0]
    lock = (FLOWS / "requirements.txt").read_text()
    assert re.findall(r"^prefect==(\S+) ", lock, re.MULTILINE) == [version]
    assert PREFECT_YAML["prefect-version"] == version
    assert "://" not in lock
    requirements = re.split(r"\n(?=\S)", re.sub(r"^ *#.*\n?", "", lock, flags=re.MULTILINE).strip())
    assert all("--hash=sha256:" in requirement for requirement in requirements)


def test_the_template_is_a_directory_to_copy_and_no_part_of_the_examples(monkeypatch):
    template = FLOWS / "template"
    content = yaml.safe_load((template / "prefect.yaml").read_text())
    assert {path.name for path in template.iterdir()} >= {"prefect.yaml", "requirements.in", "report.py"}
    model = PrefectYamlModel.model_validate(content)
    assert [entry.name for entry in model.deployments] == ["on-demand", "nightly"]
    assert [schedule["slug"] for schedule in content["deployments"][1]["schedules"]] == ["nightly"]
    # A plain file: not one line that only the kit knows.
    assert "FLOWS_" not in (template / "prefect.yaml").read_text()
    monkeypatch.chdir(template)
    for entry in content["deployments"]:
        flow = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
        flow.validate_parameters(entry.get("parameters", {}))
    assert "Secret.load(" in (template / "report.py").read_text()


@pytest.fixture
def examples(monkeypatch):
    """Import an example by its name."""
    monkeypatch.syspath_prepend(FLOWS)
    return importlib.import_module


class TestFunctions:
    def test_a_rejection_is_not_tried_again(self, examples):
        failures = examples("failures")
        assert failures.may_pass(None, None, Failed(data=failures.Unreachable("later")))
        assert not failures.may_pass(None, None, Failed(data=failures.Rejected("no")))

    def test_a_file_goes_by_its_path(self, examples, tmp_path):
        files = examples("files")
        assert files.summarize.fn(files.extract.fn(tmp_path, 4)) == 0 + 1 + 4 + 9

    def test_a_program_that_fails_is_an_error(self, examples):
        with disable_run_logger(), pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
            examples("shell").run_program.fn([sys.executable, "-c", "exit(3)"], limit_seconds=30)

    def test_a_program_that_hangs_is_killed(self, examples):
        start = time.monotonic()
        with disable_run_logger(), pytest.raises(subprocess.CalledProcessError, match="SIGKILL"):
            examples("shell").run_program.fn(["sleep", "60"], limit_seconds=0.2)
        assert time.monotonic() - start < 10
