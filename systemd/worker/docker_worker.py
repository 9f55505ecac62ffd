"""`docker_worker.py worker start --type docker …`: Prefect's command line with the kit's docker worker in it."""

import os
import sys

from prefect.cli import app
from prefect_kit_worker import containers

if __name__ == "__main__":
    containers.register()
    code = 1
    try:
        app()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Threads that still watch containers would keep the process; the next worker takes those containers up.
        os._exit(code)
