"""Make the deployments of ./prefect.yaml, all or none: each is tried out before the first one is touched.

Runs with the release's own interpreter, in the release's directory. Three steps: every flow is imported; `prefect
deploy --all` goes through with nothing written, and what it would have written is held against the server's rules;
then it goes through in earnest. Ends with 3, and a line for each error, when one of the first two steps found any.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import yaml
from prefect.cli import app
from prefect.cli.deploy import _core
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentCreate, DeploymentScheduleCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.schema_tools import validate

REFUSED = 3
# What `prefect deploy` asks for each deployment anew, and what does not change meanwhile: half of all its requests.
ASKED_ONCE = ("read_work_pool", "read_work_queues", "read_workers_for_work_pool")


def error(text: str) -> None:
    """One line, for the person who deploys."""
    print(f"ERROR: {text}", file=sys.stderr, flush=True)


def entries() -> list[dict[str, Any]]:
    """The deployments of prefect.yaml as they are written there."""
    content = yaml.safe_load(Path("prefect.yaml").read_text())
    return (content or {}).get("deployments") or []


def import_errors(deployments: list[dict[str, Any]]) -> list[str]:
    """What keeps a flow from being imported, by entrypoint."""
    errors = []
    for entrypoint in sorted({str(deployment.get("entrypoint")) for deployment in deployments}):
        try:
            # Without a placeholder, which hides a module that does not import.
            load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except (Exception, SystemExit) as reason:  # a flow's module may raise anything, or end the program
            errors.append(f'"{entrypoint}" does not import: {type(reason).__name__}: {reason}')
    return errors


def first_lines(reason: Exception) -> str:
    """A library's long words, shortened to one line."""
    return " ".join(str(reason).split())[:400]


async def rule_errors(deployment: RunnerDeployment, schedules: list[dict[str, Any]]) -> list[str]:
    """What the server would refuse of a deployment, and what it would take and never could run."""
    errors = []

    def hold(what: str, check: Callable[[], Any]) -> None:
        try:
            check()
        except Exception as reason:  # each rule has an exception of its own
            errors.append(f"{what}: {first_lines(reason)}")

    hold("name", lambda: DeploymentCreate(name=deployment.name, flow_id=uuid4()))
    hold("schedules", lambda: [DeploymentScheduleCreate(**schedule) for schedule in schedules])
    if deployment.concurrency_limit is not None and deployment.concurrency_limit < 1:
        errors.append(f"concurrency_limit: {deployment.concurrency_limit} is not 1 or more")
    if deployment.enforce_parameter_schema:
        schema = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
        given = [deployment.parameters, *(schedule.get("parameters") for schedule in schedules)]
        for parameters in filter(None, given):
            hold("parameters", lambda it=parameters: validate(it, schema, raise_on_error=True, ignore_required=True))
    async with get_client() as client:
        pool = await client.read_work_pool(deployment.work_pool_name)
        queues = sorted(queue.name for queue in await client.read_work_queues(work_pool_name=pool.name))
    if deployment.work_queue_name and deployment.work_queue_name not in queues:
        # The server would make it, and no worker that has been given queues would ever look there.
        errors.append(
            f'work_queue_name: the pool "{pool.name}" has no queue "{deployment.work_queue_name}", '
            f"only {', '.join(queues)}"
        )
    if variables := pool.base_job_template.get("variables"):
        rules = {"raise_on_error": True, "ignore_required": True, "allow_none_with_default": True}
        hold("job_variables", lambda: validate(deployment.job_variables, variables, **rules))
    return errors


def ask_once(name: str) -> None:
    """Let a method of Prefect's client keep its answers."""
    real = getattr(PrefectClient, name)
    answers: dict[str, Any] = {}

    async def asked(self: PrefectClient, *arguments: Any, **more: Any) -> Any:
        question = repr((arguments, more))
        if question not in answers:
            answers[question] = await real(self, *arguments, **more)
        return answers[question]

    setattr(PrefectClient, name, asked)


def prefect_deploy() -> int:
    """`prefect deploy --all` in this process; its exit code."""
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all"]
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def rehearse(wanted: int) -> tuple[list[str], set[str]]:
    """Errors of a whole deploy in which nothing is written, and the names of deployments without a schedule."""
    errors: list[str] = []
    seen: set[str] = set()
    unscheduled: set[str] = set()

    async def look(self: RunnerDeployment, schedules: list[dict[str, Any]] | None = None, **_: Any) -> UUID:
        if self.full_name in seen:
            errors.append(f'deployment "{self.full_name}" is there twice')
        seen.add(self.full_name)
        if not schedules:
            unscheduled.add(self.full_name)
        errors.extend(f'deployment "{self.full_name}": {text}' for text in await rule_errors(self, schedules or []))
        return uuid4()

    async def write_nothing(*_: Any) -> None:
        return None

    real = RunnerDeployment.apply, _core._create_deployment_triggers
    RunnerDeployment.apply, _core._create_deployment_triggers = look, write_nothing
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = prefect_deploy()
    finally:
        RunnerDeployment.apply, _core._create_deployment_triggers = real
    if code:
        # Its words, without the frames that it draws.
        words = [line.strip("│╭╰╮╯─ ") for line in said.getvalue().splitlines()]
        errors.append("prefect deploy: " + " ".join(filter(None, words))[-600:])
    elif not errors and len(seen) != wanted:
        errors.append(f"prefect.yaml has {wanted} deployments, of which {len(seen)} have a name and can be deployed")
    return errors, unscheduled


def remove_schedules(names: set[str]) -> None:
    """Take away what an earlier release scheduled: Prefect leaves schedules be when a deployment names none.

    Those are the ones with a slug; a schedule that a person made in the UI has none, and stays.
    """
    with get_client(sync_client=True) as client:
        for name in sorted(names):
            deployment = client.read_deployment_by_name(name)
            for schedule in deployment.schedules:
                if schedule.slug:
                    client.delete_deployment_schedule(deployment.id, schedule.id)
                    print(f'Removed the schedule "{schedule.slug}" of {name}.')


def main() -> int:
    # As `python -m prefect.engine` has it: not this program's directory, but the release's.
    sys.path[0] = str(Path.cwd())
    home = Path.cwd()
    for name in ASKED_ONCE:
        ask_once(name)
    deployments = entries()
    errors = import_errors(deployments)
    unscheduled: set[str] = set()
    if not errors:
        errors, unscheduled = rehearse(len(deployments))
        os.chdir(home)
    for text in errors:
        error(text)
    if errors:
        return REFUSED
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = prefect_deploy()
    done = re.findall(r"Deployment '(.+?)' successfully\s+created", said.getvalue().replace("│", " "))
    print(f"{len(done)} of {len(deployments)} deployments made.")
    if code:
        print(said.getvalue()[-3000:], file=sys.stderr)
        return code
    remove_schedules(unscheduled)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
