"""Whose a deployment is, by the mark that the kit sets, and what a deploy would do to those that are there. Asks no server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# How the kit marks a deployment of its own, among its job variables: with the release that it runs from, and with its
# own name, so that a copy under another name does not count as the kit's.
DIRECTORY = "RELEASE_DIRECTORY"
MARK = "RELEASE_DEPLOYMENT"


def release_of(deployment: Mapping[str, Any], releases: Path) -> Path | None:
    """The release below `releases` that runs of the deployment work in."""
    paths = [((deployment.get("job_variables") or {}).get("env") or {}).get(DIRECTORY)]
    for step in deployment.get("pull_steps") or []:
        paths += [values.get("directory") for values in step.values() if isinstance(values, Mapping)]
    for path in paths:
        if isinstance(path, str) and Path(path).parent == releases:
            return Path(path)
    return None


def entry_of(release: Path | None, name: str, entrypoint: str | None) -> dict[str, Any]:
    """The entry by which a release has made a deployment; empty when there is none, or it cannot be read any more."""
    if release is None:
        return {}
    try:
        content = yaml.safe_load((release / "prefect.yaml").read_text())
        entries = [entry for entry in content["deployments"] if entry.get("name") == name]
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError):
        return {}
    return next((entry for entry in entries if entry.get("entrypoint") == entrypoint), {})


def made_by_kit(deployment: Mapping[str, Any], full_name: str, releases: Path) -> bool:
    """Whether a deploy of the kit made the deployment.

    The mark says so. Earlier versions of the kit set none: they gave a deployment its release's name as version.
    """
    mark = ((deployment.get("job_variables") or {}).get("env") or {}).get(MARK)
    if mark is not None:
        return bool(mark == full_name)
    release = release_of(deployment, releases)
    if release is None or release.name != deployment.get("version"):
        return False
    return bool(entry_of(release, str(deployment.get("name")), deployment.get("entrypoint")))


@dataclass
class Plan:
    """What a deploy would do to the deployments that are there."""

    removed: list[str]
    replaced: list[str]
    stay: list[str]

    def refusals(self, brings: int, may_remove: bool, may_replace: bool) -> list[str]:
        """Why it must not be done without somebody's word."""
        errors = []
        if self.removed and not may_remove and (not self.stay or len(self.removed) > brings):
            errors.append(
                f"prefect.yaml has {brings} {'deployment' if brings == 1 else 'deployments'}, and deploying it would remove "
                f"{'' if self.stay else 'all '}{len(self.removed)} that earlier releases made: {', '.join(self.removed)}. "
                "To remove them: -e flows_remove_deployments=true"
            )
        if self.replaced and not may_replace:
            errors.append(
                f"deploying it would replace what somebody else has made or changed: {', '.join(self.replaced)}. Give other "
                "names to the deployments of prefect.yaml, or, to replace those: -e flows_replace_deployments=true"
            )
        return errors


def plan(wanted: Iterable[str], ours: Iterable[str], others: Iterable[str]) -> Plan:
    """What deploying `wanted` means, where the kit has made `ours` and other people have made `others`."""
    wanted, ours, others = set(wanted), set(ours), set(others)
    return Plan(removed=sorted(ours - wanted), replaced=sorted(others & wanted), stay=sorted(ours & wanted))
