"""Which linter looks at which file of the repository, and the linters themselves.

Every file that git tracks has a linter, or a reason here why it has none: a new kind of file fails until somebody has
decided. Most linters are given their files by name, so that what is decided is what is done.
"""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import _promtool

# What has its types checked, strictly (pyproject.toml): packages, and programs that people run. Not yet: what Prefect's
# untyped private parts go through (most of systemd/worker, the flows role), Ansible's plugins and modules, the tests.
TYPED = (
    "ansible/plugin_utils/*",
    "backups/prefect_audit/*",
    "backups/prefect_backups/*",
    "backups/prefect_metrics/*",
    "backups/prefect_doctor/*",
    "backups/prefect_residency/*",
    "backups/prefect_watch/*",
    "compose/server/*",
    "scripts/*",
    "systemd/worker/prefect_kit_worker/held.py",
    "systemd/worker/prefect_kit_worker/kit.py",
    "systemd/worker/prefect_kit_worker/notify.py",
    "systemd/worker/prefect_kit_worker/runs.py",
    "tests/lab/vps/*",
)
# By a file's whole path, first match first; the linters of Python and shell also take programs by their first line.
BY_NAME: dict[str, tuple[str, ...]] = {
    "*.py": ("ruff",),
    "pyproject.toml": ("ruff",),
    "*.sh": ("shellcheck",),
    # Datadog's files there are *.yaml.
    "docs/monitoring/*.yml": ("yamllint", "promtool"),
    # Neither is an object of Kubernetes itself.
    "docs/kubernetes/kustomization.yaml": ("yamllint",),
    "docs/kubernetes/helm-values.yaml": ("yamllint",),
    "docs/kubernetes/*.yaml": ("yamllint", "kubernetes"),
    "*.yml": ("yamllint",),
    "*.yaml": ("yamllint",),
    ".yamllint": ("yamllint",),
    "caddy/Caddyfile": ("caddy fmt",),
    "caddy/*.caddy": ("caddy fmt",),
    "*.j2": ("templates",),
    "systemd/*.service": ("systemd",),
    "systemd/*.socket": ("systemd",),
    "systemd/*.timer": ("systemd",),
    "systemd/*.slice": ("systemd",),
    "systemd/*.path": ("systemd",),
    # Read with the units that they add to.
    "systemd/*.d/*.conf": ("systemd",),
    "ansible/ansible.cfg": ("ansible syntax",),
}
BY_INTERPRETER = {
    re.compile(r"#!.*\bpython[0-9.]*\s*$"): "ruff",
    re.compile(r"#!.*\b(ba|da)?sh\s*$"): "shellcheck",
}
# What no linter looks at, and why that is well.
NOT_LINTED = {
    "*requirements*.in": "the source of a lock: scripts/lock reads it",
    "*requirements*.txt": "a lock, written by uv; tests/unit/test_said_twice.py looks at it",
    "*/prefect-[0-9]*.in": "the source of a lock for one version of Prefect: scripts/lock reads it",
    "compose/server/access/routes.txt": "a table; tests/unit/test_access.py reads it, and the contract test holds it against Prefect",
    "*/prefect-[0-9]*.txt": "such a lock, written by uv; tests/unit/test_version.py looks at it",
    "*.md": "prose; tests/unit/test_docs.py looks at links and commands",
    "*.png": "a picture",
    "*.svg": "a picture",
    "systemd/prefect-automations.conf": "tinyproxy's; tests/lab/test_monitoring.py has it read",
    "systemd/prefect-egress-names.conf": "dnsmasq's; tests/lab/test_egress.py has it read",
    "caddy/fail2ban/*.conf": "fail2ban's; tests/unit/test_guessing.py reads them, and the lab's fail2ban runs by them",
    "caddy/fail2ban/*.nft": "nft needs a kernel to check them; the lab loads them",
    "docs/monitoring/grafana.json": "tests/unit/test_monitoring.py reads it, panel by panel",
    "docs/kubernetes/worker.env": "names and values; kustomize and tests/unit/test_elsewhere.py read it",
    "tests/lab/seed/*.sql": "the lab runs it",
    "compose/postgres/*.sql": "Postgres runs it; tests/lab/test_stack.py looks at what comes of it",
    "*/Dockerfile": "the lab builds it",
    "*.dockerignore": "a list of names; the lab builds with it",
    ".gitignore": "a list of names",
    "VERSION": "one word; tests/unit/test_said_twice.py looks at it",
}
# Keys of the units that an older systemd than the VPS's (Debian 13: 257) does not know, and the first that does.
NEWER_KEYS = {"DelegateSubgroup": 254, "LogFilterPatterns": 253}
# The oldest and the newest version of Kubernetes whose schemas manifests are held against.
KUBERNETES = ("1.32", "1.37")
# ansible-lint takes 40 s of a minute; all others run beside it.
FIRST = "ansible-lint"
AT_ONCE = 2


