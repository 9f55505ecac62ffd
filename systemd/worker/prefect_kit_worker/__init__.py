"""Prefect's own workers, and what they lack for a life under systemd.

Prefect's worker kills its flow runs when it is told to stop, gives up (and kills them) when the server is away for some
minutes, and says nothing of what it leaves behind. This program is Prefect's worker class with a few methods extended:

- `worker`  is what Prefect calls, and puts the rest together; what systemd tells it is in `kit`
- `runs`    which runs it has in hand, and how far it is with each: drawn as a picture, and the only place that knows it
- `held`    the same in a file: the next start reports what a killed worker has left
- `claims`  a run is claimed; one whose claim was not answered is found out about, and given back
- `heartbeats` of every run, for which the automation "Crash detection" waits, and the end of them
- `settling` a run whose process has ended is held until the server knows an end; so is what a killed worker has left
- `ending`  a run's processes are ended, also when its run has ended on the server
- `shutdown` told to stop, it takes no new runs, waits for those it has, and ends and reports the rest
- `reruns`  a new run for a crashed one, where its deployment asks for that, so many times and no more (`again`)
- `late`    scheduled runs that are too late to be of use are skipped, where their deployment asks for that
- `memory_guard` a flow run that would eat the worker's memory is ended before the kernel chooses somebody else (`memory`)
- `disk_guard` a flow run that goes on writing when the disk is nearly full is ended
- `groups`  a control group for each flow run: what it has started ends with it
- `ends`    which signal has ended a flow run, and what is likely
- `seam`    the only place of private names of Prefect's: for each why, and what would let it go
- `protocols` what the components know of the worker
- `news`    what the server tells it when it happens; `notify` what it tells systemd
- `control` drain and resume by hand
- `process` flow runs in processes, each started by prefect_engine.py: it waits for a reverse proxy that refuses its first request, too
- `docker`  the same for flow runs in containers, with `containers`: each is watched to its real end, and taken up again
- `api`     what it asks of the API for all that; `cli` its command line
"""
