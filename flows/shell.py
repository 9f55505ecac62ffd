"""Other programs and other languages: start a process.

Teaches: arguments as a list, so that no shell reads them and a parameter cannot smuggle in a command; the
output in the run's logs line by line while it runs; a time limit; a bad exit code as a failed run.

For a program in a container of its own, leave the flow as it is and give the deployment a work pool of type
docker: each run then starts in the image named by the job variable `image` (README.md has the lines for
prefect.yaml). Don't call `docker run` from a process worker: access to Docker's socket is root on the host.
"""

import subprocess
from threading import Timer

from prefect import flow, get_run_logger, task


@task
def run_program(arguments: list[str], limit_seconds: float) -> None:
    """Run a program, log each line it writes, and fail as it fails.

    Raises:
        subprocess.CalledProcessError: if it ends with another exit code than 0, or was killed at the limit.
    """
    logger = get_run_logger()
    with subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        # Reading blocks, so the limit is kept from another thread.
        limit = Timer(limit_seconds, process.kill)
        limit.start()
        try:
            for line in process.stdout or ():
                logger.info(line.rstrip())
        finally:
            limit.cancel()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)


@flow
def shell(path: str = "/", limit_seconds: float = 30) -> None:
    """Ask the system how full a disk is, with a program that is not Python."""
    run_program(["df", "--human-readable", "--", path], limit_seconds)
    # awk here, and an R script, a binary of Rust or `node report.js` in the same way.
    run_program(["awk", 'BEGIN { print "awk says", 6 * 7 }'], limit_seconds)


if __name__ == "__main__":
    shell()
