"""Which image serves: what the stack's env-file names, and has to name before the containers are made again."""

from __future__ import annotations

from pathlib import Path

from . import placed
from .errors import Code, Failure
from .files import write_whole
from .host import Host
from .stack import SERVER


def served(host: Host) -> str:
    """The image that this host's server runs."""
    return host.stack.environment().get("PREFECT_IMAGE", "")


def set_image(host: Host, image: str, variable: str = "PREFECT_IMAGE") -> None:
    """Name the image in the stack's env-file, where it already stands.

    Prefect's also becomes that to which the database was migrated.
    """
    path = Path(host.settings.compose_environment)
    lines = path.read_text().splitlines()
    changed = [f"{variable}={image}" if line.startswith(f"{variable}=") else line for line in lines]
    if f"{variable}={image}" not in changed:
        raise Failure(Code.SETTINGS, f"{path} names no {variable}", "run: ansible-playbook site.yml --tags stack")
    if variable == "PREFECT_IMAGE":
        # The role `stack` migrates where this differs from the image (migrate.yml).
        state = Path(host.stack.environment().get("PREFECT_STATE", "/var/lib/prefect"))
        write_whole(state / "migrated", f"{image}\n", mode=0o644)
    write_whole(path, "\n".join(changed) + "\n", mode=path.stat().st_mode & 0o777)
    placed.note(path)


def serve_with(host: Host, image: str) -> None:
    """Have the server made from another image at its next start; it is stopped, or a boot has started it in vain. What is done twice does no harm.

    Raises Failure.
    """
    set_image(host, image)
    # Started again it would be the old one.
    host.stack.compose("rm", "--stop", "--force", SERVER.removeprefix("prefect-"))
