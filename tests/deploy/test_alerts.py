"""Every metric and label in alerts and dashboard exists in /metrics of a real server."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.serving.latency import MAX_WAIT_FRACTION, Latency
from server.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "limbeck.rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "limbeck.json"
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}
OF_PROMETHEUS = {"up", "job", "instance", "le"}
WORDS = {
    "absent",
    "sum",
    "by",
    "clamp_max",
    "rate",
    "increase",
    "max",
    "max_over_time",
    "count",
    "and",
    "or",
    "histogram_quantile",
    "label_values",
    "__rate_interval",
}


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return plain


def panels_expressions() -> list[str]:
    panels = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return panels + [one["query"]["query"] for one in dashboard()["templating"]["list"]]


def names_in(expression: str) -> set[str]:
    """The metrics and labels of an expression: all words but strings, functions, durations and variables."""
    bare = re.sub(r'"[^"]*"|\[[^\]]*\]|limbeck:[\w:]+', "", expression)
    return set(re.findall(r"[a-zA-Z_]\w*", bare)) - WORDS


@pytest.fixture(scope="module")
def exposition(client: httpx.Client, pictures: dict[str, bytes]) -> str:
    """/metrics of a server after one valid and one invalid image."""
    for image in (pictures["jpeg"], pictures["jpeg"][:100]):
        client.post("/v1/classify", content=image)
    return client.get("/metrics").raise_for_status().text


@pytest.fixture(scope="module")
def known(exposition: str) -> set[str]:
    """The names of all metrics and labels."""
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", exposition, re.MULTILINE)
    metrics = {name + suffix for name, kind in kinds for suffix in SUFFIXES[kind]}
    labels = {name for line in re.findall(r"\{(.*)\}", exposition) for name in re.findall(r"(\w+)=", line)}
    return metrics | labels | OF_PROMETHEUS


def test_every_metric_and_label_of_the_alerts_exists(known: set[str]) -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        names = names_in(rule["expr"])
        assert names <= known, f"{rule}: {names - known}"
        assert set(re.findall(r"limbeck:[\w:]+", rule["expr"])) <= recorded
    assert len(recorded) >= 4


def test_every_metric_and_label_of_the_dashboard_exists(known: set[str]) -> None:
    assert len(panels_expressions()) > 15
    for expression in panels_expressions():
        names = names_in(expression)
        assert names <= known, f"{expression}: {names - known}"


def test_an_unknown_metric_or_label_is_detected(known: set[str]) -> None:
    assert not names_in('rate(limbeck_request_total{job="a"}[5m])') <= known
    assert not names_in('sum by (modle) (limbeck_workers{model="a"})') <= known


def test_every_metric_is_used_by_an_alert_or_the_dashboard(exposition: str) -> None:
    """Except `_created`, which the client library adds."""
    watched = " ".join([*panels_expressions(), *(rule["expr"] for rule in rules())])
    names = [
        name for name in re.findall(r"^# TYPE (limbeck_\S+) ", exposition, re.MULTILINE) if "_created" not in name
    ]
    assert len(names) >= 10
    assert not [name for name in names if name not in watched]


def test_failure_rates_count_only_paths_that_take_images(client: httpx.Client) -> None:
    """The `path` label is the route. Probes and scrapes are not counted."""
    takes = {path for path, does in client.get("/openapi.json").json()["paths"].items() if "post" in does}
    takes = {path for path in takes if "repository" not in path}
    probes = {"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/v2/models/{name}/ready"}
    by_path = [one for one in [*(rule["expr"] for rule in rules()), *panels_expressions()] if "_request" in one]
    asked = {regex for one in by_path for regex in re.findall(r'path=~"([^"]*)"', one)}
    assert len(takes) == 4 and len(by_path) >= 8
    for one in by_path:
        assert one.startswith("label_values") or one.count("path") == one.count("limbeck_request"), one
    for regex in asked:
        found = {path for path in {*takes, *probes} if re.fullmatch(regex, path)}
        assert found == takes if "explain" in regex else takes - {"/v1/explain"}
    (left_out,) = {regex for one in by_path for regex in re.findall(r'path!~"([^"]*)"', one)}
    assert {path for path in {*takes, *probes, "other"} if re.fullmatch(left_out, path)} == probes


def test_every_alert_has_a_severity_a_summary_and_an_action() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    assert len(alerts) >= 8
    for alert in alerts:
        assert alert["labels"]["severity"] in ("page", "ticket")
        assert len(alert["annotations"]["summary"]) > 15 and len(alert["annotations"]["action"]) > 15


def test_the_refusal_alert_uses_the_limits_of_the_server() -> None:
    (alert,) = [rule for rule in rules() if rule.get("alert") == "LimbeckRefusesSoon"]
    settings = Settings()
    assert f"limbeck_waiting_images / {settings.max_waiting} > 0.8 or " in alert["expr"]
    (limit,) = re.findall(r"/ \(([\d.]+) \* \((\d+) - clamp_max\(.*, (\d+)\)\)\) > 0.8", alert["expr"])
    room, deadline, most = map(float, limit)
    assert (room, deadline) == (MAX_WAIT_FRACTION, settings.deadline)
    for batch in (0.1, 2, 8):
        latency = Latency()
        latency.record(batch, 1)
        assert latency.queue_timeout(settings.deadline) == deadline - min(batch, most)


def test_dashboard_panels_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [cell for panel in panels for cell in _cells(panel["gridPos"])]
    assert len(set(cells)) == len(cells) and max(x for x, _ in cells) < 24
    assert {panel["datasource"]["uid"] for panel in panels} == {"prometheus"}


def _cells(place: dict[str, int]) -> Iterator[tuple[int, int]]:
    rows = range(place["y"], place["y"] + place["h"])
    return ((x, y) for x in range(place["x"], place["x"] + place["w"]) for y in rows)


def test_scrape_jobs_and_alerts_use_the_same_job_name() -> None:
    jobs = {job for rule in rules() for job in re.findall(r'job="([^"]*)"', rule["expr"])}
    for name in ("prometheus.yaml", "kubernetes.yaml"):
        (scrape,) = yaml.safe_load(RULES.with_name(name).read_text())["scrape_configs"]
        assert {scrape["job_name"]} == jobs


def test_prometheus_selects_the_server_pods_by_label_and_port() -> None:
    (scrape,) = yaml.safe_load(RULES.with_name("kubernetes.yaml").read_text())["scrape_configs"]
    kept = {one["source_labels"][0]: one["regex"] for one in scrape["relabel_configs"] if "regex" in one}
    server = next(yaml.safe_load_all((DEPLOY / "kubernetes/base/server.yaml").read_text()))
    template = server["spec"]["template"]
    (port,) = template["spec"]["containers"][0]["ports"]
    label = "__meta_kubernetes_pod_label_app_kubernetes_io_name"
    assert kept[label] == template["metadata"]["labels"]["app.kubernetes.io/name"]
    assert kept["__meta_kubernetes_pod_container_port_name"] == port["name"]


def test_promtool_accepts_the_rules_and_the_alerts_fire_as_expected(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:  # only promtool can check PromQL
        pytest.skip("promtool is not installed; it is in Debian's package prometheus")
    queries = [
        {"record": f"panel:{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, expression in enumerate(panels_expressions())
        if not expression.startswith("label_values")
    ]
    of_dashboard = tmp_path / "dashboard.yaml"
    of_dashboard.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": queries}]}))
    of_kubernetes = yaml.safe_load(RULES.with_name("kubernetes.yaml").read_text())
    # Debian builds promtool without Kubernetes service discovery: check the rest of the file.
    assert of_kubernetes["scrape_configs"][0].pop("kubernetes_sd_configs")
    bare = tmp_path / "kubernetes.yaml"
    bare.write_text(yaml.safe_dump(of_kubernetes | {"rule_files": [str(RULES)]}))
    for words in (
        ("check", "rules", RULES, of_dashboard),
        ("check", "config", RULES.with_name("prometheus.yaml")),
        ("check", "config", bare),
        ("test", "rules", RULES.with_name("limbeck.tests.yaml")),
    ):
        found = subprocess.run([promtool, *words], capture_output=True, encoding="utf-8", timeout=60)
        assert found.returncode == 0, found.stdout + found.stderr
