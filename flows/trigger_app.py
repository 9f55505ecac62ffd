"""An application that starts a run and answers at once. Not deployed: it stands for a service of your own.

Teaches: the application has a service account of its own (revocable, and named in the access log), asks for a
run of a deployment, and gets the run's id back without waiting for the work.

    export PREFECT_API_URL=https://YOUR_DOMAIN/api
    export PREFECT_CLIENT_CUSTOM_HEADERS='{"Authorization": "Basic …"}'   # from a secret store, not from git
    uvicorn trigger_app:app
    curl -X POST 'localhost:8000/greetings?name=Ada'

README.md has the same in plain HTTP, for places where Prefect's Python client is not at hand.
"""

from typing import Annotated
from uuid import UUID

from fastapi import FastAPI, Header
from prefect.client.orchestration import get_client
from prefect.deployments import run_deployment

app = FastAPI()


@app.post("/greetings", status_code=202)
async def start_greeting(name: str, idempotency_key: Annotated[str | None, Header()] = None) -> dict[str, UUID]:
    """Start a run and return its id. A repeated request with the same Idempotency-Key gets the same run."""
    run = await run_deployment(
        "hello/hello",
        parameters={"name": name},
        timeout=0,  # seconds to wait for its end: not at all
        as_subflow=False,
        idempotency_key=idempotency_key,
    )
    return {"flow_run_id": run.id}


@app.get("/greetings/{flow_run_id}")
async def read_greeting(flow_run_id: UUID) -> dict[str, str]:
    """Tell how far a run has come, by the name of its state."""
    async with get_client() as client:
        run = await client.read_flow_run(flow_run_id)
    return {"state": run.state_name or "Unknown"}
