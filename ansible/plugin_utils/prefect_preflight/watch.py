"""Settings of alerts, and of what automations may send."""

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
    """Hosts that are not host names, and examples without a block to notify through."""
    problems = [
        f'automations_allowed_hosts: "{host}" is not a host name; write hooks.slack.com, for example, or *.webhook.office.com for all its subdomains'
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
            "automations_examples can notify nobody while automations_allowed_hosts is empty: add the host that the block sends to"
        )
    return problems


def people_problems(settings: dict[str, Any]) -> list[str]:
    """Addresses that are not apprise URLs. They are not shown: each is a secret."""
    return [
        f"watch_notify_urls, entry {number} is not an apprise URL, such as mailtos://user:password@example.org?to=ops@example.org"
        for number, url in enumerate(settings["watch_notify_urls"], 1)
        if not APPRISE.fullmatch(url)
    ]


def heartbeat_problems(settings: dict[str, Any]) -> list[str]:
    """A heartbeat URL that cannot be called. It is not shown: it is a secret."""
    url = settings["watch_heartbeat_url"]
    return (
        []
        if not url or HTTP.fullmatch(url)
        else ["watch_heartbeat_url is not a URL, such as https://hc-ping.com/your-uuid"]
    )
