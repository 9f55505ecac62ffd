"""Import every flow that ./prefect.yaml names, so that a release that cannot run is refused before it is deployed.

Runs with the release's own interpreter, in the release's directory. Ends with 1 and one line for each entrypoint
that does not import.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint


def main() -> int:
    deployments = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    failed = False
    for entrypoint in sorted({deployment["entrypoint"] for deployment in deployments}):
        try:
            # Without a placeholder, which hides a module that does not import.
            load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except Exception as error:  # a flow's module may raise anything
            print(f'ERROR: "{entrypoint}" does not import: {type(error).__name__}: {error}', file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