def linters(name: str, first_line: str) -> frozenset[str]:
    """The linters that look at a file, by its path and, where that does not tell, its first line."""
    found = next((taken for pattern, taken in BY_NAME.items() if fnmatch.fnmatch(name, pattern)), ())
    if not found:
        found = tuple(taken for pattern, taken in BY_INTERPRETER.items() if pattern.match(first_line))
    if "ruff" in found and not name.endswith(".toml") and any(fnmatch.fnmatch(name, one) for one in TYPED):
        found += ("mypy",)
    return frozenset(found)


def problems(files: Mapping[str, str]) -> list[str]:
    """Files that no linter looks at without a reason, and reasons for none. `files` are first lines by path."""
    said, used = [], set()
    for name, first_line in files.items():
        reasons = {pattern for pattern in NOT_LINTED if fnmatch.fnmatch(name, pattern)}
        used |= reasons
        taken = linters(name, first_line)
        if not taken and not reasons:
            said.append(f"no linter looks at {name}: name one in scripts/_lint.py, or the reason why there is none")
        if taken and reasons:
            said.append(f"{name} has a linter ({', '.join(sorted(taken))}) and a reason for having none")
    return said + [
        f'NOT_LINTED of scripts/_lint.py has "{one}", and no such file is tracked' for one in NOT_LINTED.keys() - used
    ]


# --- the checks ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One line of the output: commands that must all succeed, or why they cannot be run on this machine."""

    name: str
    commands: list[list[str]] = field(default_factory=list)
    # Where they run, below the repository.
    directory: str = "."
    skipped: str = ""
    # What is wrong in what they have said, for those whose exit code does not tell all.
    wrong: Callable[[str], str] = lambda said: ""
    # Whether another exit code than 0 is a failure by itself.
    exit_tells: bool = True


def changed_lines(said: str) -> str:
    """The lines of a diff that differ; `caddy fmt` says by them alone that something is not as it should be."""
    return "\n".join(line for line in said.splitlines() if line[:1] in ("+", "-"))


def of_units(said: str, version: int) -> str:
    """What `systemd-analyze verify` says of the units themselves: the programs that they start are on a VPS only."""
    quiet = ["is not executable: No such file or directory"]
    quiet += [f"Unknown key '{key}'" for key, first in NEWER_KEYS.items() if version < first]
    return "\n".join(line for line in said.splitlines() if not any(words in line for words in quiet))


def systemd_version() -> int | None:
    """The version of this machine's systemd; None where it has none that could look at units."""
    if shutil.which("systemd-analyze") is None:
        return None
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True).stdout
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else None


def has_compose() -> bool:
    """Whether this machine's docker client has compose, which needs no engine to read a file."""
    return (
        bool(shutil.which("docker"))
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )


def of_promtool(name: str) -> list[str]:
    """What promtool is asked to do with a file."""
    if name.endswith("_test.yml"):
        return ["test", "rules", name]
    return ["check", "config" if name.endswith("prometheus.yml") else "rules", name]


