"""Hand on paths, not data.

Teaches: the parameters of a run are stored in the database and may not exceed 512 KB, and every value between
tasks that is kept is stored too. So big data goes into a file (or a bucket, or a table) and its path travels.
Tasks of one run are in one process: a temporary directory does. Runs on several hosts need a shared place,
such as an object store's address, in the very same role.
"""

import csv
import tempfile
from pathlib import Path

from prefect import flow, get_run_logger, task


@task
def extract(directory: Path, rows: int) -> Path:
    """Write the rows to a file and return where it is."""
    path = directory / "extract.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows((row, row * row) for row in range(rows))
    return path


@task
def summarize(path: Path) -> int:
    """Read line by line: memory stays small however long the file is."""
    with path.open(newline="") as file:
        return sum(int(square) for _, square in csv.reader(file))


@flow
def files(rows: int = 100_000) -> int:
    """Pass a file of a few MB from one task to the next by its path."""
    with tempfile.TemporaryDirectory(prefix="files-") as directory:
        path = extract(Path(directory), rows)
        size = path.stat().st_size
        total = summarize(path)
    get_run_logger().info("passed the path of %s bytes, total %s", size, total)
    return total


if __name__ == "__main__":
    files()
