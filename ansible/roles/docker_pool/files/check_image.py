"""Import every flow that ./prefect.yaml names, in the image that is to run them; ends with 1 and a line for each that does not."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from prefect.flows import load_flow_from_entrypoint


def main() -> int:
    deployments = (yaml.safe_load(Path("prefect.yaml").read_text()) or {}).get("deployments") or []
    failed = False
    for entrypoint in sorted({str(deployment.get("entrypoint")) for deployment in deployments}):
        try:
            # Without a placeholder, which hides a module that does not import.
            load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
        except (Exception, SystemExit) as error:  # a flow's module may raise anything
            print(f'ERROR: "{entrypoint}" does not import: {type(error).__name__}: {error}', file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
