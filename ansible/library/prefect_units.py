#!/usr/bin/python
"""Ansible module: the units of a role, enabled and started as they should be, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: prefect_units
short_description: Enable and start a list of systemd units in one round trip
description:
  - Does for a list what M(ansible.builtin.systemd_service) does for one unit. That module costs a Python interpreter, four
    calls of systemctl and, with C(daemon_reload), a reload of systemd for each unit, also where nothing changes.
  - Units are handled in their order; only what differs is touched.
options:
  units:
    description: The units, with their suffix.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the unit, such as C(prefect-backup.timer) or C(prefect-worker@main.service).
        type: str
        required: true
      enabled:
        description: Whether it starts at boot. Not given, this stays as it is.
        type: bool
      state:
        description: Whether it runs now. Not given, this stays as it is.
        type: str
        choices: [started, stopped]
  daemon_reload:
    description: Have systemd read its unit files again first, once. This alone is no change.
    type: bool
    default: false
author:
  - the prefect self-hosting kit
"""

EXAMPLES = r"""
- name: Start the timers, now and at boot
  prefect_units:
    daemon_reload: true
    units:
      - {name: a.timer, enabled: true, state: started}
      - {name: b.service, enabled: true}
"""

RETURN = r"""
changed_units:
  description: Names of the units that were not as they should be.
  type: list
  returned: always
status:
  description: Properties of each unit by its name, as they were before (LoadState, ActiveState, SubState; UnitFileState where C(enabled) is given).
  type: dict
  returned: always
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402

PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState")
# As `systemctl is-enabled` has it: these are there after a boot. A unit that is enabled until then only is none of them.
ENABLED = frozenset(("enabled", "static", "indirect", "generated", "alias"))
RUNNING = frozenset(("active", "activating", "reloading", "refreshing"))


def parse(shown: str) -> list[dict]:
    """The properties of each unit that `systemctl show` was asked for, in the order of the question."""
    blocks = [block for block in shown.strip().split("\n\n") if block.strip()]
    return [dict(line.split("=", 1) for line in block.splitlines() if "=" in line) for block in blocks]


def actions(unit: dict, status: dict) -> list[str]:
    """What systemctl has to do (`enable`, `disable`, `start`, `stop`) so that a unit is as it should be."""
    wanted = []
    if unit["enabled"] is not None and unit["enabled"] != (status["UnitFileState"] in ENABLED):
        wanted.append("enable" if unit["enabled"] else "disable")
    if unit["state"] == "started" and status["ActiveState"] not in RUNNING:
        wanted.append("start")
    if unit["state"] == "stopped" and status["ActiveState"] in RUNNING | {"deactivating"}:
        wanted.append("stop")
    return wanted


def problem(unit: dict, status: dict) -> str | None:
    """Why a unit cannot be as it should be, if so."""
    name = unit["name"]
    if not (unit["enabled"] or unit["state"] == "started"):
        return None
    if status["LoadState"] == "masked":
        return f'The unit "{name}" is masked. Run: systemctl unmask {name}'
    if status["LoadState"] == "not-found":
        return f'The unit "{name}" is not on this host.'
    if status["LoadState"] in ("bad-setting", "error"):
        return f'systemd cannot read the unit "{name}" ({status["LoadState"]}). Look at: systemctl status {name}'
    return None


def _look(module: AnsibleModule, units: list[dict]) -> dict:
    names = [unit["name"] for unit in units]
    if not names:
        return {}
    arguments = ["systemctl", "show", f"--property={','.join(PROPERTIES)}", "--", *names]
    _, shown, _ = module.run_command(arguments, check_rc=True)
    found = dict(zip(names, parse(shown), strict=True))
    for unit in units:
        status = found[unit["name"]]
        status["UnitFileState"] = ""
        if unit["enabled"] is not None:
            # Not by `show`, which gives what systemd remembers and not what is on the disk.
            status["UnitFileState"] = module.run_command(["systemctl", "is-enabled", "--", unit["name"]])[1].strip()
    return found


def _act(module: AnsibleModule, action: str, name: str) -> None:
    code, out, error = module.run_command(["systemctl", action, "--", name])
    if not code:
        return
    text = f'systemctl {action} of the unit "{name}" failed: {(error or out).strip() or f"exit code {code}"}'
    if action == "start":
        journal = ["journalctl", "--quiet", "--no-pager", "--unit", name, "--lines", "8", "--output", "cat"]
        if said := module.run_command(journal)[1].strip():
            text = f"{text}\nIts last lines in the journal:\n{said}"
    module.fail_json(msg=f"{text}\nLook at: journalctl -u {name}", unit=name)


def main() -> None:
    options = {
        "name": {"type": "str", "required": True},
        "enabled": {"type": "bool"},
        "state": {"type": "str", "choices": ["started", "stopped"]},
    }
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "dict", "required": True, "options": options},
            "daemon_reload": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    # A stranger's locale would translate what is read here.
    module.run_command_environ_update = {"LANG": "C", "LC_ALL": "C"}
    units = module.params["units"]
    if module.params["daemon_reload"] and not module.check_mode:
        module.run_command(["systemctl", "daemon-reload"], check_rc=True)
    status = _look(module, units)
    # In check mode a unit may be missing that a task before this one would have installed.
    if not module.check_mode:
        for unit in units:
            if text := problem(unit, status[unit["name"]]):
                module.fail_json(msg=text, unit=unit["name"])
    changed, before, after = [], "", ""
    for unit in units:
        name = unit["name"]
        wanted = actions(unit, status[name])
        if not wanted:
            continue
        changed.append(name)
        before += f"{name}: {status[name]['UnitFileState'] or 'as it is'}, {status[name]['ActiveState']}\n"
        after += f"{name}: {', '.join(wanted)}\n"
        if not module.check_mode:
            for action in wanted:
                _act(module, action, name)
    diff = {"before": before, "after": after} if changed else {}
    module.exit_json(changed=bool(changed), changed_units=changed, status=status, diff=diff)


if __name__ == "__main__":
    main()
