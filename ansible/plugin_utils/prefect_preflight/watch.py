"""Who is told when something is wrong."""

from __future__ import annotations

import re
from typing import Any

APPRISE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
HTTP = re.compile(r"https?://[^\s/]+(/\S*)?")


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
