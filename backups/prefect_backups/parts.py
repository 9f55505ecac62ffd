"""A dump's large files cut into small ones, so that an hour's backup adds little more than what is new in it.

restic cuts a file into pieces of 0.5 to 8 MB and stores those that it does not know yet. So a new row, or one that has
moved because its run changed state, costs a megabyte or more in each of the tables that grow. Cut here into files of
about 350 KB, each of which is one piece to restic, it costs a third of that. What a row holds decides whether a file
ends with it, not its place, so added or removed rows move no other cut; and a row is never cut in two.

Measured (1.06 million rows, 1 % new runs and what they change each hour): over three hours, the same dumps both ways,
an hourly backup added 0.95 MB instead of 2.8 MB to a repository of 55 MB, and 24 in `scripts/bench backup` 1.1 MB each;
`split` took 1 to 4 s and `join` 1 to 5 s on a busy machine. Smaller files save no more: restic's list of files grows.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

# Bytes of a file: about, at least and at most. restic cuts nothing below 512 KiB.
ABOUT = 384 * 1024
LEAST = ABOUT // 4
MOST = 512 * 1024
# NAME.dat becomes a directory with files 000000, 000001, …
ENDING = ".parts"
# Bytes that are read to estimate the length of a row.
SAMPLE = 64 * 1024


def cuts(rows: Iterable[bytes], row_length: int) -> Iterator[int]:
    """Where files end, in bytes from the beginning; the last one where the rows end.

    Args:
        rows: all rows, with their line ends.
        row_length: bytes of a row, about.
    """
    # One row in so many ends a file once that is long enough. A power of two, because a change of the average length
    # must not move every cut.
    one_in = 1 << max(0, ((ABOUT - LEAST) // max(1, row_length)).bit_length() - 1)
    begin = end = 0
    for row in rows:
        if end > begin and end + len(row) - begin > MOST:
            yield end
            begin = end
        end += len(row)
        if end - begin >= LEAST and zlib.crc32(row) % one_in == 0:
            yield end
            begin = end
    if end > begin:
        yield end


def split(dump: Path) -> None:
    """Cut the tables' files (NUMBER.dat) of a directory-format dump, in place: it takes no more room than they do."""
    for path in sorted(dump.glob("[0-9]*.dat")):
        if path.stat().st_size > MOST:
            _split(path)


def _split(path: Path) -> None:
    directory = path.with_name(path.name + ENDING)
    directory.mkdir(mode=0o700)
    with path.open("r+b") as source:
        sample = source.read(SAMPLE)
        source.seek(0)
        ends = list(cuts(source, len(sample) // max(1, sample.count(b"\n"))))
        # From the last one back, so that what has been copied can be cut off.
        for number in reversed(range(len(ends))):
            begin = ends[number - 1] if number else 0
            source.seek(begin)
            (directory / f"{number:06d}").write_bytes(source.read(ends[number] - begin))
            source.truncate(begin)
    path.unlink()


def join(dump: Path) -> None:
    """Undo `split`, in place, with no more room; the files belong to whom the dump belongs to."""
    owner = dump.stat()
    for directory in sorted(dump.glob(f"*{ENDING}")):
        with (dump / directory.name.removesuffix(ENDING)).open("wb") as target:
            os.fchown(target.fileno(), owner.st_uid, owner.st_gid)
            for part in sorted(directory.iterdir()):
                with part.open("rb") as source:
                    shutil.copyfileobj(source, target, MOST)
                part.unlink()
        directory.rmdir()
