"""`python prefect_hooks.py on_cancellation|on_crashed`: a flow's hooks, in the environment of the flow run that has ended.

Started by the worker with the run's own interpreter, environment and directory, so that a hook finds the release's code
and packages, and none of that is imported into the worker. The state is in $KIT_HOOK_STATE, as JSON; the run is
$PREFECT__FLOW_RUN_ID.

Run by the flows' interpreter, whatever version of Prefect that has: public names only. As with Prefect's own, hooks run
one after the other, a failing one does not keep the next from running, and they have no run context.
"""

import asyncio
import inspect
import os
import sys
from pathlib import Path
from uuid import UUID


async def main(kind: str) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import State
    from prefect.flows import load_flow_from_flow_run
    from prefect.logging.loggers import flow_run_logger

    state = State.model_validate_json(os.environ["KIT_HOOK_STATE"])
    async with get_client() as client:
        flow_run = await client.read_flow_run(UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
        logger = flow_run_logger(flow_run)
        try:
            flow = await load_flow_from_flow_run(flow_run=flow_run, use_placeholder_flow=False)
        except Exception:
            logger.warning("The flow could not be loaded, so its %s hooks are not run.", kind, exc_info=True)
            return
    for hook in getattr(flow, f"{kind}_hooks") or []:
        name = getattr(hook, "__name__", None) or type(hook).__name__
        logger.info("Running hook '%s' in response to entering state '%s'", name, state.name)
        try:
            # A thread of its own for one that is not async, as Prefect has it.
            if inspect.iscoroutinefunction(hook):
                await hook(flow, flow_run, state)
            elif inspect.isawaitable(returned := await asyncio.to_thread(hook, flow, flow_run, state)):
                await returned
        except Exception:
            logger.error("An error was encountered while running hook '%s'", name, exc_info=True)
        else:
            logger.info("Hook '%s' finished running successfully", name)


if __name__ == "__main__":
    # As `python -m` has it: modules beside the flow are found, those beside this file are not.
    sys.path[0] = str(Path.cwd())
    asyncio.run(main(sys.argv[1]))
