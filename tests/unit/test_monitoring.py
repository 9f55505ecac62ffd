"""What is shipped for Prometheus, Grafana and Datadog: every metric that it names exists, every command that it says, too."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect_metrics import catalogue

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import _promtool  # noqa: E402
import metrics_table  # noqa: E402

DOCS = ROOT / "docs/monitoring"
RULES = yaml.safe_load((DOCS / "rules.yml").read_text())["groups"]
ALERTS = [rule for group in RULES for rule in group["rules"] if "alert" in rule]
RECORDS = [rule for group in RULES for rule in group["rules"] if "record" in rule]
DASHBOARD = json.loads((DOCS / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCRAPES = yaml.safe_load((DOCS / "prometheus.yml").read_text())["scrape_configs"]
DATADOG = yaml.safe_load((DOCS / "datadog/openmetrics.yaml").read_text())["instances"]
#: Metrics of the exporters by the end of their paths, with their labels.
EXPORTED: dict[str, dict[str, list[str]]] = yaml.safe_load((ROOT / "tests/unit/exported.yml").read_text())

#: What Prometheus adds, or makes itself.
OF_ALL = {"instance", "job", "__name__"}
WORDS = {"and", "or", "unless", "on", "by", "group_left", "group_right", "bool", "without", "ignoring", "offset"}


def known() -> dict[str, set[str]]:
    """All metrics there are, with their labels."""
    found = {name: set(labels) for metrics in EXPORTED.values() for name, labels in metrics.items()}
    for metric in catalogue.ALL:
        for name in metric.samples():
            found[name] = {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
    return {**found, "up": set()}


KNOWN = known()


def used(expression: str) -> dict[str, set[str]]:
    """The metrics of an expression, each with the labels that it is selected by, and under "" those that are grouped by."""
    bare = re.sub(r'"(\\.|[^"\\])*"', '""', expression)
    bare = re.sub(r"\[[^\]]*\]", "", bare)
    groups = r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    found = {"": {label for names in re.findall(groups, bare) for label in re.findall(r"\w+", names)}}
    bare = re.sub(groups, " ", bare)
    for name, call, selector in re.findall(r"\b([a-zA-Z_:][\w:]*)\b\s*(\()?(?:\{([^}]*)\})?", bare):
        if not call and name not in WORDS:
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]", selector))
    return found


def unknown(expression: str, records: bool = True) -> set[str]:
    """Metrics and labels of an expression that nobody exports."""
    recorded = {rule["record"] for rule in RECORDS} if records else set()
    said = used(expression)
    grouped = said.pop("")
    wrong = {name for name in said if name not in KNOWN and name not in recorded}
    if any(name in KNOWN for name in said):
        all_labels = set().union(*(KNOWN.get(name, set()) for name in said)) | OF_ALL
        all_labels |= {label for name in said if name in recorded for label in ("work_pool",)}
        wrong |= {f"by {label}" for label in grouped - all_labels}
    for name, labels in said.items():
        if name in KNOWN:
            wrong |= {f"{name}{{{label}}}" for label in labels - KNOWN[name] - OF_ALL}
    return wrong


def test_metrics_of_an_expression():
    said = used('sum by (code) (rate(a_total{x="a{b}", y!~"\\"c"}[5m])) / on (i) group_left max(b:c) > 0.5')
    assert said == {"": {"code", "i"}, "a_total": {"x", "y"}, "b:c": set()}
    assert unknown("rate(prefect_kit_flow_run_total[5m])") == {"prefect_kit_flow_run_total"}
    assert unknown('prefect_kit_flow_runs{pool="x"}') == {"prefect_kit_flow_runs{pool}"}
    assert unknown("sum by (pool) (prefect_kit_flow_runs)") == {"by pool"}
    assert unknown('sum by (state) (prefect_kit_flow_runs{work_pool="x", instance="y"})') == set()


def test_the_page_has_the_table_of_the_catalogue():
    page = metrics_table.PAGE.read_text()
    assert page == metrics_table.with_table(page), "./scripts/metrics_table.py --write"


def test_what_is_said_of_limits_is_what_they_are():
    from prefect_doctor.work import FORGOTTEN_DAYS, LATE_WARNING, SILENT, STUCK
    from prefect_metrics import counters, figures, flow_runs

    for short, number in (
        ("check_level", figures.CHECKS),
        ("late_flow_runs", LATE_WARNING),
        ("stuck_flow_runs", STUCK),
        ("worker_last_heartbeat_timestamp_seconds", figures.WORKERS),
        ("worker_last_heartbeat_timestamp_seconds", FORGOTTEN_DAYS),
        ("workers_online", SILENT),
        ("concurrency_slots_active", flow_runs.LIMITS),
    ):
        assert f"{number:.0f}" in re.findall(r"\d+", catalogue.BY_NAME[short].meaning), short
    page = " ".join((DOCS / "metrics.md").read_text().split())
    assert f"At most {counters.DEPLOYMENTS} deployments and {counters.POOLS} work pools" in page
    assert f"no flow run for {counters.IDLE / 86400:.0f} days" in page
    assert f"given up after {flow_runs.PATIENCE:.0f} seconds" in page


# --- Prometheus ------------------------------------------------------------------------------------------------------


def test_the_scrapes_are_of_the_four_addresses_and_hold_no_password():
    assert {one["job_name"]: one["metrics_path"] for one in SCRAPES} == {
        "prefect-node": "/metrics/node",
        "prefect-postgres": "/metrics/postgres",
        "prefect-caddy": "/metrics/caddy",
        "prefect-server": "/metrics/prefect",
    }
    for one in SCRAPES:
        assert (one["scheme"], set(one["basic_auth"])) == ("https", {"username", "password_file"})
    assert {job for one in RECORDS + ALERTS for job in re.findall(r'job="([^"]+)"', one["expr"])} <= {
        one["job_name"] for one in SCRAPES
    }


@pytest.mark.parametrize("rule", [*RECORDS, *ALERTS], ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_is_about_metrics_that_there_are(rule):
    assert unknown(rule["expr"]) == set()


def test_every_alert_is_tried():
    tests = yaml.safe_load((DOCS / "rules_test.yml").read_text())["tests"]
    fired = {one["alertname"] for test in tests for one in test.get("alert_rule_test", []) if one.get("exp_alerts")}
    assert {rule["alert"] for rule in ALERTS} == fired
    # And that it is quiet needs its metrics.
    (quiet,) = [test for test in tests if test["name"].startswith("all is well")]
    given = {re.match(r"[\w:]+", one["series"])[0] for one in quiet["input_series"]}  # type: ignore[index]
    recorded = {rule["record"]: rule["expr"] for rule in RECORDS}
    for rule in ALERTS:
        names = set(used(rule["expr"])) - {""}
        wanted = {
            name for one in names for name in (used(recorded[one]) if one in recorded else [one]) if name in KNOWN
        }
        # A pool that is paused says so by another series.
        assert wanted - given <= {"prefect_kit_work_pool_paused"}, rule["alert"]


#: What writes the metrics.
WATCH = "prefect-watch.service"
PROGRAMS = {"df", "docker", "free", "grep", "journalctl", "prefect", "systemctl"}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_what_to_type(rule):
    assert rule["labels"]["severity"] in {"warning", "critical"}
    assert set(rule["annotations"]) == {"summary", "runbook"}
    assert rule["alert"].startswith("Prefect")
    for command in re.split(r";\s*|\s\|\s", rule["annotations"]["runbook"]):
        words = command.removeprefix("sudo ").split()
        assert words[0] in PROGRAMS or (ROOT / "backups" / words[0]).exists(), command
        for unit in re.findall(r"(?<![\w'/-])(prefect-[a-z-]+)(?:\.(?:service|timer))?(?= |$)", " ".join(words[1:])):
            there = [*(ROOT / "systemd").glob(f"{unit}.*"), *(ROOT / "systemd").glob(f"{unit}@.*")]
            assert there or unit in {Path(WATCH).stem, "prefect-server", "prefect-caddy", "prefect-postgres"}, command


# --- Grafana ---------------------------------------------------------------------------------------------------------


def expressions(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_draws_metrics_that_there_are(panel):
    assert panel["targets"]
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert unknown(target["expr"]) == set()
        # One server of several.
        assert all("instance" in labels for name, labels in used(target["expr"]).items() if name)
    assert panel["fieldConfig"]["defaults"]["unit"]
    for target in panel["targets"]:
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        names = set(used(target["expr"])) - {""}
        labels = set().union(*(KNOWN.get(name, {"work_pool"}) for name in names))
        assert legend <= labels, panel["title"]


def test_a_dashboard_is_for_any_prometheus():
    variables = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
    assert set(variables) == {"datasource", "instance", "work_pool"}
    assert variables["datasource"]["type"] == "datasource"
    for one in ("instance", "work_pool"):
        metric = re.match(r"label_values\((\w+)", variables[one]["definition"])[1]  # type: ignore[index]
        assert metric in KNOWN
    uids = set(re.findall(r'"uid":\s*"([^"]*)"', json.dumps(DASHBOARD)))
    assert uids == {"${datasource}", "prefect-kit"}
    assert "id" not in DASHBOARD
    (upgrades,) = DASHBOARD["annotations"]["list"]
    assert unknown(upgrades["expr"]) == set()


def test_panels_lie_beside_each_other():
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)


@pytest.mark.skipif(not _promtool.there(), reason="./scripts/test lint fetches promtool, where it can be had")
def test_prometheus_understands_every_panel(tmp_path):
    found = [expression for panel in PANELS for expression in expressions(panel)]
    rules = [{"record": f"panel:{number}", "expr": one} for number, one in enumerate(found)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run(
        [_promtool.there(), "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_metrics_of_the_kit_are_drawn_or_alerted_on():
    """One that nobody looks at need not be made."""
    said = {name for panel in PANELS for one in expressions(panel) for name in used(one)}
    said |= {name for rule in RECORDS + ALERTS for name in used(rule["expr"])}
    said |= set(used(DASHBOARD["annotations"]["list"][0]["expr"]))
    missing = {metric.short for metric in catalogue.ALL if not set(metric.samples()) & said}
    assert missing == {
        # The doctor's checks say the same; the number is for who wants to see it grow.
        *("collect_duration_seconds", "container_running", "container_oom_killed", "backup_rows"),
        *("database_invalid_indexes", "database_checksum_failures_total"),
        *("reboot_pending_seconds", "security_updates_pending"),
        *("work_pool_concurrency_limit", "upgrade_under_way", "postgres_upgrade_last_timestamp_seconds"),
        "offsite_copy_failed",
    }


# --- Datadog ---------------------------------------------------------------------------------------------------------


def named(instance: dict[str, Any]) -> list[tuple[str, str]]:
    """The metrics of an instance: Prometheus' name, and Datadog's."""
    pairs = [pair for one in instance["metrics"] for pair in one.items()]
    return [(name, to if isinstance(to, str) else to["name"]) for name, to in pairs]


@pytest.mark.parametrize("instance", DATADOG, ids=lambda one: one["openmetrics_endpoint"].rpartition("/")[2])
def test_datadog_is_told_each_metric_by_its_name(instance):
    path = instance["openmetrics_endpoint"].rpartition("/")[2]
    there = set(EXPORTED["server" if path == "prefect" else path])
    if path == "node":
        there |= {name for metric in catalogue.ALL for name in metric.samples()}
    for name, to in named(instance):
        # Since 7.32 the agent wants a counter without its _total; a histogram's or summary's name is that of its parts.
        assert not name.endswith("_total")
        assert {name, f"{name}_total", f"{name}_sum"} & there, name
        assert re.fullmatch(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)?", to)
    names = [to for _, to in named(instance)]
    assert len(set(names)) == len(names)
    assert "password" not in instance
    assert instance["auth_token"]["reader"]["type"] == "file"


def test_datadog_is_told_all_of_the_kit():
    (node,) = [one for one in DATADOG if one["openmetrics_endpoint"].endswith("/node")]
    said = {name for name, _ in named(node) if name.startswith(catalogue.PREFIX)}
    assert said == {metric.name.removesuffix("_total") for metric in catalogue.ALL}
    assert {one["openmetrics_endpoint"].partition(".com")[2] for one in DATADOG} == {
        one["metrics_path"] for one in SCRAPES
    }


def test_datadog_reads_the_logs_of_units_that_there_are():
    logs = yaml.safe_load((DOCS / "datadog/journald.yaml").read_text())["logs"]
    units = {unit for one in logs for unit in one["include_units"]} - {"docker.service"}
    for unit in units:
        assert (ROOT / "systemd" / re.sub(r"@.*\.", "@.", unit)).exists() or unit == WATCH, unit
    assert {f"prefect-{name}.service" for name in ("stack", "backup", "restore", "upgrade")} | {WATCH} <= units
