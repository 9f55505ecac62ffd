"""The command line of the worker, with the options of `prefect worker start` that the units use."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

from .kit import Kit
from .memory import limit_in_bytes, total_memory
from .notify import Systemd


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="prefect_kit_worker", description=__doc__)
    parser.add_argument("--name", required=True, help="name of the worker")
    parser.add_argument("--type", choices=("process", "docker"), default="process", help="type of its work pool")
    parser.add_argument("--pool", required=True, help="work pool")
    parser.add_argument("--work-queue", action="append", default=[], help="a queue of the pool; all when none is given")
    parser.add_argument("--limit", type=int, help="flow runs at a time")
    return parser


async def _work(options: argparse.Namespace) -> int:
    # Prefect takes more than a second to import: bad options are refused before.
    if options.type == "docker":
        from .docker import DockerKitWorker as Worker
    else:
        from .process import ProcessKitWorker as Worker

    systemd = Systemd()
    kit = Kit(
        # Not the working directory: Prefect reads settings there, and flow runs write to this one. $STATE_DIRECTORY has
        # several, in systemd's own order.
        state_directory=Path(os.environ.get("WORKER_STATE_DIRECTORY", ".")).absolute(),
        runtime_directory=Path(os.environ.get("RUNTIME_DIRECTORY", ".")),
        drain_seconds=float(os.environ.get("WORKER_DRAIN_SECONDS", "300")),
        shutdown_seconds=float(os.environ.get("WORKER_SHUTDOWN_SECONDS", "30")),
        memory_limit=limit_in_bytes(os.environ.get("WORKER_MEMORY_MAX", ""), total_memory),
        disk_reserve=limit_in_bytes(os.environ.get("WORKER_DISK_RESERVE", ""), total_memory) or 0,
    )
    worker = Worker(
        kit=kit,
        systemd=systemd,
        name=options.name,
        work_pool_name=options.pool,
        work_queues=options.work_queue,
        limit=options.limit,
        # The inventory makes pools; one that is missing is waited for, and not made with other settings.
        create_pool_if_not_found=False,
    )
    working = asyncio.ensure_future(worker.start(with_healthcheck=True))
    beside = asyncio.ensure_future(worker.beside())
    told = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in signal.SIGTERM, signal.SIGINT:
        loop.add_signal_handler(number, told.set)
    systemd.tell(READY=1)
    waiting = asyncio.ensure_future(told.wait())
    try:
        await asyncio.wait({working, beside, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if told.is_set():
            await worker.drain()
            print("Worker stopped.", flush=True)
            return 0
        # Only a fault of ours, or of Prefect's, comes here.
        for task in working, beside:
            if task.done():
                task.result()
        return 1
    finally:
        for task in beside, waiting, working:
            task.cancel()
        await asyncio.gather(beside, waiting, working, return_exceptions=True)


def main(words: list[str] | None = None) -> int:
    """Work until told to stop; exit code 0 then, 1 after a fault, 2 for a bad setting."""
    options = _parser().parse_args(words)
    # To the journal line by line, and not when a buffer is full.
    sys.stdout.reconfigure(line_buffering=True)
    try:
        code = asyncio.run(_work(options))
    except ValueError as error:
        print(f"error: {error}\nHINT: /etc/prefect/workers/{options.name}.env", file=sys.stderr)
        code = 2
    if options.type == "docker" and code != 2:
        # Threads that still watch containers would keep the process; the next worker takes those containers up. Logs
        # and events that are on their way are sent first, as they are at an ordinary end.
        from prefect.events.worker import EventsWorker

        logging.shutdown()
        EventsWorker.drain_all(timeout=5)
        sys.stdout.flush()
        os._exit(code)
    return code
