"""Which Authorization headers are let through to the computing of a hash: those of accounts, and no others."""

from __future__ import annotations

import base64
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("prefect_proxy", ROOT / "ansible/filter_plugins/prefect_proxy.py")
proxy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(proxy)

NAMES = ["ada", "bob1", "grace", "worker-general-1"]
KNOWN = re.compile(proxy.prefect_known_names(NAMES))


def header(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("password", ["", "x", "\xff\xfe", "secret:with:colons", "ÿ" * 20])
def test_an_account_is_known_whatever_the_password(name, password):
    assert KNOWN.match(header(name, password))
    assert KNOWN.match(header(name, password).replace("Basic", "basic"))


@pytest.mark.parametrize(
    "name", ["ad", "ada9", "adaa", "adA", "bob", "bob2", "gracf", "worker-general-2", "", "nobody"]
)
@pytest.mark.parametrize("password", ["", "x", "secret"])
def test_a_stranger_is_not(name, password):
    assert not KNOWN.match(header(name, password))


def test_two_headers_are_not():
    # Caddy's placeholder joins them with a comma.
    assert not KNOWN.match(f"{header('nobody', 'x')},{header('ada', 'x')}")
    assert not KNOWN.match(f"{header('ada', 'x')},{header('nobody', 'x')}")
