"""`prefect server start` with a lazier garbage collector: a start takes a tenth to a seventh less CPU time.

Prefect makes some million objects while it is imported, nearly all for good, and Python's cyclic garbage collector looks at
them again and again (measured with 3.8.8 and 3.9.1: 5.8 s of CPU time without this, 5.0 s with it; a few MB more memory).
"""

import gc
import runpy
import sys

#: New objects after which the collector looks at them; Python's own is 700 to 2000.
OBJECTS = 50_000

if __name__ == "__main__":
    gc.set_threshold(OBJECTS)
    sys.argv[1:] = ["server", "start"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
