"""Who is told when something is wrong, and what automations may send."""

from __future__ import annotations

import re
from typing import Any

from .words import given

APPRISE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
# A name, also one that stands for all below it; an address.
HOST = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9a-fA-F:.]+")
BLOCK = re.compile(r"[a-z0-9-]+/[a-z0-9-]+")
HTTP = re.compile(r"https?://[^\s/]+(/\S*)?")


def automation_problems(settings: dict[str, Any]) -> list[str]:
    """Hosts that are none, and examples without a block that they could notify by."""
    problems = [
        f'automations_allowed_hosts: "{host}" is no host; write a name such as hooks.slack.com, or *.webhook.office.com for all below it'
        for host in settings["automations_allowed_hosts"]
        if not HOST.fullmatch(host)
    ]
    block, examples = settings["automations_examples_block"], settings["automations_examples"]
    if examples and not BLOCK.fullmatch(block):
        problems.append(
            f"{given('automations_examples_block', block)}; it must be TYPE/NAME, such as slack-webhook/alerts"
        )
    if examples and not settings["automations_allowed_hosts"]:
        problems.append(
            "automations_examples notify nobody as long as automations_allowed_hosts is empty: name the block's host there"
        )
    return problems


def people_problems(settings: dict[str, Any]) -> list[str]:
    """Addresses that are none. They are not shown: each is a secret."""
    return [
        f"watch_notify_urls, entry {number} is no address of apprise's, such as mailto://user:password@example.org"
        for number, url in enumerate(settings["watch_notify_urls"], 1)
        if not APPRISE.fullmatch(url)
    ]


def heartbeat_problems(settings: dict[str, Any]) -> list[str]:
    """An address that cannot be called. It is not shown: it is a secret."""
    url = settings["watch_heartbeat_url"]
    return (
        []
        if not url or HTTP.fullmatch(url)
        else ["watch_heartbeat_url is no address such as https://hc-ping.com/your-uuid"]
    )
