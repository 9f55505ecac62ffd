"""Make the deployments of ./prefect.yaml, all or none: each is tried out before the first one is touched.

Runs with the release's own interpreter, in the release's directory. The steps: prefect.yaml is held against Prefect's
keys and the server's work pools, and every flow is imported; `prefect deploy --all` goes through with nothing written,
and what it would have written is held against the server's rules; what would be removed or replaced is looked at; then
it goes through in earnest. Ends with 3, and a line for each error, when an earlier step found any.

What a worker needs of a deployment, and prefect.yaml does not say, is added: see complete().
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import deploy_ownership as ownership
import deploy_schedules
import deploy_seam as seam
import flows_definition as definition
import yaml
from deploy_imports import imported
from deploy_server import deployments_there, work_pools
from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentCreate, DeploymentScheduleCreate
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.utilities.schema_tools import validate
from prefect.utilities.templating import apply_values

REFUSED = 3
SET_DIRECTORY = "prefect.deployments.steps.set_working_directory"
# What `prefect deploy` prints besides the reason for which it stopped.
CHATTER = re.compile(
    r"successfully created|View Deployment|prefect deployment run|prefect worker start|^Deploying |^To "
)


def error(text: str) -> None:
    """One line, for the person who deploys."""
    print(f"ERROR: {text}", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """One line that the playbook shows when all has gone well."""
    print(f"NOTE: {text}", flush=True)


def releases() -> Path:
    """Where all releases lie."""
    return Path(os.environ["FLOWS_DIRECTORY"]).parent


# --- what a deployment needs -----------------------------------------------------------------------------------------


def complete(deployment: RunnerDeployment, pool_type: str, has_version: bool) -> list[str]:
    """Add to a deployment what its prefect.yaml does not say; gives the names of what was added.

    The version is the release's name. Runs work in the release's directory, with the interpreter of the release's own
    environment (in a container: in the release's image). The directory comes with the job variables, as the interpreter
    does: a worker reads both at once, so a run that starts in the middle of a deploy has code and environment of one
    release, never of two. What prefect.yaml does say stays.
    """
    added = []
    if not has_version:
        deployment.version = os.environ["FLOWS_VERSION"]
        added.append("version")
    job = dict(deployment.job_variables or {})
    image = os.environ.get("FLOWS_IMAGE")
    if pool_type == "process" and not job.get("command"):
        job["command"] = f"{os.environ['FLOWS_PYTHON']} -m prefect.engine"
        added.append("job variable command")
    if pool_type == "docker" and image and not job.get("image"):
        job["image"] = image
        added.append("job variable image")
    # Elsewhere, and in an image of somebody's own, the release's directory is not there.
    if pool_type == "process" or (pool_type == "docker" and job.get("image") == image):
        added += lead_to_release(deployment)
    environment = dict(job.get("env") or {})
    if ownership.DIRECTORY not in environment:
        environment[ownership.DIRECTORY] = os.environ["FLOWS_DIRECTORY"]
        added.append(f"environment variable {ownership.DIRECTORY}")
    environment[ownership.MARK] = deployment.full_name
    deployment.job_variables = {**job, "env": environment}
    return added


class Said:
    """What prefect.yaml and the flows say of a deployment themselves, where Prefect's own class no longer tells it from
    a default.
    """

    def __init__(self, entries: Iterable[dict[str, Any]], versioned: set[str]) -> None:
        filled = apply_values(list(entries), dict(os.environ), remove_notset=False)
        self._entries = {(entry.get("name"), entry.get("entrypoint")): entry for entry in filled}
        self._versioned = versioned

    def version(self, deployment: RunnerDeployment) -> bool:
        return deployment.entrypoint in self._versioned or bool(self._entry(deployment).get("version"))

    def paused(self, deployment: RunnerDeployment) -> bool:
        return self._entry(deployment).get("paused") is not None

    def _entry(self, deployment: RunnerDeployment) -> dict[str, Any]:
        return self._entries.get((deployment.name, deployment.entrypoint), {})


def with_pool(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry, with the work pool of the inventory where it names none: Prefect would stop there."""
    pool = entry.get("work_pool", {})
    if not isinstance(pool, dict) or pool.get("name"):
        return entry
    return {**entry, "work_pool": {**pool, "name": os.environ["FLOWS_POOL"]}}


def is_here(directory: str) -> bool:
    """Whether this host has a directory; homes are closed to the unit that deploys, as they are to workers."""
    try:
        return Path(directory).is_dir()
    except OSError:
        return False


def lead_to_release(deployment: RunnerDeployment) -> list[str]:
    """Let the pull steps lead to the release, where they lead nowhere else."""
    steps = copy.deepcopy(deployment.storage.pull_steps or [])
    here = str(Path.cwd().resolve())
    added = []
    for step in steps:
        values = step.get(SET_DIRECTORY)
        directory = values.get("directory") if isinstance(values, dict) else None
        if directory == here:
            # What `prefect deploy` adds by itself when there is no pull step.
            added.append("pull step")
        elif isinstance(directory, str) and directory.startswith("/") and not is_here(directory):
            # What `prefect init` writes: a directory of the machine on which somebody wrote the file.
            added.append(f'the release as directory of the pull step, instead of "{directory}", which is not there')
        else:
            continue
        values["directory"] = f"{{{{ ${ownership.DIRECTORY} }}}}"
    if added:
        deployment.storage.pull_steps = steps
    return added


def added_note(added: Iterable[list[str]], count: int) -> str:
    """Which lines were added to how many deployments."""
    parts = Counter(name for names in added for name in names)
    words = ", ".join(f"{name} ({number} of {count})" for name, number in parts.items())
    return f"Added where prefect.yaml does not say it: {words}."


# --- trying out ------------------------------------------------------------------------------------------------------


async def rule_errors(deployment: RunnerDeployment, schedules: list[dict[str, Any]]) -> list[str]:
    """What the server would refuse of a deployment, and what it would take and never could run."""
    errors = []

    def hold(what: str, check: Callable[[], Any]) -> None:
        try:
            check()
        except Exception as reason:  # each rule has an exception of its own
            errors.append(f"{what}: {definition.one_line(reason)}")

    hold("name", lambda: DeploymentCreate(name=deployment.name, flow_id=uuid4()))
    hold("schedules", lambda: [DeploymentScheduleCreate(**schedule) for schedule in schedules])
    if deployment.concurrency_limit is not None and deployment.concurrency_limit < 1:
        errors.append(f"concurrency_limit: {deployment.concurrency_limit} is not 1 or more")
    if deployment.enforce_parameter_schema:
        schema = seam.parameter_schema_of(deployment)
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


def prefect_deploy(file: Path) -> tuple[int, str]:
    """`prefect deploy --all` in this process; its exit code and what it printed."""
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            app()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    return code, said.getvalue()


def reason_of(said: str) -> str:
    """Why `prefect deploy` has stopped, without its frames and what it says of other deployments."""
    words = [line.strip("│╭╰╮╯─ $\t") for line in said.splitlines()]
    return " ".join(line for line in words if line and not CHATTER.search(line))[-600:]


@contextlib.contextmanager
def file_of(content: dict[str, Any], entries: list[dict[str, Any]]) -> Any:
    """A prefect.yaml with these deployments only; the release itself is never written to."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "prefect.yaml"
        path.write_text(yaml.safe_dump({**content, "deployments": entries}))
        yield path


def rehearse(
    content: dict[str, Any], entries: list[dict[str, Any]], pools: dict[str, dict[str, Any]], said: Said
) -> tuple[list[str], dict[str, list[str]]]:
    """Errors of a whole deploy in which nothing is written; and what was added to each deployment, by its name."""
    errors: list[str] = []
    added: dict[str, list[str]] = {}

    async def look(self: RunnerDeployment, schedules: list[dict[str, Any]] | None = None, **_: Any) -> UUID:
        if self.full_name in added:
            errors.append(f'deployment "{self.full_name}" is there twice')
        pool = pools.get(self.work_pool_name or "")
        added[self.full_name] = complete(self, pool["type"] if pool else "", said.version(self))
        errors.extend(f'deployment "{self.full_name}": {text}' for text in await rule_errors(self, schedules or []))
        return uuid4()

    def failed(name: Any, reason: Exception) -> None:
        errors.append(f'deployment "{name}": {definition.one_line(reason)}')

    with file_of(content, entries) as file, seam.rehearsed_by(look, failed):
        code, words = prefect_deploy(file)
    if code and not errors:
        errors.append(f"prefect deploy: {reason_of(words)}")
    elif not errors and len(added) != len(entries):
        errors.append(f"prefect.yaml has {len(entries)} deployments, of which {len(added)} can be deployed")
    return errors, added


# --- in earnest ------------------------------------------------------------------------------------------------------


def in_earnest(pools: dict[str, dict[str, Any]], said: Said, notes: list[str]) -> Callable[..., Any]:
    """What takes the place of RunnerDeployment.apply: Prefect's own, which by itself starts again what a person has
    paused, and takes every schedule for the file's as soon as one has no slug.
    """
    real = seam.apply_of_prefect()

    async def apply(self: RunnerDeployment, schedules: list[dict[str, Any]] | None = None, **more: Any) -> UUID:
        complete(self, pools[self.work_pool_name]["type"], said.version(self))
        wanted = [deploy_schedules.Wanted.of(schedule) for schedule in schedules or []]
        async with get_client() as client:
            try:
                there = await client.read_deployment_by_name(self.full_name)
            except ObjectNotFound:
                made = [{**schedule, "slug": new.slug} for schedule, new in zip(schedules or [], wanted, strict=True)]
                return await real(self, schedules=made, **more)
            before = before_of(there.model_dump(mode="json"), self.full_name)
            changes = deploy_schedules.schedule_changes(list(there.schedules), before, wanted)
            # A deploy that is cut off after this has no schedule of two releases.
            for one in changes.delete:
                await client.delete_deployment_schedule(there.id, one.id)
            if there.paused and not said.paused(self):
                # Prefect makes False of what is not said.
                self.paused = True
                notes.append(f"{self.full_name} stays paused.")
            made_id = await real(self, schedules=None, **more)
            for one, new in changes.update:
                schedule = new.schedule
                if isinstance(schedule, IntervalSchedule) and "anchor_date" not in schedule.model_fields_set:
                    anchor = getattr(one.schedule, "anchor_date", None)
                    schedule = schedule.model_copy(update={"anchor_date": anchor} if anchor else {})
                await client.update_deployment_schedule(
                    there.id, one.id, active=new.active, schedule=schedule, parameters=new.parameters, slug=new.slug
                )
            if changes.create:
                made = [
                    DeploymentScheduleCreate(
                        schedule=new.schedule,
                        active=new.active is not False,
                        parameters=new.parameters,
                        slug=new.slug,
                    )
                    for new in changes.create
                ]
                await client.create_deployment_schedules(there.id, made)
            notes.extend(deploy_schedules.schedule_notes(self.full_name, changes))
            return made_id

    return apply


def before_of(deployment: dict[str, Any], full_name: str) -> list[deploy_schedules.Wanted]:
    """The schedules that the deploy before has given to a deployment: those of the release that it points to."""
    if not ownership.made_by_kit(deployment, full_name, releases()):
        return []
    release = ownership.release_of(deployment, releases())
    entry = ownership.entry_of(release, deployment["name"], deployment["entrypoint"])
    return deploy_schedules.wanted_of(entry, os.environ)


def main() -> int:
    # As `python -m prefect.engine` has it: not this program's directory, but the release's.
    sys.path[0] = str(Path.cwd())
    home = Path.cwd()
    for name in seam.ASKED_ONCE:
        seam.ask_once(name)
    content = yaml.safe_load(Path("prefect.yaml").read_text())
    listed = (content.get("deployments") or []) if isinstance(content, dict) else []
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    entrypoints = apply_values([entry["entrypoint"] for entry in entries if entry.get("entrypoint")], dict(os.environ))
    flows, versioned, errors = imported(map(str, entrypoints))
    with get_client(sync_client=True) as client:
        pools = work_pools(client)
        said = Said(entries, versioned)
        checked = definition.check(content, pools, flows, os.environ)
        notes: list[str] = []
        trial = checked.entries
        if os.environ.get("FLOWS_AGAIN") == "true":
            # What was deployed before can be gone back to, whatever rule there is by now: Prefect itself decides.
            notes += [f"Of prefect.yaml: {text}" for text in checked.errors]
            trial = entries if not errors else []
        else:
            errors += checked.errors
        added: dict[str, list[str]] = {}
        if trial:
            more, added = rehearse(content, [with_pool(entry) for entry in trial], pools, said)
            errors += more
            os.chdir(home)
        if not errors:
            there = deployments_there(client)
            ours = {name for name, one in there.items() if ownership.made_by_kit(one, name, releases())}
            planned = ownership.plan(added, ours, there.keys() - ours)
            may_remove, may_replace = (os.environ.get(f"FLOWS_{word}") == "true" for word in ("REMOVE", "REPLACE"))
            errors += planned.refusals(len(added), may_remove, may_replace)
        for text in errors:
            error(text)
        if errors:
            return REFUSED
        unsaid = [f"work pool {os.environ['FLOWS_POOL']}" for one in entries if with_pool(one) != one]
        lines = [*added.values(), unsaid]
        notes += [added_note(lines, len(entries))] if any(lines) else []
        pooled = [with_pool(entry) for entry in entries]
        with file_of(content, pooled) as file, seam.applied_by(in_earnest(pools, said, notes)):
            code, words = prefect_deploy(file)
        os.chdir(home)
        done = re.findall(r"Deployment '(.+?)' successfully\s+created", words.replace("│", " "))
        print(f"{len(done)} of {len(entries)} deployments made.")
        if code:
            error(reason_of(words) or f"prefect deploy ended with {code}")
            return code
        for name in planned.removed:
            with contextlib.suppress(ObjectNotFound):
                client.delete_deployment(UUID(there[name]["id"]))
        if planned.removed:
            notes.append(f"Removed, because prefect.yaml no longer has it: {', '.join(planned.removed)}.")
        if planned.replaced:
            notes.append(f"Replaced, although somebody else had made or changed it: {', '.join(planned.replaced)}.")
    for text in notes:
        note(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
