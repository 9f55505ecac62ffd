"""`python prefect_engine.py`, in the environment of a flow run: `python -m prefect.engine`, with more
patience for the reverse proxy.

Prefect's clients (3.8.8, client/base.py) ask again when a connection is refused, but only once one has stood: a flow run
whose first request met a reverse proxy that was just being restarted was Crashed. Each client of this process asks again from
its first request on, as often as it otherwise would (`RETRIES` in prefect_kit_worker/worker.py).

`_has_connected` of both clients is the one private name of Prefect's here. To go: a setting that has clients ask again
from the first request on. tests/unit/test_contract.py holds it against every supported version.

And while Prefect is imported, Python's cyclic garbage collector is off: it would look at half a million objects that stay
for good (measured: a sixth of the CPU time of the imports, 0.3 s of each flow run).

Run by the flows' interpreter, whatever version of Prefect that has, so nothing of the worker's is imported here; and
where a version has no such classes or no such attribute, nothing changes.
"""

import contextlib
import gc
import runpy
import sys
from pathlib import Path


def be_patient() -> None:
    """Have each client behave as though a connection of it had stood before."""
    from prefect.client.base import PrefectHttpxAsyncClient, PrefectHttpxSyncClient

    for client in PrefectHttpxAsyncClient, PrefectHttpxSyncClient:
        client._has_connected = property(lambda self: True, lambda self, value: None)


if __name__ == "__main__":
    # As `python -m` has it: modules beside the flow are found, those beside this file are not.
    sys.path[0] = str(Path.cwd())
    gc.disable()
    with contextlib.suppress(ImportError):
        be_patient()
    # The flow itself, its modules and its data have the collector as always; Prefect's own objects it need not look at.
    gc.freeze()
    gc.enable()
    # Under its own name, by which processes that a flow starts find their main module again.
    runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
