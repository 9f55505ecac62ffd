"""restic repositories: the one on this host, and the ones off-site.

Encryption, deduplication, retention and every kind of storage are restic's work. Here its command lines are built
(pure, tested as data) and run, and its exit codes made into failures; what it prints is read in restic_output.py. No
secret is ever in a command line: the password is a file, and addresses, which may hold one, go through the environment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import Code, Failure
from .progress import Advance
from .restic_output import (
    ADOPTED,
    BROKEN,
    FULL,
    ID_FORMAT,
    KEEP_OTHERS,
    OTHER_KINDS,
    SCHEDULED,
    Backup,
    explained,
    hide_password,
    keep_options,
    last_words,
    moment,
    old_backups,
    parse_snapshots,
    progress_of,
)
from .settings import Keep, Settings

# With what its users need of restic_output.
__all__ = ["ADOPTED", "FULL", "ID_FORMAT", "LOCAL", "OTHER_KINDS", "SCHEDULED", "Backup", "Repository", "moment"]

# One name for all snapshots, so that a new VPS under another name goes on with the same history.
HOST = "prefect"
LOCAL = "local"
CACHE = "/var/cache/prefect-backups"
# Seconds for a repository to answer when it is opened.
OPEN_SECONDS = 60
# A file of restic's that has not got its name yet.
HALF_WRITTEN = re.compile(r"([0-9a-f]{64}|config)-tmp-\d+")

UNREADABLE, NO_REPOSITORY, LOCKED, WRONG_PASSWORD = 3, 10, 11, 12


class Repository:
    """A restic repository."""

    def __init__(
        self,
        name: str,
        url: str,
        settings: Settings,
        environment: Mapping[str, str] | None = None,
        options: Sequence[str] = (),
        prune: bool = True,
    ) -> None:
        """Nothing is contacted yet.

        Args:
            name: "local", or the name of an off-site one.
            url: restic's address of it.
            environment: what its kind of storage needs, credentials for instance.
            options: restic's extended options.
            prune: False for one that only takes.
        """
        self.name = name
        self.url = url
        self.settings = settings
        self.environment = dict(environment or {})
        self.options = list(options)
        self.prunes = prune

    @classmethod
    def local(cls, settings: Settings) -> Repository:
        """The repository on this host."""
        return cls(LOCAL, settings.repository, settings)

    @classmethod
    def offsite(cls, settings: Settings) -> list[Repository]:
        """The further ones."""
        return [
            cls(one.name, one.repository, settings, one.environment, one.options, one.prune) for one in settings.offsite
        ]

    @property
    def is_local(self) -> bool:
        return self.name == LOCAL

    @property
    def label(self) -> str:
        """For error texts: name and address."""
        return f'the repository "{self.name}" ({hide_password(self.url)})'

    # --- command lines, as data ----------------------------------------------------------------------------------

    def command(self, *arguments: str, source: Repository | None = None) -> list[str]:
        """restic's command line. The kernel ends it when this process dies, which an orphan at work would not."""
        command = ["setpriv", "--pdeathsig", "TERM", "--", "restic"]
        for option in [*self.options, *(source.options if source else [])]:
            command += ["-o", option]
        if self.is_local and source is None:
            command.append("--no-cache")
        return [*command, *arguments]

    def variables(self, inherited: Mapping[str, str], source: Repository | None = None) -> dict[str, str]:
        """restic's environment; nothing of the caller's own settings of restic gets in."""
        kept = {name: value for name, value in inherited.items() if not name.startswith("RESTIC_")}
        variables = {"HOME": "/root", **kept, **(source.environment if source else {}), **self.environment}
        variables |= {
            "RESTIC_REPOSITORY": self.url,
            "RESTIC_PASSWORD_FILE": self.settings.password_file,
            "RESTIC_CACHE_DIR": CACHE,
            "RESTIC_PROGRESS_FPS": "2",
        }
        if source is not None:
            variables["RESTIC_FROM_REPOSITORY"] = source.url
            variables["RESTIC_FROM_PASSWORD_FILE"] = self.settings.password_file
        return variables

    # --- running it ------------------------------------------------------------------------------------------------

    def run(
        self,
        *arguments: str,
        what: str,
        source: Repository | None = None,
        on_line: Callable[[str], None] | None = None,
        seconds: float | None = None,
    ) -> bytes:
        """Run restic; gives its stdout. A lock that a killed restic left is removed once. Raises Failure."""
        if not Path(self.settings.password_file).is_file():
            raise Failure(
                Code.SETTINGS,
                f"there is no password file {self.settings.password_file}",
                "ansible-playbook site.yml --tags backups",
            )
        status, said, words = self._once(arguments, source, on_line, seconds)
        if status == LOCKED:
            self.unlock()
            status, said, words = self._once((*arguments, "--retry-lock=1m"), source, on_line, seconds)
        if status == 0:
            return said
        raise self.failure(status, words, what)

    def _once(
        self,
        arguments: Sequence[str],
        source: Repository | None,
        on_line: Callable[[str], None] | None,
        seconds: float | None,
    ) -> tuple[int, bytes, str]:
        """Exit code (-1 for a timeout), stdout and last words of one restic."""
        command = self.command(*arguments, source=source)
        with tempfile.TemporaryFile() as errors:
            try:
                # A session of its own: no terminal that ssh could ask on, and Ctrl-C is for us to pass on.
                process = subprocess.Popen(
                    command,
                    env=self.variables(os.environ, source),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise Failure(
                    Code.SETTINGS, f'"{error.filename}" is not installed', "ansible-playbook site.yml --tags backups"
                ) from error
            with _ended(process):
                try:
                    said = _read(process, on_line, seconds)
                    status = process.wait()
                except subprocess.TimeoutExpired:
                    return -1, b"", f"no answer within {seconds:.0f} s"
            errors.seek(0)
            return status, said, last_words(errors.read().decode(errors="replace"))

    def failure(self, status: int, words: str, what: str) -> Failure:
        """What an exit code of restic and its last words mean. `what` was to be done, such as "be read"."""
        reach = f"see what it says: restic -r '{hide_password(self.url)}' -p {self.settings.password_file} cat config"
        if status == WRONG_PASSWORD:
            return Failure(
                Code.WRONG_KEY,
                f"{self.label} does not open with the password in {self.settings.password_file}",
                "the right one is in the recovery kit (secrets/backup_password beside the inventory); put it there, then:"
                " ansible-playbook site.yml --tags backups",
            )
        if status == NO_REPOSITORY:
            where = "is its disk mounted? " if self.url.startswith("/") else "is the address right? "
            return Failure(
                Code.NO_REPOSITORY,
                f'there is no repository at {hide_password(self.url)} (the repository "{self.name}")',
                f"{where}If there has never been one: prefect-backup init",
            )
        if status == LOCKED:
            return Failure(
                Code.BUSY,
                f"{self.label} is locked by another restic: {words}",
                "wait for it; when nothing is at work there: prefect-backup clean, or restic unlock",
            )
        if status == UNREADABLE:
            return Failure(
                Code.FILES, f'files to back up could not be read: "{words}"', "see backups_files and -exclude"
            )
        fact = f'{self.label} could not {what}: "{explained(words)}"'
        if FULL.search(words):
            return Failure(Code.NO_ROOM, fact, "make room there, then: prefect-backup prune")
        if not self.is_local and not (status > 0 and BROKEN.search(words)):
            return Failure(
                Code.OFFSITE, fact, reach + " (addresses: s3:…, sftp:user@host:/path, rest:https://…, rclone:…)"
            )
        return Failure(
            Code.DAMAGED,
            fact,
            "look at the whole of it: restic check --read-data; take another backup: prefect-restore --list"
            if self.is_local
            else "take the local one or another off-site repository: prefect-restore --list --from NAME",
        )

    # --- what it does ----------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Whether it is there and opens with our password: what backups() tells, too, but sooner where nothing answers.

        Raises Failure: WRONG_KEY, NO_REPOSITORY, DAMAGED, or OFFSITE for one that is not reached.
        """
        self.run("cat", "config", "--no-lock", what="be opened", seconds=OPEN_SECONDS)

    def init(self, like: Repository | None = None) -> bool:
        """Make it where there is none; gives whether that was so. Raises Failure as open() does.

        Args:
            like: where backups will be copied from or to: cut in the same places, they are stored once.
        """
        try:
            self.open()
            return False
        except Failure as failure:
            if failure.code is not Code.NO_REPOSITORY:
                raise
        more = ["--copy-chunker-params"] if like is not None else []
        self.run("init", "--json", *more, what="be made", source=like)
        return True

    def backups(self) -> list[Backup]:
        """Our backups in it, newest first. Raises Failure as open() does."""
        said = self.run("snapshots", "--json", f"--host={HOST}", what="be listed", seconds=5 * OPEN_SECONDS)
        return parse_snapshots(said.decode(), self.name)

    def backup(
        self, paths: Iterable[str], exclude: Iterable[str], tags: Mapping[str, str], on_progress: Advance
    ) -> Backup:
        """Put files into it, and give the backup that this made."""
        arguments = ["backup", "--json", f"--host={HOST}", "--group-by=host"]
        arguments += [f"--tag={name}={value}" for name, value in tags.items()]
        arguments += [f"--exclude={pattern}" for pattern in exclude]
        try:
            self.run(*arguments, "--", *paths, what="take a backup", on_line=_shower(on_progress))
        except Failure as failure:
            if failure.code is Code.FILES:
                # restic keeps the rest as a backup; half of one is none.
                self.run("forget", *(one.snapshot for one in self.backups() if one.id == tags["id"]), what="forget it")
            raise
        for made in self.backups():
            if made.id == tags["id"]:
                return made
        raise Failure(Code.DAMAGED, f"{self.label} does not list the backup {tags['id']} that it took", "restic check")

    def restore(self, backup: Backup, source: str, target: Path, on_progress: Advance) -> None:
        """Put what a backup holds of the directory `source` into the directory `target`."""
        self.run(
            "restore",
            "--json",
            f"{backup.snapshot}:{source}",
            f"--target={target}",
            what=f"give back {source} of {backup.id}",
            on_line=_shower(on_progress),
        )

    def read(self, backup: Backup, path: str) -> bytes:
        """One file of a backup."""
        return self.run("dump", backup.snapshot, path, what=f"give back {path} of {backup.id}")

    def copy_from(self, source: Repository, on_progress: Advance) -> int:
        """Copy what it does not have yet, newest first; gives how many backups that were."""
        have = {backup.id for backup in self.backups()}
        missing = [backup.snapshot for backup in source.backups() if backup.id not in have]
        if not missing:
            return 0
        done = 0

        def count(line: str) -> None:
            nonlocal done
            done += line.startswith("snapshot ") and " saved" in line
            on_progress(done / len(missing), f"{done} of {len(missing)} backups")

        self.run("copy", *missing, what="take the copy", source=source, on_line=count)
        return len(missing)

    def forget(self, keep: Keep) -> int:
        """Take what the policy does not keep off the list; gives how many. Their data stay until prune()."""
        removed = self._forget(f"--tag=kind={SCHEDULED}", *keep_options(keep))
        return removed + self._forget(*(f"--tag=kind={kind}" for kind in OTHER_KINDS), *KEEP_OTHERS)

    def _forget(self, *arguments: str) -> int:
        """restic says what the policy would remove; of that, only what this kit has made goes."""
        policy = ("--dry-run", "--json", f"--host={HOST}", "--group-by=host", *arguments)
        said = self.run("forget", *policy, what="say which backups are old")
        old = old_backups(said.decode() or "[]")
        if old:
            self.run("forget", *old, what="forget backups")
        return len(old)

    def prune(self, thorough: bool = True) -> None:
        """Free what no backup needs; without `thorough` only what is free whole, which rewrites nothing."""
        more = [] if thorough else ["--max-unused=unlimited", "--max-repack-size=0"]
        self.run("prune", *more, what="free what no backup needs")

    def check(self, subset: str | None) -> None:
        """Whether it is whole. Raises Failure (DAMAGED; OFFSITE when it is not reached).

        Args:
            subset: what share of the data is read back and compared, such as "3/7"; None reads the lists only.
        """
        more = [f"--read-data-subset={subset}"] if subset else []
        if self.is_local:
            # Nobody but us takes anything away there, and a copy off-site that is under way for hours is no hindrance.
            more.append("--no-lock")
        self.run("check", "--json", *more, what="be proven whole")

    def unlock(self) -> None:
        """Remove locks of processes that are dead, and what they left half-written. Failing at that is no failure."""
        with contextlib.suppress(Failure):
            self._once(("unlock",), None, None, OPEN_SECONDS)

    def size(self) -> int:
        """Bytes that it takes up."""
        if self.is_local:
            return sum(path.stat().st_size for path in Path(self.url).rglob("*") if path.is_file())
        return json.loads(self.run("stats", "--json", "--mode=raw-data", what="be measured"))["total_size"]

    def remove_half_written(self) -> None:
        """Files that a killed restic had not given their name yet. Only for the local one, with nobody at work."""
        for path in Path(self.url).rglob("*-tmp-*"):
            if HALF_WRITTEN.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _shower(on_progress: Advance) -> Callable[[str], None]:
    def show(line: str) -> None:
        if (progress := progress_of(line)) is not None:
            on_progress(*progress)

    return show


def _read(process: subprocess.Popen[bytes], on_line: Callable[[str], None] | None, seconds: float | None) -> bytes:
    """Its whole stdout, or with `on_line` nothing but line after line to that."""
    if on_line is None:
        return process.communicate(timeout=seconds)[0]
    stream: IO[bytes] = process.stdout  # type: ignore[assignment]
    for line in stream:
        on_line(line.decode(errors="replace"))
    return b""


@contextlib.contextmanager
def _ended(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Whatever happens in the block, the process is gone after it: asked first, it takes its lock away."""
    try:
        yield
    finally:
        for number, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            if process.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if process.stdout is not None:
            process.stdout.close()
