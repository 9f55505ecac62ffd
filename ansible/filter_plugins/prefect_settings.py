"""What is wrong with the settings of an inventory, for the preflight: what is decided lies in the package
plugin_utils/prefect_preflight, of which these are the filters.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# Ansible takes each file of filter_plugins for a plugin, and has no place for what they share outside a collection.
UTILS = str(Path(__file__).resolve().parents[1] / "plugin_utils")
if UTILS not in sys.path:
    sys.path.append(UTILS)

from prefect_preflight import (  # noqa: E402
    prefect_left_passwords,
    prefect_moved_problems,
    prefect_options,
    prefect_postgres_problems,
    prefect_postgres_upgrade_problem,
    prefect_running,
    prefect_settings_problems,
    prefect_typed,
    prefect_upgrade_problem,
    prefect_version_problems,
)


class FilterModule:
    """Makes the filters known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {
            "prefect_left_passwords": prefect_left_passwords,
            "prefect_moved_problems": prefect_moved_problems,
            "prefect_options": prefect_options,
            "prefect_postgres_problems": prefect_postgres_problems,
            "prefect_postgres_upgrade_problem": prefect_postgres_upgrade_problem,
            "prefect_running": prefect_running,
            "prefect_settings_problems": prefect_settings_problems,
            "prefect_typed": prefect_typed,
            "prefect_upgrade_problem": prefect_upgrade_problem,
            "prefect_version_problems": prefect_version_problems,
        }
