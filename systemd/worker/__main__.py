"""`python /opt/prefect/worker/program --name NAME --type process --pool POOL …`: the worker behind prefect-worker@NAME."""

from prefect_kit_worker.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
