"""The UI in a real browser (Debian's Chromium, headless): one login, a run and its logs as they come, nothing foreign.

PREFECT_UPDATE_SCREENSHOT=1 writes the pictures of README and docs, docs/ui.png and docs/history.png.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Locator, Page
from prefect_doctor import history, history_page
from prefect_doctor.charts import charts, span

from tests.lab.browsing import Visit, browser, look
from tests.unit.week import NOW, a_week

__all__ = ["browser"]

USER = "admin"
SCREENSHOT = Path(__file__).resolve().parents[2] / "docs" / "ui.png"
HISTORY = SCREENSHOT.with_name("history.png")
PAGES = (
    "/dashboard",
    "/runs",
    "/flows",
    "/deployments",
    "/work-pools",
    "/work-pools/work-pool/general",
    "/blocks",
    "/variables",
    "/automations",
    "/events",
    "/concurrency-limits",
    "/settings",
)
# The older UI, which stays a click away.
OLDER_PAGES = ("/dashboard", "/runs", "/deployments")
FLOW = """
import sys, time
from prefect import flow, get_run_logger, task

@task
def extract(region):
    get_run_logger().info("reading %s", region)
    time.sleep(1)
    return region

@task
def load(regions):
    get_run_logger().info("loading %s", ", ".join(regions))
    time.sleep(2)

@flow(name="sales-report", flow_run_name=sys.argv[1], log_prints=True)
def report():
    regions = [future.result() for future in extract.map(["north", "south", "east", "west"])]
    for number in range(int(sys.argv[2])):
        print(f"{sys.argv[1]}: page {number}")
        time.sleep(1)
    load.submit(regions).result()

