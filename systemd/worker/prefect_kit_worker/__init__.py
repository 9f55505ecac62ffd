"""Prefect's own workers, and what they lack for a life under systemd.

Prefect's worker kills its flow runs when it is told to stop, gives up (and kills them) when the server is away for some
minutes, and says nothing of what it leaves behind. This program is Prefect's worker class with a few methods extended:

- `worker`  takes no new runs when it is told to stop, waits for those it has, and ends and reports the rest; and gives a
  sign of life for every run it holds, which the automation "Crash detection" waits for
- `held`    what it holds, in a file: the next start reports what a killed one has left
- `again`   a new run for a crashed one, where its deployment asks for that, so many times and no more
- `late`    scheduled runs that are too late to be of use are skipped, where their deployment asks for that
- `groups`  a control group for each flow run: what it has started ends with it
- `ends`    which signal has ended a flow run, and what is likely
- `seam`    the only place of private names of Prefect's: for each why, and what would let it go
- `memory`  a flow run that would eat the worker's memory is ended before the kernel chooses somebody else
- `notify`  what systemd is told
- `control` drain and resume by hand
- `process` flow runs in processes, each started by prefect_engine.py: it waits for a door that refuses its first request, too
- `docker`  the same for flow runs in containers, with `containers`: each is watched to its real end, and taken up again
- `api`     what it asks of the API for all that; `cli` its command line
"""
