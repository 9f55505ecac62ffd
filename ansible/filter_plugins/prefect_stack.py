"""What is wrong with the containers of the stack, in words."""

from __future__ import annotations

from typing import Any


def prefect_stack_words(looks: list[dict[str, Any]]) -> list[str]:
    """A sentence for each container that is missing or not healthy.

    Args:
        looks: the results of docker_container_info, each with the name that was asked for as `item`.
    """
    found = []
    for look in looks:
        name = look["item"]
        if not look.get("exists"):
            found.append(f"{name} is not there")
            continue
        state = look["container"]["State"]
        health = state.get("Health") or {}
        if (state["Status"], health.get("Status")) == ("running", "healthy"):
            continue
        # Of a health check that goes on, or has nothing to say, there is no output.
        said = [entry["Output"].strip() for entry in health.get("Log") or [] if entry["ExitCode"] and entry["Output"]]
        restarts = f", restarted {look['container']['RestartCount']} times" if look["container"]["RestartCount"] else ""
        reason = f": {said[-1]}" if said else ""
        found.append(f"{name} is {state['Status']} ({health.get('Status', 'no health check')}{restarts}){reason}")
    return found


class FilterModule:
    """Makes the functions above known to Ansible."""

    def filters(self) -> dict[str, Any]:
        return {"prefect_stack_words": prefect_stack_words}
