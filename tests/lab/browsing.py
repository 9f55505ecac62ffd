"""A real browser (Debian's Chromium, headless), and what a page in it complains of and whom it asks."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.lab.vps.shell import apt_install

# Debian's Chromium starts as root, without a GPU, and asks nobody for updates.
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
)


@dataclass
class Visit:
    """A page with what it complains of and whom it asks."""

    page: Page
    agent: str
    home: str
    complaints: list[str] = field(default_factory=list)
    foreign: dict[str, str] = field(default_factory=dict)  # address: how it ended
    # Chromium drops what is under way when this machine gets or loses a network interface (a container elsewhere on
    # it is enough). The page then complains without its fault.
    cut: bool = False
    #: Requests that are under way.
    pending: int = 0

    def __post_init__(self) -> None:
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.complaints.append(f"page error: {error}"))
        self.page.on("request", self._note)
        self.page.on("requestfailed", lambda one: self._ended(one, one.failure or "failed"))
        self.page.on("requestfinished", lambda one: self._ended(one, "answered"))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _note(self, request: Request) -> None:
        self.pending += 1
        address = urlsplit(request.url)
        if address.scheme not in {"data", "blob"} and address.netloc != self.home:
            self.foreign[request.url] = "under way"

    def _ended(self, request: Request, end: str) -> None:
        self.pending -= 1
        self.cut |= end == "net::ERR_NETWORK_CHANGED"
        if request.url in self.foreign:
            self.foreign[request.url] = end


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not shutil.which("chromium"):
        apt_install(["chromium"], "Looking at the UI")
    chromium = shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS.split())
        yield browser
        browser.close()


def look(visit: Visit, address: str) -> None:
    """Open a page, and wait until it is there and has asked for all that it wants. (It asks again every few seconds.)"""
    heard = list(visit.complaints)
    for _ in range(5):
        visit.cut, visit.pending = False, 0
        try:
            visit.page.goto(address)
            visit.page.locator('a[href$="/deployments"]').first.wait_for(timeout=15_000)
            visit.page.wait_for_timeout(300)
            deadline = time.monotonic() + 15
            while visit.pending > 0 and time.monotonic() < deadline:
                visit.page.wait_for_timeout(100)
        except PlaywrightError:
            if not visit.cut:
                raise
        if not visit.cut:
            return
        visit.complaints[:] = heard
    pytest.fail(f"{address}: the network of this machine does not come to rest")
