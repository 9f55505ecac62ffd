"""Imports the flows of a release, to learn what each of them takes and whether it can be imported at all."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.hashing import file_hash


def parameters_of(flow: Any) -> list[str] | None:
    """The names of a flow's parameters; None when it takes any."""
    if any(one.kind is one.VAR_KEYWORD for one in inspect.signature(flow.fn).parameters.values()):
        return None
    return list(parameter_schema(flow).properties)


def has_version(flow: Any) -> bool:
    """Whether a flow has a version of its own; Prefect takes a hash of its file where it has none."""
    file = inspect.getsourcefile(flow.fn)
    return bool(flow.version) and not (file and flow.version == file_hash(file))


def imported(entrypoints: Iterable[str]) -> tuple[dict[str, list[str] | None], set[str], list[str]]:
    """The flows that import, each with its parameters; those with a version; what keeps the others from being imported."""
    flows: dict[str, list[str] | None] = {}
    versioned = set()
    errors = []
    for entrypoint in sorted(set(entrypoints)):
        try:
            # Without a placeholder, which hides a module that does not import.
            flow = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
            flows[entrypoint] = parameters_of(flow)
            if has_version(flow):
                versioned.add(entrypoint)
        except (Exception, SystemExit) as reason:  # a flow's module may raise anything, or end the program
            errors.append(f'"{entrypoint}" does not import: {type(reason).__name__}: {reason}')
    return flows, versioned, errors
