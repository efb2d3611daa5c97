"""A run's processes say what they do: log lines that name run, game and ply, and metrics for Prometheus."""

from __future__ import annotations

import json
import logging
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration import logs
from nlrl.orchestration.cluster import Cluster
from nlrl.orchestration.config import RunConfig, load_config, validated
from nlrl.orchestration.exporters import MetricsPort
from nlrl.orchestration.instruments import Instruments, instruments
from nlrl.orchestration.loop import run
from nlrl.orchestration.metric_names import BUCKETS, METRICS
from nlrl.orchestration.overrides import overridden
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.watch import Watch, Watcher
from nlrl.testing.by_rules import RuleModel

KEY = "sk-planted-0123456789"
EVIL = "\x1b[31mred\x00\u202e\n2026-01-01 INFO forged\x9b2J"


class EvilModel(RuleModel):
    """Never names a move, and writes what terminals obey."""

    def generate(self, requests: Any):
        from dataclasses import replace

        return [replace(one, text=EVIL, tokens=(1, 2)) for one in super().generate(requests)]


@pytest.fixture(autouse=True)
def as_it_was():
    root, ours = logging.getLogger(), logging.getLogger("nlrl")
    handlers, level = list(root.handlers), ours.level
    instruments.forget()
    yield
    for handler in [one for one in root.handlers if one not in handlers]:
        root.removeHandler(handler)
        handler.close()
    ours.setLevel(level)
    instruments.forget()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def scraped(url: str) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """Samples by name and labels, run and process left out."""
    parser = pytest.importorskip("prometheus_client.parser")
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            assert {"run", "process"} <= set(sample.labels)
            labels = tuple(sorted((k, v) for k, v in sample.labels.items() if k not in ("run", "process")))
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


# -- logs --------------------------------------------------------------------------------------------------------------
def test_lines_name_run_stage_game_and_ply_and_hide_what_must_be_hidden(session, watched, monkeypatch, capfd):
    monkeypatch.setenv("SOME_API_KEY", KEY)
    monkeypatch.setenv("ODD_NAME", "another-planted-value")
    watched.wrap = lambda model: EvilModel()
    one = session(model=watched.config, watch={"log_level": "debug"})
    logs.setup_logging("debug", secrets=["ODD_NAME"])
    with logs.log_context(run="small"), Watcher(one), one.spending(1, "rollout"):
        run_rollout(one, 1)
        logging.getLogger("nlrl.test").info("%s %s http://me:pass@host/x", KEY, "another-planted-value")
    games = {record["key"]: record for record in one.folder.stage(1, "rollout").records()}
    text = (one.folder.path / "logs" / "driver.jsonl").read_text(encoding="ascii")
    for hidden in (KEY, "another-planted-value", "me:pass"):
        assert hidden not in text
    assert "*** *** http://***@host/x" in text
    entries = lines_of(one.folder.path / "logs" / "driver.jsonl")
    inside = [entry for entry in entries if "game" in entry]
    assert {entry["game"] for entry in inside} == set(games)
    for entry in inside:
        assert (entry["run"], entry["iteration"], entry["stage"]) == ("small", 1, "rollout")
        assert entry["process"] == "driver"
        assert entry["level"] in ("debug", "info")
        assert entry["ply"] in [turn["ply"] for turn in games[entry["game"]]["turns"]]
    assert any("could not be read: missing" in entry["message"] for entry in inside)
    assert sum("forfeited:" in entry["message"] for entry in inside) == 16
    shown = capfd.readouterr().err
    assert not any(sign in shown for sign in ("\x1b", "\x00", "\u202e", "\x9b", KEY))
    assert not any(line.startswith("2026-01-01 INFO forged") for line in shown.splitlines())


def test_what_happens_in_every_game_is_said_so_often_and_then_counted():
    seldom = logs.Seldom(most=3, seconds=1000)
    assert [bool(seldom) for _ in range(5)] == [True, True, True, False, False]
    assert (seldom.take(), seldom.take()) == (2, 0)


def test_log_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MOST_BYTES", 5000)
    logs.setup_logging("info")
    handler = logs.add_log_file(tmp_path, "rollout-0/../x")
    for number in range(200):
        logging.getLogger("nlrl.test").info("line %d %s", number, "x" * 100)
    logs.remove_log_file(handler)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["rollout-0_.._x.jsonl", "rollout-0_.._x.jsonl.1"]
    assert all(path.stat().st_size <= 5000 for path in tmp_path.iterdir())
    assert lines_of(tmp_path / files[0])[-1]["message"].startswith("line 199")


def test_a_folder_that_refuses_costs_the_log_file_only(tmp_path, caplog):
    (tmp_path / "logs").write_text("in the way")
    assert logs.add_log_file(tmp_path / "logs", "driver") is None
    assert "no log file" in caplog.text