report()
"""


@pytest.fixture
def visit_as(browser: Browser, endpoint) -> Iterator[Callable[[str], Visit]]:
    """`visit_as(USER)`: a new browser profile of a person who knows the password. The certificate: test_proxy.py."""
    contexts = []

    def make(user: str) -> Visit:
        agent = f"Mozilla/5.0 lab-{uuid.uuid4().hex}"
        context = browser.new_context(
            ignore_https_errors=True,
            http_credentials={"username": user, "password": endpoint.passwords[user]},
            user_agent=agent,
            viewport={"width": 1280, "height": 860},
            color_scheme="light",
        )
        contexts.append(context)
        return Visit(context.new_page(), agent, urlsplit(endpoint.url).netloc)

    yield make
    for context in contexts:
        context.close()


@pytest.fixture
def visit(visit_as: Callable[[str], Visit]) -> Visit:
    return visit_as(USER)


@pytest.fixture
def run_flow(endpoint, tmp_path: Path) -> Iterator[Any]:
    """`run_flow(name, seconds)` starts a flow run of that name on this machine, through the reverse proxy."""
    secret = base64.b64encode(f"{USER}:{endpoint.passwords[USER]}".encode()).decode()
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    environment = kept | {
        "HOME": str(tmp_path),
        "PREFECT_API_URL": f"{endpoint.url}/api",
        "PREFECT_API_SSL_CERT_FILE": str(endpoint.ca),
        "PREFECT_CLIENT_CUSTOM_HEADERS": json.dumps({"Authorization": f"Basic {secret}"}),
        "DO_NOT_TRACK": "1",
    }
    program = tmp_path / "program.py"
    program.write_text(FLOW)
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, seconds: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(program), name, str(seconds)]
        output = (tmp_path / "output").open("wb")
        started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def state(page: Page, name: str) -> Locator:
    """The run's state in the page's head; pages that were left are hidden, but still there."""
    return page.get_by_text(name, exact=True).filter(visible=True).first


def newest_first(page: Page) -> None:
    """Only the lines of the log that are in sight are in the page: have the newest there."""
    page.get_by_role("combobox").filter(has_text="Oldest to newest").click()
    page.get_by_role("option", name="Newest to oldest").click()


def test_one_login_and_then_a_run_with_its_logs_as_they_come(visit: Visit, endpoint, run_flow, access_log) -> None:
    page, name = visit.page, f"report-{uuid.uuid4().hex[:6]}"
    process = run_flow(name, 30)
    wanted = {"flow_runs": {"name": {"any_": [name]}, "state": {"type": {"any_": ["RUNNING"]}}}}
    deadline = time.monotonic() + 60
    while not endpoint.post("/api/flow_runs/filter", wanted).json():
        assert time.monotonic() < deadline, "the flow has not begun"
        time.sleep(0.5)
    look(visit, endpoint.url)
    assert urlsplit(page.url).path == "/v2/dashboard"
    page.locator('a[href$="/v2/runs"]').first.click()
    page.get_by_text(name, exact=True).first.click(timeout=60_000)
    page.get_by_role("tab", name="Logs").click()
    state(page, "Running").wait_for()
    page.get_by_text(f"{name}: page 1", exact=True).wait_for(timeout=30_000)
    newest_first(page)
    # From here on the page is only watched: what comes now comes by itself.
    page.get_by_text(f"{name}: page 15", exact=True).wait_for(timeout=60_000)
    assert process.poll() is None, "the log was there before the run had ended"
    state(page, "Completed").wait_for(timeout=60_000)
    # The page asks for no more lines once the run has ended, and the last ones may have come later. (It keeps the order.)
    page.reload()
    page.get_by_text("loading north, south, east, west").wait_for()
    assert process.wait(60) == 0
    page.wait_for_timeout(1500)  # the graph moves into its place
    if os.environ.get("PREFECT_UPDATE_SCREENSHOT") == "1":
        page.screenshot(path=SCREENSHOT)
    assert visit.complaints == [] or visit.cut
    assert visit.foreign == {}
    asked = [line["status"] for line in access_log(300) if line.get("user_agent") == visit.agent]
    assert asked.count(401) == 1, "one prompt for the password"
    assert asked.count(200) > 20


@pytest.mark.parametrize("user", [USER, "eve"])
def test_every_page_stays_at_home_and_complains_of_nothing(
    visit_as: Callable[[str], Visit], endpoint, user: str
) -> None:
    """For an administrator, and for the role that may do least."""
    visit = visit_as(user)
    for path in PAGES:
        look(visit, f"{endpoint.url}/v2{path}")
        assert visit.complaints == [], path
        assert visit.foreign == {}, path


def test_a_refusal_says_who_may(visit_as: Callable[[str], Visit], endpoint) -> None:
    visit = visit_as("eve")
    deployment = endpoint.get("/api/deployments/name/hello/hello").json()["id"]
    look(visit, f"{endpoint.url}/v2/deployments/deployment/{deployment}")
    visit.page.get_by_role("button", name="Run").first.click()
    visit.page.get_by_text("Quick run").first.click()
    words = "The role viewer may not run deployments. Roles that may: admin, deployer, operator."
    visit.page.get_by_text(words).wait_for(timeout=15_000)


def test_the_older_ui_works_and_stays_at_home(visit: Visit, endpoint) -> None:
    for path in OLDER_PAGES:
        look(visit, endpoint.url + path)
        assert urlsplit(visit.page.url).path == path
        assert visit.complaints == [], path
        assert visit.foreign == {}, path


def test_without_a_password_a_browser_sees_nothing(browser: Browser, endpoint) -> None:
    with browser.new_context(ignore_https_errors=True) as context:
        page = context.new_page()
        for path in ("/", "/dashboard", "/docs"):
            answer = page.request.get(endpoint.url + path)
            assert answer.status == 401
            assert answer.text() == "A user name and a password are needed.\n"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_the_page_of_the_history_is_readable_and_asks_nobody(browser: Browser, tmp_path: Path, scheme, width) -> None:
    """Of a week that is made up: a new VPS has none. That prefect-doctor writes such a page is tried in test_watch.py."""
    found, target = a_week(), tmp_path / "history.html"
    shown = span(found, NOW)
    words = history.summary(found, shown)
    target.write_text(history_page.page("prefect.example.com: the last 7 days", words, charts(found), shown))
    with browser.new_context(viewport={"width": width, "height": 780}, color_scheme=scheme) as context:
        visit = Visit(context.new_page(), "", "")
        visit.page.goto(target.as_uri())
        assert (visit.complaints, visit.foreign) == ([], {})
        assert visit.page.evaluate("document.documentElement.scrollWidth") == width
        colours = """[getComputedStyle(document.body).backgroundColor,
            ...[...document.querySelectorAll('path')].map(one => getComputedStyle(one).stroke)]"""
        paper, *lines = visit.page.evaluate(colours)
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 26)")
        assert len(lines) == sum(len(chart.lines) for chart in charts(found))
        assert not {"none", paper} & set(lines)
        if scheme == "light" and os.environ.get("PREFECT_UPDATE_SCREENSHOT") == "1":
            visit.page.screenshot(path=HISTORY)
