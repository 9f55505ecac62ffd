"""`docker_worker.py worker start --type docker …`: Prefect's command line with the kit's docker worker in it."""

from prefect.cli import app
from prefect_kit_worker import containers

if __name__ == "__main__":
    containers.register()
    app()
