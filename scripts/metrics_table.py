#!/usr/bin/env python3
"""The table of docs/monitoring/metrics.md, made of the catalogue of the kit's metrics: printed, or put into the page.

    ./scripts/metrics_table.py            print it
    ./scripts/metrics_table.py --write    replace what stands below the marker in docs/monitoring/metrics.md

tests/unit/test_monitoring.py holds the page equal to it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "backups"))

from prefect_metrics import catalogue  # noqa: E402

PAGE = ROOT / "docs" / "monitoring" / "metrics.md"
MARKER = "<!-- metrics: from here on written by scripts/metrics_table.py -->\n"


def with_table(page: str) -> str:
    """The page's text with the table as it is now. Raises ValueError where it has no marker."""
    before, marker, _ = page.partition(MARKER)
    if not marker:
        raise ValueError(f'"{PAGE}" must hold the line "{MARKER.strip()}"')
    return f"{before}{MARKER}\n{catalogue.table()}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into docs/monitoring/metrics.md")
    if not parser.parse_args().write:
        print(catalogue.table(), end="")
        return 0
    text = with_table(PAGE.read_text())
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.rename(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
