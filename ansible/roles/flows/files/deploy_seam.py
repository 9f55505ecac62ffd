"""The only place of private names of Prefect's in the program that deploys (deploy_flows.py), and of what it replaces there.

For each: why it is needed, and what Prefect would have to offer for it to go.

- `prefect.cli.deploy._core._run_single_deploy`: `prefect deploy --all` ends at the first deployment that fails, and a
  person is to see what is wrong with all of them at once. To go: `prefect deploy` that tries each and tells of all.
- `prefect.cli.deploy._core._create_deployment_triggers`: the one thing that `prefect deploy` writes besides the deployment
  itself; in a rehearsal nothing is written. To go: `prefect deploy --dry-run`.
- `RunnerDeployment.apply` and `aapply` (public, but replaced): `prefect deploy` writes a deployment by the one name, which is
  by itself the other. A rehearsal looks at it there; in earnest ours adds what is missing, and keeps what a person has
  paused. To go: the same dry run, and a deployment object to hand on.
- `RunnerDeployment._parameter_openapi_schema`: against which the parameters are held before anything is written. To go: the
  same, public.
- `prefect.cli.deploy._models`: the keys that `prefect deploy` understands; it drops the others without a word, and a person
  has then written something that does nothing. To go: a published JSON schema of prefect.yaml.
- `prefect.cli.deploy._schedules._schedule_config_to_deployment_schedule` and `prefect.types._datetime.parse_datetime`: what
  `prefect deploy` makes of a schedule's entry, so that it is compared with what is there. To go: the same, public.
- Methods of `PrefectClient` (public, but replaced) that `prefect deploy` asks for each deployment anew. To go: a client
  that is handed in.

tests/unit/test_contract.py holds all of it against every supported version of Prefect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from prefect.cli.deploy import _core
from prefect.cli.deploy._models import (
    ConcurrencyLimitSpec,
    DeploymentConfig,
    PrefectYamlModel,
    RawScheduleConfig,
    WorkPoolConfig,
)
from prefect.cli.deploy._schedules import _schedule_config_to_deployment_schedule as schedule_of_entry
from prefect.client.orchestration import PrefectClient
from prefect.deployments.runner import RunnerDeployment
from prefect.types._datetime import parse_datetime

__all__ = [
    "ASKED_ONCE",
    "ConcurrencyLimitSpec",
    "DeploymentConfig",
    "PrefectYamlModel",
    "RawScheduleConfig",
    "WorkPoolConfig",
    "applied_by",
    "apply_of_prefect",
    "ask_once",
    "parameter_schema_of",
    "parse_datetime",
    "rehearsed_by",
    "schedule_of_entry",
]

# What `prefect deploy` asks for each deployment anew, and what does not change meanwhile: half of all its requests.
ASKED_ONCE = ("read_work_pool", "read_work_queues", "read_workers_for_work_pool")


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


def apply_of_prefect() -> Callable[..., Awaitable[Any]]:
    """What writes a deployment, before anything takes its place."""
    return RunnerDeployment.aapply


def parameter_schema_of(deployment: RunnerDeployment) -> dict[str, Any]:
    """What the flow of a deployment takes, as JSON schema."""
    return deployment._parameter_openapi_schema.model_dump(exclude_unset=True)


@contextlib.contextmanager
def applied_by(apply: Callable[..., Any], **more: Any) -> Iterator[None]:
    """Let `prefect deploy` hand each deployment to `apply`; `more` replaces further functions of it by name."""
    real = RunnerDeployment.apply
    others = {name: getattr(_core, name) for name in more}
    RunnerDeployment.apply = apply
    for name, function in more.items():
        setattr(_core, name, function)
    try:
        yield
    finally:
        RunnerDeployment.apply = real
        for name, function in others.items():
            setattr(_core, name, function)


def rehearsed_by(look: Callable[..., Any], failed: Callable[[Any, Exception], None]) -> Any:
    """The same with nothing written: `failed` is told of each deployment's name that `prefect deploy` would stop at."""
    real_single = _core._run_single_deploy

    async def write_nothing(*_: Any) -> None:
        return None

    async def single(deploy_config: dict[str, Any], *arguments: Any, **more: Any) -> None:
        try:
            await real_single(deploy_config, *arguments, **more)
        except Exception as reason:  # the others are to be looked at as well
            failed(deploy_config.get("name"), reason)

    return applied_by(look, _create_deployment_triggers=write_nothing, _run_single_deploy=single)