def checks(files: Mapping[str, str], systemd: int | None, compose: bool, promtool: str, kubectl: bool) -> list[Check]:
    """All checks, in the order in which they are told.

    Args:
        systemd: the version of this machine's systemd, as systemd_version() gives it.
        compose: whether docker compose is there.
        promtool: where promtool is; empty where it is not to be had.
        kubectl: whether kubectl is there, which needs no cluster to read a kustomization.
    """
    taken: dict[str, list[str]] = {}
    for name, first_line in files.items():
        for linter in linters(name, first_line):
            taken.setdefault(linter, []).append(name)
    playbooks = sorted(
        Path(name).name for name in files if fnmatch.fnmatch(name, "ansible/*.yml") and name.count("/") == 1
    )
    units = [name for name in taken.get("systemd", []) if not name.endswith(".conf")]
    return [
        Check("ruff", [["ruff", "check", "--quiet", *taken["ruff"]]]),
        Check(
            "ruff format",
            [["ruff", "format", "--check", "--quiet", *(x for x in taken["ruff"] if not x.endswith(".toml"))]],
        ),
        Check("mypy", [["mypy", "--no-error-summary", *taken["mypy"]]]),
        Check("shellcheck", [["shellcheck", *taken["shellcheck"]]]),
        Check("yamllint", [["yamllint", "--strict", *taken["yamllint"]]]),
        Check(
            "promtool",
            [[promtool, *of_promtool(name)] for name in taken["promtool"]],
            skipped=""
            if promtool
            else "this machine has no promtool, and no Debian package of it; yamllint has looked",
        ),
        Check(
            "kubernetes",
            [
                [sys.executable, "-m", "kubernetes_validate", "--strict", "--quiet"]
                + [word for version in KUBERNETES for word in ("-k", version)]
                + taken["kubernetes"]
            ],
        ),
        Check(
            "kustomize",
            [["kubectl", "kustomize", "docs/kubernetes"]],
            skipped="" if kubectl else "this machine has no kubectl; yamllint has looked",
        ),
        Check("caddy fmt", [["caddy", "fmt", "--diff", name] for name in taken["caddy fmt"]], wrong=changed_lines),
        Check("templates", [[sys.executable, str(Path(__file__).resolve()), *taken["templates"]]]),
        Check(
            "systemd",
            # The drop-ins lie beside the units.
            [["env", "SYSTEMD_UNIT_PATH=systemd:", "systemd-analyze", "verify", "--man=no", *units]],
            skipped="" if systemd else "this machine has no systemd-analyze; the lab's VPSs have",
            wrong=lambda said: of_units(said, systemd or 0),
            # It is 1 for the programs, too.
            exit_tells=False,
        ),
        Check(
            "compose",
            [["docker", "compose", "--file", "compose/compose.yml", "config", "--quiet"]],
            skipped="" if compose else "this machine has no docker compose; yamllint has looked at it",
        ),
        Check(
            "ansible syntax", [["ansible-playbook", "-i", "inventory/example", "--syntax-check", *playbooks]], "ansible"
        ),
        Check("ansible-lint", [["ansible-lint", "--offline", "--profile", "production", "-q", "--nocolor"]], "ansible"),
    ]


def run(check: Check, root: Path) -> tuple[str | None, float]:
    """Run a check: what is wrong (None when all is well), and the seconds that it took."""
    started = time.monotonic()
    said = []
    for command in [] if check.skipped else check.commands:
        done = subprocess.run(command, cwd=root / check.directory, capture_output=True, text=True, errors="replace")
        words = done.stdout + done.stderr
        wrong = check.wrong(words)
        if wrong or (done.returncode and check.exit_tells):
            said.append(wrong or words)
    return "\n".join(said) if said else None, time.monotonic() - started


def lint(names: Iterable[str], root: Path) -> bool:
    """Run every check, two at a time; tells of each in order, with the words of those that fail."""
    files = {name: first_line(root / name) for name in names}
    found = checks(files, systemd_version(), has_compose(), _promtool.ensure(), bool(shutil.which("kubectl")))
    well = True
    with ThreadPoolExecutor(AT_ONCE) as pool:
        ordered = sorted(found, key=lambda check: check.name != FIRST)
        running: dict[str, Future[tuple[str | None, float]]] = {
            one.name: pool.submit(run, one, root) for one in ordered
        }
        missed = problems(files)
        print(f"{'FAILED' if missed else 'ok':7}{'every file':16}", flush=True)
        for problem in missed:
            well = False
            print(problem, flush=True)
        for check in found:
            wrong, seconds = running[check.name].result()
            if check.skipped:
                print(f"{'-':7}{check.name:16}{check.skipped}", flush=True)
                continue
            print(f"{'ok' if wrong is None else 'FAILED':7}{check.name:16}{seconds:5.1f} s", flush=True)
            if wrong is not None:
                well = False
                print(wrong, flush=True)
    return well


def first_line(path: Path) -> str:
    """The first line of a file, or as much of it as can name an interpreter."""
    with path.open("rb") as file:
        return file.readline(200).decode(errors="replace")


def main() -> int:
    """Whether templates are well-formed: what Jinja says of those in the arguments that are not."""
    import jinja2

    wrong = 0
    for name in sys.argv[1:]:
        try:
            jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(Path(name).read_text())
        except jinja2.TemplateSyntaxError as error:
            wrong += 1
            print(f"{name}:{error.lineno}: {error.message}")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
