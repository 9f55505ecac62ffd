"""Keep what Python has compiled of Ansible's modules, so that the lab's many playbooks do not compile it for each task.

Ansible sends each module as a zip archive with the source of its library, and Python keeps no bytecode for archives:
compiling is half of what a short task costs (0.43 s before, 0.21 s with this, on the lab's machine). The code that runs
is the same, found by the hash of its source. Remove the directory on a VPS to see the times of a user's server.

Every Python of the VPS begins with it, so it imports little (no pathlib).
"""

import hashlib
import marshal
import os
import types
import zipimport

KEPT = "/var/cache/prefect-lab-bytecode"
_compile = zipimport._compile_source  # type: ignore[attr-defined]


def _compile_once(path: str, source: bytes) -> types.CodeType:
    name = f"{KEPT}/{hashlib.sha256(source).hexdigest()}"
    try:
        with open(name, "rb") as file:
            return marshal.loads(file.read())
    except (OSError, EOFError, ValueError):
        code = _compile(path, source)
    temporary = f"{name}.{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(marshal.dumps(code))
        os.rename(temporary, name)  # noqa: PTH104
    except OSError:
        # A full disk is what some tests are about.
        pass
    return code


# Root's alone: others could not write it, and must not.
if os.geteuid() == 0 and os.path.isdir(KEPT):  # noqa: PTH112
    zipimport._compile_source = _compile_once  # type: ignore[attr-defined]
