"""The locked Python environment of this checkout (`.venv`), made before anything else can be imported.

Standard library only: the scripts import this on a machine that has nothing but Python 3.11 or newer.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
CONTROL = ROOT / "requirements.txt"
TESTS = ROOT / "tests" / "requirements.txt"
UV_LOCK = ROOT / "requirements-uv.txt"
STAMP = VENV / ".kit-locks"
MINIMUM_PYTHON = (3, 11)


def fail(fact: str, hint: str) -> None:
    """Print an error as fact and HINT on stderr, and end with exit code 2."""
    print(f"ERROR: {fact}\nHINT: {hint}", file=sys.stderr)
    raise SystemExit(2)


def wanted_stamp(locks: list[Path]) -> str:
    """Text that changes whenever the interpreter or one of the lock files does."""
    lines = [f"python {sys.version_info.major}.{sys.version_info.minor} at {VENV}"]
    lines += [f"{lock.name} {hashlib.sha256(lock.read_bytes()).hexdigest()}" for lock in [UV_LOCK, *locks]]
    return "\n".join(lines) + "\n"


def _make_venv() -> None:
    # No --clear on the good path: an interrupted first try is simply begun again, from nothing.
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode and Path("/usr/bin/apt-get").exists() and os.geteuid() == 0:
        # Debian ships venv apart from Python.
        subprocess.run(["apt-get", "update", "-qq"], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["apt-get", "install", "-y", "-qq", "python3-venv"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(VENV, ignore_errors=True)
        made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True)
    if made.returncode:
        fail(
            f'cannot make a Python environment in "{VENV}": {(made.stderr or made.stdout).strip()}',
            "install Python's venv module (Debian: apt-get install python3-venv) and run this again",
        )


def ensure(locks: list[Path]) -> Path:
    """Make `.venv` hold what the lock files say; returns the path of its Python.

    The first call takes about half a minute and a later one no time: a stamp, written last, names the
    locks that were installed.
    """
    if sys.version_info < MINIMUM_PYTHON:
        fail(
            f'Python "{sys.version.split()[0]}" is too old; 3.11 or newer is needed',
            "run this script with a newer interpreter: python3.11 " + " ".join(sys.argv),
        )
    python = VENV / "bin" / "python"
    stamp = wanted_stamp(locks)
    # An environment with more than is asked for will do.
    if STAMP.exists() and set(stamp.splitlines()) <= set(STAMP.read_text().splitlines()):
        return python
    # Two scripts that start at once must not make it twice, nor one remove what the other has begun to use.
    with (ROOT / ".venv.lock").open("w") as lock_file:
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        if not (STAMP.exists() and set(stamp.splitlines()) <= set(STAMP.read_text().splitlines())):
            _install(python, locks, stamp)
    return python


def _install(python: Path, locks: list[Path], stamp: str) -> None:
    started = time.monotonic()
    print(f"==> Python environment: {VENV} from {', '.join(str(x.relative_to(ROOT)) for x in locks)}", flush=True)
    uv = [str(VENV / "bin" / "uv"), "pip", "install", "--quiet", "--python", str(python), "--require-hashes"]
    commands = [uv + [argument for lock in locks for argument in ("-r", str(lock))]]
    # One that lacks a lock and is otherwise as wanted (./scripts/setup, then ./scripts/test) only grows.
    if not (STAMP.exists() and set(STAMP.read_text().splitlines()) <= set(stamp.splitlines())):
        _make_venv()
        commands.insert(0, [str(python), "-m", "pip", "install", "--quiet", "--require-hashes", "-r", str(UV_LOCK)])
    for command in commands:
        if subprocess.run(command).returncode:
            fail(
                f'"{" ".join(command[:4])} …" failed (its words are above)',
                "check that this machine reaches its Python package index, then run this again",
            )
    temporary = STAMP.with_suffix(".tmp")
    temporary.write_text(stamp)
    temporary.rename(STAMP)
    print(f"    done in {time.monotonic() - started:.0f} s", flush=True)


def run_in(locks: list[Path]) -> None:
    """Go on in `.venv`: when the caller runs under another Python, replace it by itself under ours."""
    python = ensure(locks)
    if Path(sys.prefix).resolve() != VENV.resolve():
        os.execv(python, [str(python), str(Path(sys.argv[0]).resolve()), *sys.argv[1:]])
    os.environ["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    # Some machines set it to keep source folders clean. Ansible, which is many short processes, would then compile itself
    # over and over: 13 s more of processor time for each site.yml. What is kept lies in .venv, and git ignores the rest.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
