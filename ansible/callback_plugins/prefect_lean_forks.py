"""Ansible callback plugin: makes the process that Ansible forks for each task cheaper. It says nothing.

In a fork Python's cyclic garbage collector looks at all that the main process has loaded, and the kernel copies each page that
it touches on the way. Without it ansible-playbook takes a fifth less CPU time (34 s, then 26 s, for a second site.yml of 270
tasks), and at most 125 MB, since what it holds is freed by reference counts.
"""

from __future__ import annotations

DOCUMENTATION = r"""
name: prefect_lean_forks
type: aggregate
short_description: Cheaper task processes
description:
  - Turns off Python's cyclic garbage collector in the main process of ansible-playbook, and so in those that it forks.
author:
  - the prefect self-hosting kit
"""

import gc  # noqa: E402

from ansible.plugins.callback import CallbackBase  # noqa: E402


class CallbackModule(CallbackBase):
    """Loaded by the main process before the first task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "prefect_lean_forks"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        gc.disable()
