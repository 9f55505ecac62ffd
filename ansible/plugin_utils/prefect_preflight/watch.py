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
# What Datadog calls a key; its own have 32 hexadecimal digits, which it does not promise.
DATADOG_KEY = re.compile(r"[A-Za-z0-9_-]{16,200}")
# The key goes there: encrypted, or no further than this host.
DATADOG_URL = re.compile(
    r"https://[^\s/@?#]+(/[^\s?#]*)?|http://(localhost|127\.0\.0\.1|\[::1\])(:[0-9]+)?(/[^\s?#]*)?"
)


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


def datadog_problems(settings: dict[str, Any]) -> list[str]:
    """A key that is none, which is not shown, as it is a secret; and an address that it must not be sent to."""
    key, url = settings["watch_datadog_api_key"], settings["watch_datadog_url"]
    problems = []
    if key and not DATADOG_KEY.fullmatch(key):
        problems.append(
            "watch_datadog_api_key is no API key of Datadog's: 16 to 200 letters and digits, without spaces"
        )
    if url and not DATADOG_URL.fullmatch(url):
        problems.append(
            f"{given('watch_datadog_url', url)}; it must be an address such as https://datadog.example.org, "
            "or http://127.0.0.1:8080 on the server itself"
        )
    return problems