def test_options_that_people_know(small_config, tmp_path):
    config = overridden(small_config(tmp_path), ["--log-json", "--metrics-port", "0", "--watch.log-level", "debug"])
    assert config.watch.model_dump() == {"log_json": True, "log_level": "debug", "metrics": True, "metrics_port": 0}
    assert overridden(small_config(tmp_path), ["--metrics-port=9100"]).watch.metrics_port == 9100
    with pytest.raises(NLRLError, match=r"watch\.metrics_port"):
        validated(RunConfig, {"watch": {"metrics_port": 70000}}, "test")


def test_a_run_is_resumed_whatever_watches_it(small_config, tmp_path, committed_files):
    config = small_config(tmp_path / "run", iterations=1)
    folder = run(config).path
    before = committed_files(folder)
    again = small_config(tmp_path / "run", iterations=1, watch={"log_json": True, "metrics": False, "metrics_port": 0})
    assert committed_files(run(again).path) == before
    assert load_config(folder / "config.toml").watch.log_json
    assert json.loads((folder / "status.json").read_text())["state"] == "ended"
    assert "logs/" not in "".join(map(str, before))


def test_a_run_that_was_never_begun_leaves_its_folder_as_it_was(small_config, tmp_path, watched):
    def refuse(model):
        raise NLRLError("no model today")

    watched.wrap = refuse
    with pytest.raises(NLRLError, match="no model today"):
        run(small_config(tmp_path / "run", model=watched.config))
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


# -- metrics -----------------------------------------------------------------------------------------------------------
def test_the_port_tells_what_the_records_tell(session):
    one = session(watch={"metrics_port": 0})
    with Watcher(one):
        with one.spending(1, "rollout"):
            run_rollout(one, 1)
        url = json.loads((one.folder.path / "status.json").read_text())["where"]["metrics"]
        assert url.startswith("http://127.0.0.1:")
        found = scraped(url)
        stats = one.student.router.take_stats()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=5)
    games = list(one.folder.stage(1, "rollout").records())
    results = {dict(labels)["result"]: value for labels, value in found["nlrl_games_total"].items()}
    assert results == {result: sum(g["result"] == result for g in games) for result in {g["result"] for g in games}}
    plain = {name: values[()] for name, values in found.items() if () in values}
    assert plain["nlrl_turns_total"] == sum(len(game["turns"]) for game in games)
    assert plain["nlrl_moves_total"] == sum(len(game["actions"]) for game in games)
    assert plain["nlrl_records_written_total"] == len(games)
    assert plain["nlrl_iteration"] == 1
    assert plain["nlrl_model_requests_total"] == stats.requests
    assert plain["nlrl_model_cached_requests_total"] == stats.cached
    assert plain["nlrl_model_generated_tokens_total"] == stats.completion_tokens
    assert plain["nlrl_model_prompt_tokens_total"] == stats.prompt_tokens
    assert plain["nlrl_model_request_seconds_count"] == stats.requests - stats.cached
    assert plain["nlrl_model_batch_requests_sum"] == stats.requests - stats.cached
    assert plain["nlrl_model_open_requests"] == 0
    assert found["nlrl_model_request_seconds_bucket"][("le", "+Inf"),] == stats.requests - stats.cached
    assert found["nlrl_stage_done"][("stage", "rollout"),] == len(games)
    assert 0 < found["nlrl_stage_seconds_total"][("stage", "rollout"),] < 60
    assert found["nlrl_engine_weights_info"] == {(("version", "by-rules@0"), ("weights", "base")): 1.0}
    families = {name.removesuffix(end) for name in found for end in ("_bucket", "_sum", "_count", "")}
    assert families & set(METRICS) >= {"nlrl_games_total", "nlrl_model_request_seconds", "nlrl_calls_total"}


def test_failures_and_forfeits_are_counted(session, watched):
    watched.wrap = lambda model: EvilModel()
    one = session(model=watched.config)
    with one.spending(1, "rollout"):
        run_rollout(one, 1)
    totals = instruments.totals()
    games = list(one.folder.stage(1, "rollout").records())
    failures = sum(len(turn["failures"]) for game in games for turn in game["turns"])
    assert totals["nlrl_forfeits_total"] == len(games)
    assert totals["nlrl_parse_failures_total"] == failures
    assert totals["nlrl_retries_total"] == failures / 2


def test_training_is_counted(finished, small_config, tmp_path):
    instruments.count("nlrl_train_steps_total", 5, "actor")  # of an earlier run in this process
    seen: dict[str, float] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Watcher, "__exit__", _noting(seen, Watcher.__exit__))
        run(small_config(tmp_path / "run", iterations=1))
    assert seen["nlrl_train_seconds_total"] > 0
    assert seen["nlrl_iteration"] == 1
    assert instruments.totals() == {}


def _noting(seen: dict[str, float], leave: Any) -> Any:
    def noted(self: Any, *raised: Any) -> None:
        seen.update(instruments.totals())
        leave(self, *raised)

    return noted


