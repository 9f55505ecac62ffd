"""Single sign-on, with a real browser, an identity provider, and a proxy of the user's own (tests/lab/sign_on.py)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page

from tests.lab import restores
from tests.lab.browsing import Visit, browser, look
from tests.lab.people import gateway
from tests.lab.sign_on import SignOn
from tests.lab.vps.vps import Vps

__all__ = ["browser"]

USERS = {
    "grace": {"email": "grace@example.org", "groups": ["everyone", "data team"]},
    "linus": {"email": "linus@example.org", "groups": ["everyone"]},
    "mallory": {"email": "mallory@example.org", "groups": ["others"]},
}
ROLES = {"data team": "operator", "everyone": "viewer"}
PAGES = ("/dashboard", "/runs", "/deployments", "/work-pools", "/blocks", "/events")


@pytest.fixture(scope="module")
def sign_on(vps: Vps, endpoint, playbook, tmp_path_factory) -> Iterator[SignOn]:
    directory = tmp_path_factory.mktemp("sign-on")
    # Apache gives up its rights.
    directory.chmod(0o755)
    with SignOn(directory, gateway(vps), endpoint.url, USERS) as found:
        on = {"prefect_sso_proxy": found.url, "prefect_sso_roles": ROLES}
        playbook("site.yml", "--tags", "stack", "-e", json.dumps(on))
        yield found
        playbook("site.yml", "--tags", "stack")


@pytest.fixture
def signed_in(browser: Browser, endpoint, sign_on: SignOn) -> Iterator[Callable[[str], Visit]]:
    """`signed_in(USER)`: a browser that has opened a page of the server's, and whose person has signed in where it was led."""
    contexts = []

    def make(user: str) -> Visit:
        context = browser.new_context(ignore_https_errors=True, color_scheme="light")
        contexts.append(context)
        page = context.new_page()
        # The provider's page has a style sheet of another host's, which nothing here leads to.
        page.goto(f"{endpoint.url}/v2/runs?tab=task-runs", wait_until="commit")
        assert urlsplit(page.url).path == "/oauth2/authorize"
        page.locator("input[name=sub]").fill(user)
        page.locator("button[type=submit], input[type=submit]").first.click(no_wait_after=True)
        page.wait_for_url(f"{endpoint.url}/v2/runs?*", wait_until="commit")
        return Visit(page, "", urlsplit(endpoint.url).netloc)

    yield make
    for context in contexts:
        context.close()


def quick_run(page: Page, endpoint) -> None:
    deployment = endpoint.get("/api/deployments/name/hello/hello").json()["id"]
    page.goto(f"{endpoint.url}/v2/deployments/deployment/{deployment}")
    page.get_by_role("button", name="Run").first.click()
    page.get_by_text("Quick run").first.click()


def test_a_person_signs_in_and_has_the_role_of_their_group(signed_in, endpoint, vps: Vps) -> None:
    visit = signed_in("grace")
    assert "tab=task-runs" in visit.page.url, "where they wanted to go"
    for path in PAGES:
        look(visit, f"{endpoint.url}/v2{path}")
        assert visit.complaints == [] and visit.foreign == {}, path
    quick_run(visit.page, endpoint)
    made = {"role": "operator", "what": "run deployment hello/hello", "result": "done"}

    def not_made() -> Any:
        done = json.loads(vps.ssh("prefect-audit --account grace@example.org --json").stdout)
        return "" if [{key: one[key] for key in made} for one in done[-1:]] == [made] else done or "nothing"

    restores.until("a flow run is made, in her name", not_made, 30)


def test_a_person_of_another_group_may_less(signed_in, endpoint) -> None:
    visit = signed_in("linus")
    quick_run(visit.page, endpoint)
    words = "The role viewer may not run deployments. Roles that may: admin, deployer, operator."
    visit.page.get_by_text(words).wait_for(timeout=15_000)


def test_a_person_without_a_group_may_nothing(signed_in, endpoint) -> None:
    visit = signed_in("mallory")
    answer = visit.page.context.request.get(f"{endpoint.url}/api/admin/version")
    assert (answer.status, answer.json()["detail"]) == (403, "This account has no role.")


def test_programs_keep_their_passwords(endpoint, sign_on: SignOn) -> None:
    assert endpoint.get("/api/admin/version").status_code == 200
    assert endpoint.get("/api/admin/version", user="eve").status_code == 200
    for path in ("/api/admin/version", "/v2/dashboard", "/"):
        answer = endpoint.get(path, user=None)
        assert (answer.status_code, "location" in answer.headers) == (401, False)
    forged = {"X-Prefect-Person": "grace@example.org", "X-Prefect-Groups": "data team", "X-Prefect-Account": "admin"}
    assert endpoint.get("/api/admin/version", user=None, headers=forged).status_code == 401
