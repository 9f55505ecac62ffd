"""Starts the Prefect server in its container, watches it, and ends it when it hangs: Docker's restart policy does the rest.

Docker itself restarts what ends, and never what hangs. The end of this program is the end of the container, so a server
that ends, or this program, is restarted too.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import asyncpg

# Run isolated (python -I), which leaves the program's own directory out.
sys.path.insert(0, str(Path(__file__).resolve().parent))
import way_out
from health import Finding, Judge, Kind, Looks, Report, Verdict, cpu_seconds

# -P: what lies beside the program is no module of Prefect's.
SERVER = (sys.executable, "-P", str(Path(__file__).resolve().with_name("serve.py")))
HEALTH = Path("/tmp/health")  # noqa: S108
#: While the server was away it heard no heartbeat of any flow run. The windows of the automation "Crash detection" are
#: reset before it starts: else runs that go on well would be Crashed at once when it was away for longer than a window,
#: and runs that have died would never be noticed. $1: seconds by which they are longer than the automation says.
RESET = (
    'UPDATE automation_bucket AS bucket SET start = now(), "end" = now() + make_interval(secs => within + $1::float8)'
    " FROM (SELECT id, (trigger->>'within')::float8 AS within FROM automation WHERE name = 'Crash detection') AS automation"
    " WHERE bucket.automation_id = automation.id AND within > 0"
)
#: Where the password of the database is (PGPASSFILE): as compose mounts it. While it is being changed it has a line for the new
#: one and one for the one before, and the driver would only ever try the first.
PASSWORDS = Path("/run/secrets/server_pgpass")
#: The one line of it that the server is started with then.
PASSWORD = Path("/tmp/pgpass")  # noqa: S108
#: Until the server is ready: its background services look at the windows before it hears a heartbeat, and on a slow machine
#: it starts for longer than a window. Then they are reset once more, without this.
LONGER = 3600.0
#: Seconds beyond those of its own questions for which a finding holds.
SLACK = 60


def next_password(tried: int) -> bool:
    """Have this process, and the server that it starts, use another password of several; gives whether there is one left.

    Args:
        tried: how many of them the database has refused.
    """
    lines = PASSWORDS.read_text().splitlines() if PASSWORDS.exists() else []
    if len(lines) < 2 or tried >= len(lines):
        return False
    # The driver takes none that others may read.
    PASSWORD.touch(mode=0o600)
    PASSWORD.write_text(lines[tried] + "\n")
    os.environ["PGPASSFILE"] = str(PASSWORD)
    return True


async def reset_windows(looks: Looks, report: Report) -> None:
    """Reset the windows of Crash detection as soon as there is a database; waits for that as long as it takes."""
    judge = Judge(time.monotonic())
    refused = 0
    while True:
        try:
            database = await looks.connect(timeout=10)
            break
        except asyncpg.InvalidPasswordError:
            refused += 1
            if not next_password(refused):
                raise
        except (OSError, asyncpg.CannotConnectNowError) as error:
            finding = Finding(Kind.NO_DATABASE, f"no database: {str(error) or 'no answer'}")
            report.write(judge.hear(finding, time.monotonic(), 0), SLACK)
            await asyncio.sleep(1)
    try:
        print("Windows of Crash detection that are reset:", await database.execute(RESET, LONGER), flush=True)
    finally:
        await database.close()


async def begin_windows(looks: Looks) -> bool:
    """Have the windows begin now, as long as the automation says; gives whether they do."""
    try:
        database = await looks.connect(timeout=10)
        try:
            await database.execute(RESET, 0.0)
        finally:
            await database.close()
    except (OSError, TimeoutError, asyncpg.PostgresError) as error:
        print(f"Windows of Crash detection are longer than they should be: {error!r}", flush=True)
        return False
    return True


async def watch(server: asyncio.subprocess.Process, looks: Looks, report: Report) -> None:
    """Look at the server until it has to be ended."""
    judge = Judge(time.monotonic())
    begun = False
    while True:
        try:
            finding = await looks.look(judge.limits.answer)
            verdict = judge.hear(finding, time.monotonic(), 0 if judge.ready else cpu_seconds())
            # A look asks at most four questions.
            report.write(verdict, judge.period + 4 * judge.limits.answer + SLACK)
            # Where that fails it is tried at the next look.
            begun = begun or (judge.ready and await begin_windows(looks))
        except Exception as error:
            # No fault of the watchdog's may end a server that serves; that it has not looked will be seen.
            print(f"watchdog: {error!r}", flush=True)
        else:
            if verdict.end:
                print(f"watchdog: {verdict.reason}; ending the server", flush=True)
                server.kill()
                return
        await asyncio.sleep(judge.period)


async def main() -> int:
    """Gives the server's exit code."""
    looks, report = Looks(os.environ), Report(HEALTH)
    report.write(Verdict("starting"), SLACK)
    try:
        await reset_windows(looks, report)
    except Exception as error:
        # A first start has no tables yet; and nothing here may keep the server from starting.
        print(f"Windows of Crash detection are as they were: {error}", flush=True)
    if address := way_out.proxy(os.environ):
        try:
            await way_out.open_way(address)
        except OSError as error:
            # Notifications fail then, and say so in the log; everything else works.
            print(f"way out: {address} cannot be listened at: {error}", flush=True)
    # A process group of its own, so that it gets a signal once, whether or not the image's init tells whole groups.
    server = await asyncio.create_subprocess_exec(*SERVER, start_new_session=True)
    for word in signal.SIGTERM, signal.SIGINT:
        asyncio.get_running_loop().add_signal_handler(word, end, server)
    watching = asyncio.create_task(watch(server, looks, report))
    code = await server.wait()
    watching.cancel()
    return code if code >= 0 else 128 - code


def end(server: asyncio.subprocess.Process) -> None:
    """Pass on that the container is to stop."""
    if server.returncode is None:
        server.terminate()


if __name__ == "__main__":
    # The container's stdout is for the lines of the audit alone (access/lines.py).
    sys.stdout = sys.stderr
    sys.exit(asyncio.run(main()))