def test_histograms_are_as_prometheus_has_them():
    one = Instruments()
    one.observe("nlrl_model_request_seconds", (0.001, 0.3, 1000.0))
    found = {(s.name, s.labels.get("le")): s.value for s in one.samples()}
    assert found["nlrl_model_request_seconds_bucket", "0.001"] == 1
    assert found["nlrl_model_request_seconds_bucket", "0.25"] == 1
    assert found["nlrl_model_request_seconds_bucket", "0.5"] == 2
    assert found["nlrl_model_request_seconds_bucket", "300"] == 2
    assert found["nlrl_model_request_seconds_bucket", "+Inf"] == 3
    assert found["nlrl_model_request_seconds_sum", None] == pytest.approx(1000.301)
    assert found["nlrl_model_request_seconds_count", None] == 3
    assert set(BUCKETS) == {name for name, metric in METRICS.items() if metric.kind == "histogram"}


def test_an_engines_figures_come_as_they_do_from_the_server():
    class Figures:
        def read(self) -> dict[str, float]:
            return {"pages_used": 3.0, "requests_completed_total": 5.0, "prefix_hit_rate": 0.5}

        def versions(self) -> dict[str, str]:
            return {"base": "b@0", "actor": "actor@3"}

    one, figures = Instruments(), Figures()
    one.read_from(figures.read, figures.versions)
    found = {(s.name, s.labels.get("version")): (s.metric.kind, s.value) for s in one.samples()}
    assert found == {
        ("nlrl_engine_pages_used", None): ("gauge", 3.0),
        ("nlrl_engine_requests_completed_total", None): ("counter", 5.0),
        ("nlrl_engine_weights_info", "b@0"): ("gauge", 1.0),
        ("nlrl_engine_weights_info", "actor@3"): ("gauge", 1.0),
    }
    del figures
    assert list(one.samples()) == []  # an engine that is gone is not kept by who counts it


def test_names_that_nobody_has_described_are_refused():
    one = Instruments()
    one.count("nlrl_made_up_total")
    with pytest.raises(KeyError, match="made_up"):
        list(one.samples())


def test_a_port_that_is_taken_is_named_before_the_run():
    pytest.importorskip("prometheus_client")
    first = MetricsPort(Instruments(), {}, 0)
    port = int(first.url.split(":")[2].split("/")[0])
    with pytest.raises(NLRLError, match=rf"watch.metrics_port: 127.0.0.1:{port} cannot be used"):
        MetricsPort(Instruments(), {}, port)
    first.close()


# -- Ray ---------------------------------------------------------------------------------------------------------------
class Speaking:
    """Logs and counts in a process of its own."""

    def say(self, words: str) -> int:
        logging.getLogger("nlrl.test").info(words, extra=logs.about("g", 3))
        instruments.count("nlrl_turns_total", 7)
        return 1


@pytest.fixture
def watched_cluster(tmp_path):
    ray = pytest.importorskip("ray")
    config = validated(RunConfig, {"name": "r", "out": str(tmp_path), "cluster": {"kind": "ray"}}, "test")
    cluster = Cluster("ray", num_cpus=1)
    cluster.watch = Watch.of(config, tmp_path)
    yield cluster
    cluster.close()
    assert not ray.is_initialized()


def test_the_context_crosses_into_workers_and_each_has_its_file(watched_cluster, tmp_path):
    workers = [watched_cluster.spawn(Speaking, name=f"speaker-{i}", num_cpus=0) for i in range(2)]
    with logs.log_context(run="r", iteration=4, stage="rollout"):
        assert watched_cluster.gather([worker.call("say", "hello") for worker in workers]) == [1, 1]
    for index in range(2):
        first, second = lines_of(tmp_path / "logs" / f"speaker-{index}.jsonl")
        assert first["message"].startswith("process ")
        assert (second["run"], second["iteration"], second["stage"]) == ("r", 4, "rollout")
        assert (second["game"], second["ply"], second["process"]) == ("g", 3, f"speaker-{index}")
    place = watched_cluster.place()
    assert place["kind"] == "ray"
    assert place["job"]
    assert "dashboard" not in place  # a local Ray of our own has none


@pytest.mark.slow
def test_ray_serves_what_workers_count(watched_cluster):
    workers = [watched_cluster.spawn(Speaking, name=f"speaker-{i}", num_cpus=0) for i in range(2)]
    watched_cluster.gather([worker.call("say", "hello") for worker in workers])
    (node,), found, deadline = watched_cluster.place()["metrics_of_nodes"], "", time.monotonic() + 60
    while found.count("ray_nlrl_turns_total{") < 2 and time.monotonic() < deadline:
        time.sleep(1)
        with urllib.request.urlopen(f"http://{node}/metrics", timeout=10) as answer:
            found = answer.read().decode()
    ours = [line for line in found.splitlines() if line.startswith("ray_nlrl_turns_total{")]
    assert sorted(line.rsplit(" ", 1)[1] for line in ours) == ["7.0", "7.0"]
    assert all('run="r"' in line and 'process="speaker-' in line for line in ours)
