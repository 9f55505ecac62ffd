"""Ansible action plugin: a command that takes minutes, with its lines on the screen when it says them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: prefect_follow
short_description: Run a command on the host and show what it says on stderr while it runs
description:
  - Like M(ansible.builtin.command), whose words come at the end only. Each line of stderr is shown when it is written.
  - The command does not hang on the connection. When that is lost, it goes on, and is found again for I(patience) seconds.
options:
  argv:
    description: The command and its arguments.
    type: list
    elements: str
    required: true
  patience:
    description: Seconds for which a lost connection is tried again.
    type: int
    default: 600
notes:
  - Does not run in check mode.
author:
  - the prefect self-hosting kit
"""

import base64  # noqa: E402
import shlex  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure  # noqa: E402
from ansible.plugins.action import ActionBase  # noqa: E402
from ansible.utils.display import Display  # noqa: E402

#: In a directory of root's alone (where there is no /run, mktemp's own), and in a session of its own. It is waited for until it
#: is there: what is still in the connection's session when that ends, ends with it.
BEGIN = """
umask 077; d=$(mktemp -d /run/prefect-follow.XXXXXXXX 2> /dev/null || mktemp -d) && cd "$d" && : > err &&
{{ setsid sh -c {command} < /dev/null > out 2> err & }} && while test ! -s pid; do sleep 0.1; done && pwd"""
COMMAND = "echo $$ > pid.new; mv pid.new pid; {command}; echo $? > rc.new; mv rc.new rc"
# The exit code is read before the words: once it is there, so are all of them. It is 255 where the command was killed with its
# shell. Over ssh there may be a terminal between, which changes line feeds: hence base64.
LOOK = """cd {directory} || exit 1; code=$(cat rc 2> /dev/null) || kill -0 $(cat pid) 2> /dev/null ||
code=$(cat rc 2> /dev/null || echo 255); echo "$code:$(tail -c +{start} err | base64 -w 0)\""""
END = "base64 -w 0 {directory}/out && rm -r {directory}"
SECONDS = 1.0

display = Display()


def whole_lines(said: bytes) -> bytes:
    """What was said, up to its last line feed: the rest may be half a line, or half a character."""
    return said[: said.rfind(b"\n") + 1]


def error_of(said: str) -> str:
    """Of what a tool of ours said its error, as it has been shown already; all of it, where there is none."""
    return said[max(said.rfind("ERROR: "), 0) :].strip()


class ActionModule(ActionBase):
    """Begin it, look at it every second, and give what ansible.builtin.command gives."""

    TRANSFERS_FILES = False
    _VALID_ARGS = frozenset({"argv", "patience"})

    def run(self, tmp: Any = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Raises AnsibleActionFail where it cannot be begun, or is not found again."""
        result = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(
            {
                "argv": {"type": "list", "elements": "str", "required": True},
                "patience": {"type": "int", "default": 600},
            }
        )
        if self._task.check_mode:
            return result | {"skipped": True, "msg": "not run in check mode"}
        command = COMMAND.format(command=shlex.join(given["argv"]))
        begun = self._low_level_execute_command(BEGIN.format(command=shlex.quote(command)))
        if begun["rc"] != 0:
            raise AnsibleActionFail(f'"{given["argv"][0]}" could not be begun: {begun["stderr"].strip()}')
        directory = shlex.quote(begun["stdout"].strip().splitlines()[-1])
        host = self._task.delegate_to or (task_vars or {}).get("inventory_hostname", "")
        code, said = self._follow(directory, given["patience"], f"{host}: ")
        out = base64.b64decode(self._low_level_execute_command(END.format(directory=directory))["stdout"]).decode(
            errors="replace"
        )
        result |= {"rc": code, "stdout": out, "stdout_lines": out.splitlines(), "stderr": said}
        result |= {"stderr_lines": said.splitlines(), "changed": True, "failed": code != 0}
        if code != 0:
            result["msg"] = error_of(said) or f"it ended with {code}"
        return result

    def _follow(self, directory: str, patience: float, prefix: str) -> tuple[int, str]:
        """Show it until its end; gives its exit code and all that it said on stderr."""
        said, lost = b"", 0.0
        while True:
            time.sleep(SECONDS)
            try:
                seen = self._low_level_execute_command(LOOK.format(directory=directory, start=len(said) + 1))
            except AnsibleConnectionFailure as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > patience:
                    raise AnsibleActionFail(
                        f"the host does not answer any more, and the command goes on: {error}"
                    ) from error
                self._connection.reset()
                continue
            if seen["rc"] != 0:
                raise AnsibleActionFail(
                    f"{directory} is gone: has the host been started anew? {seen['stderr'].strip()}"
                )
            lost = 0.0
            code, _, more = seen["stdout"].strip().partition(":")
            new = base64.b64decode(more)
            new = new if code else whole_lines(new)
            for line in new.decode(errors="replace").splitlines():
                display.display(prefix + line)
            said += new
            if code:
                return int(code), said.decode(errors="replace")
