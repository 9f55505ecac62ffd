"""`prefect server start` with a lazier garbage collector: a start takes about a tenth less CPU time.

Prefect makes some million objects while it is imported, nearly all for good, and Python's cyclic garbage collector looks at
them again and again. Measured side by side on a busy machine, the least of five, in seconds of CPU time: 6.3 without this and
6.0 with it for Prefect 3.8.8, 6.6 and 5.3 for 3.9.1.
"""

import gc
import runpy
import sys
from pathlib import Path

#: New objects after which the collector looks at them; Python's own is 700 to 2000.
OBJECTS = 50_000

if __name__ == "__main__":
    gc.set_threshold(OBJECTS)
    # By its path: started with python -P, and what lies here is no module of Prefect's.
    runpy.run_path(str(Path(__file__).with_name("way_out.py")))["take_it"]()
    sys.path.append(str(Path(__file__).parent))
    import analytics
    from access import wall

    wall.build(analytics.turn_off)
    # All of it is imported now.
    sys.path.pop()
    sys.argv[1:] = ["server", "start"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
