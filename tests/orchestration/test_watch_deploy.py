"""The dashboard, the scrape config and the docs name metrics that exist, and leave none out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nlrl.backbones.engine.metrics import collect
from nlrl.orchestration.metric_names import BUCKETS, ENGINE, METRICS, markdown

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"\bnlrl_[a-z_]+[a-z]\b")


def known_names() -> set[str]:
    """Of runs, of engines and of `nlrl serve`, as Prometheus sees them."""
    engine = {f"{ENGINE}{figure}" for figure in collect([], 0)}
    histograms = {f"{name}_{part}" for name in BUCKETS for part in ("bucket", "sum", "count")}
    return set(METRICS) - set(BUCKETS) | histograms | engine


def served_names() -> set[str]:
    metrics = pytest.importorskip("nlrl.backbones.engine.server.metrics")

    class Engine:
        def metrics(self):
            return collect([], 0)

        def weight_versions(self):
            return {"default": "a@0"}

    found = metrics.ServerMetrics(Engine())
    for family in (found.seconds, found.first):
        family.labels("/v1").observe(1)
    found.requests.labels("/v1", "200").inc()
    return {line.split("{")[0].split(" ")[0] for line in found.text().decode().splitlines() if line[0] != "#"}


def queries() -> list[str]:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_asks_for_nothing_that_is_not_there():
    asked = {name for query in queries() for name in NAME.findall(query)}
    assert asked <= known_names()
    every_run = {name for name, metric in METRICS.items() if metric.kind != "histogram"} - {"nlrl_stage_before"}
    counted_elsewhere = {"nlrl_train_seconds_total", "nlrl_train_steps_total", "nlrl_calls_total"}
    assert every_run - counted_elsewhere <= asked


def test_the_dashboard_is_one_that_grafana_takes():
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    for query in queries():
        assert query.count("(") == query.count(")")
        assert query.count("{") == query.count("}")
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]+)\}?", json.dumps(panels)))
    assert used <= variables


def test_names_are_those_of_the_server():
    engine = {name for name in known_names() if name.startswith(ENGINE)}
    assert engine <= served_names()


def test_the_scrape_config_makes_one_name_of_rays_and_ours():
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (rule,) = jobs["nlrl-ray"]["metric_relabel_configs"]
    named = re.fullmatch(rule["regex"], "ray_nlrl_turns_total")
    assert named is not None
    assert rule["replacement"].replace("$1", named[1]) == "nlrl_turns_total"
    assert re.fullmatch(rule["regex"], "ray_node_cpu") is None


def test_the_docs_tell_of_every_metric():
    page = (ROOT / "docs" / "watching.md").read_text()
    assert markdown() in page
    assert {f"{ENGINE}{figure}" for figure in collect([], 0)} <= set(NAME.findall(page))
    assert set(NAME.findall(page)) <= known_names() | served_names() | set(BUCKETS)
