"""The unit of systemd that a restore, or a change of the key of the blocks, runs in, and its neighbour that finishes what died."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from . import lock
from .lock import only_one
from .progress import Report
from .restore import HANDOVER, RESUMPTION

# Each has a name of its own: systemd may keep that of one that died for a while.
UNIT = f"prefect-restore-run-{os.getpid()}.service"
UNITS = "prefect-restore-run-*.service"
# Of a change of the key of the blocks, which is finished by the same unit.
KEY_UNIT = f"prefect-encryption-key-{os.getpid()}.service"
KEY_UNITS = "prefect-encryption-key-*.service"
# Before it counts as ended: what a killed safety backup has left.
CLEAN = "/usr/local/sbin/prefect-backup clean"
# What systemd-run says when the unit ended by a signal.
KILLED = 255
# What tries to finish a restore, and gives way to a person's newer decision.
RESUMER = "prefect-restore.service"


def in_unit(
    arguments: list[str],
    report: Report,
    unit: str = UNIT,
    description: str = "Restore of a Prefect backup",
    resumer: str = RESUMER,
) -> int:
    """Run ourselves as a unit of systemd with our own stdin, stdout and stderr; gives its exit code.

    Args:
        arguments: our own, without --in-unit.
        report: where a death is told.
        unit: its name.
        description: what it is, for `systemctl list-units`.
        resumer: the unit that finishes, or takes back, what dies.
    """
    command = ["systemd-run", "--quiet", f"--unit={unit}", f"--description={description}"]
    command += ["--service-type=exec", "--pipe", "--wait", "--collect"]
    # What dies, or fails and cannot clean up behind itself, is finished by that unit: it does nothing without a journal.
    # (No SuccessExitStatus: systemd-run would turn those exit codes into 0.)
    command += [f"--property=OnFailure={resumer}"]
    # And half a safety backup, which has no journal, by this.
    command += [f"--property=ExecStopPost=-{CLEAN}"]
    for name in ("TERM", "COLUMNS", "LINES", "PREFECT_BACKUPS_FAILPOINT", "PREFECT_BACKUPS_ETC"):
        if name in os.environ:
            command += [f"--setenv={name}={os.environ[name]}"]
    command += ["--", str(Path(sys.argv[0]).resolve()), "--in-unit", *arguments]
    # A group of its own: Ctrl-C is for us to pass on, or systemd-run would end and leave the unit without a reader.
    waiting = subprocess.Popen(command, process_group=0)

    def pass_on(number: int, frame: object) -> None:
        subprocess.run(["systemctl", "kill", f"--signal={number}", "--kill-whom=main", unit], check=False)

    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGTERM, pass_on)
    status = waiting.wait()
    # A unit that has failed has nothing more to tell, and what it leaves to others has been started; systemd now and then
    # keeps it all the same (--collect), one that was killed above all.
    if status != 0:
        subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False)
    if status == KILLED:
        report.say(
            f"It was killed. systemd takes it back or finishes it; look at: journalctl -u {resumer.removesuffix('.service')}"
        )
    return status


@contextlib.contextmanager
def only_one_but_the_resumer(state: Path) -> Iterator[None]:
    """The lock, also while a resumption is at work, which begins again afterwards."""
    resuming = lock.holder(state) == RESUMPTION
    if resuming:
        subprocess.run(["systemctl", "stop", RESUMER], check=False)
    try:
        with only_one(state, "a restore", patience=HANDOVER if resuming else 0.0):
            yield
    finally:
        if resuming:
            subprocess.run(["systemctl", "start", "--no-block", RESUMER], check=False)
