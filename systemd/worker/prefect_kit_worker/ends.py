"""Why a flow run's process has ended, in words for its own logs: pure decisions."""

from __future__ import annotations

import signal

SANDBOX = (
    "the worker's sandbox refused something that a library takes for granted (a kind of socket, a system call, a device, "
    'a path outside its own directories; on the host: systemd/README.md, "What a flow run may do"), or a check of the '
    "library's own failed"
)
LIKELY = {
    signal.SIGABRT: f"a library gave up: {SANDBOX}",
    signal.SIGSYS: f"the filter of system calls ended it: {SANDBOX}",
    signal.SIGSEGV: "a fault in native code (an extension module, a driver)",
    signal.SIGBUS: "a file that it had mapped into memory became shorter, or a disk or /dev/shm is full",
    signal.SIGILL: "native code for another kind of processor",
    signal.SIGFPE: "a fault in native code",
    signal.SIGXFSZ: "a file became larger than it may",
    signal.SIGPIPE: "whoever read its output was gone",
    signal.SIGKILL: "somebody on the host killed it, or the kernel did because the host's memory was used up (journalctl --dmesg --grep=oom)",
}


def left_behind(names: list[str]) -> str:
    """What to tell of programs that were still running when the flow run's own process had ended."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"Still running when the process of this flow run had ended, and ended with it: {shown}."


def signal_of(status: int) -> int | None:
    """The signal that a process (or, by a shell's account, its child) was ended by; None when it ended by itself."""
    number = -status if status < 0 else status - 128 if 128 < status <= 128 + 64 else None
    return number if number in {known.value for known in signal.Signals} else None


def by_signal(status: int, killed_for_memory: bool, worker: str) -> str | None:
    """What to tell of a status; None for an ordinary one, and for SIGTERM, by which a flow run is asked to end."""
    number = signal_of(status)
    if number is None or number == signal.SIGTERM:
        return None
    name = signal.Signals(number).name
    if number == signal.SIGKILL and killed_for_memory:
        likely = "the kernel killed it because the worker's memory was used up (memory_max in prefect_workers)"
    else:
        likely = LIKELY.get(signal.Signals(number), "a program on the host sent it")
    return (
        f"The process of this flow run was ended by {name} (signal {number}). Likely: {likely}. "
        f"What it printed: journalctl -u prefect-worker@{worker}"
    )
