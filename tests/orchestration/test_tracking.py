"""Metrics reach the run's file always and services when they can; progress and logs suit where they appear."""

from __future__ import annotations

import io
import json
import logging
import sys
import types

import pytest
from rich.console import Console

from nlrl.errors import NLRLError
from nlrl.orchestration import logs, progress
from nlrl.orchestration.tracking import CompositeTracker, MetricsFile, make_tracker, read_metrics


class Recording:
    """A tracker that remembers, or fails."""

    def __init__(self, error=None):
        self.calls, self.error = [], error

    def __getattr__(self, method):
        def call(*args, **_):
            self.calls.append((method, *args))
            if self.error:
                raise self.error

        return call


# -- the file ----------------------------------------------------------------------------------------------------------
def test_metrics_come_back_by_step_and_the_later_of_two_counts(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for value in (0.1, 0.2):  # the second time as by a resumed run
        file = MetricsFile(path)
        file.log(2, {"win_rate": value, "loss": 1.0})
        file.log(1, {"win_rate": 0.0})
        file.text(2, "argument", "because")
        file.close()
    file = MetricsFile(path)
    file.log(2, {"loss": 3.0})
    file.close()
    assert read_metrics(path) == [
        {"step": 1, "metrics": {"win_rate": 0.0}},
        {"step": 2, "metrics": {"win_rate": 0.2, "loss": 3.0}},
    ]


def test_a_torn_metrics_file_is_read_and_continued(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step":1,"time":0.0,"metrics":{"a":1}}\n{"step":2,"ti')
    assert read_metrics(path) == [{"step": 1, "metrics": {"a": 1}}]
    file = MetricsFile(path)
    file.log(2, {"a": 2})
    file.close()
    assert [entry["step"] for entry in read_metrics(path)] == [1, 2]


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


# -- several trackers --------------------------------------------------------------------------------------------------
def test_everything_goes_to_every_tracker():
    first, second = Recording(), Recording()
    tracker = CompositeTracker([first, second])
    tracker.log(1, {"a": 1})
    tracker.text(1, "t", "body")
    tracker.close()
    assert first.calls == second.calls == [("log", 1, {"a": 1}), ("text", 1, "t", "body"), ("close",)]


def test_a_service_that_fails_is_dropped_with_a_warning_and_the_others_go_on(caplog):
    broken, whole = Recording(ConnectionError("service is down")), Recording()
    tracker = CompositeTracker([broken, whole])
    tracker.log(1, {"a": 1})
    tracker.log(2, {"a": 2})
    assert len(broken.calls) == 1
    assert len(whole.calls) == 2
    assert "service is down" in caplog.text


def test_a_service_that_cannot_be_opened_is_left_out_and_the_file_is_written(tmp_path, monkeypatch, caplog):
    def refuse(name):
        raise ConnectionError("nobody answers")

    monkeypatch.setitem(sys.modules, "mlflow", types.SimpleNamespace(set_experiment=refuse))
    tracker = make_tracker(["mlflow"], tmp_path)
    tracker.log(1, {"a": 1})
    tracker.close()
    assert "MLflow cannot be used and is left out: nobody answers" in caplog.text
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["metrics"] == {"a": 1}


def test_a_full_disk_stops_the_run():
    with pytest.raises(NLRLError, match="full"):
        CompositeTracker([Recording(NLRLError("full"))]).log(1, {"a": 1})


def test_unknown_and_missing_trackers_are_refused_before_the_run(tmp_path, monkeypatch):
    with pytest.raises(NLRLError, match=r"'comet' is none of tensorboard, wandb, mlflow"):
        make_tracker(["comet"], tmp_path)
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(NLRLError, match=f"pip install {name}"):
            make_tracker([name], tmp_path)


# -- services ----------------------------------------------------------------------------------------------------------
def test_tensorboard_shows_numbers_and_texts(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = make_tracker(["tensorboard"], tmp_path)
    tracker.log(3, {"evaluation/win_rate": 0.5, "nothing": float("nan")})
    tracker.text(3, "argument", "# not a heading\nsecond")
    tracker.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["evaluation/win_rate"]
    assert [(event.step, event.value) for event in events.Scalars("evaluation/win_rate")] == [(3, 0.5)]
    assert events.Tensors("argument/text_summary")[0].tensor_proto.string_val[0] == b"    # not a heading\n    second\n"
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["metrics"]["evaluation/win_rate"] == 0.5


def test_wandb_gets_numbers_escaped_texts_and_one_page_a_run(tmp_path, monkeypatch):
    run = Recording()
    started = []
    module = types.SimpleNamespace(init=lambda **options: started.append(options) or run, Html=str)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):
        tracker = make_tracker(["wandb"], tmp_path, project="p", config={"seed": 1})
        tracker.log(1, {"a": 1, "b": float("inf")})
        tracker.text(1, "t", "<b>")
        tracker.close()
    assert [call[0] for call in run.calls] == ["log", "log", "finish"] * 2
    assert started[0] == started[1]
    assert started[0]["config"] == {"seed": 1}


def test_mlflow_continues_the_entry_of_a_resumed_run(tmp_path, monkeypatch):
    entries, starts, logged = [], [], []
    module = types.SimpleNamespace(
        set_experiment=lambda name: types.SimpleNamespace(experiment_id=name),
        search_runs=lambda experiments, search, **_: [entry for entry in entries if entry.tag in search],
        start_run=lambda run_id, run_name, tags: starts.append((run_id, tags["nlrl_run"])),
        log_dict=lambda *_: None,
        log_metrics=lambda metrics, step: logged.append((metrics, step)),
        log_text=lambda body, path: logged.append((body, path)),
        end_run=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    tracker = make_tracker(["mlflow"], tmp_path)
    tracker.log(1, {"a": 1})
    tracker.text(1, "t", "body")
    tracker.close()
    entries.append(types.SimpleNamespace(tag=starts[0][1], info=types.SimpleNamespace(run_id="earlier")))
    make_tracker(["mlflow"], tmp_path).close()
    assert [run_id for run_id, _ in starts] == [None, "earlier"]
    assert logged == [({"a": 1.0}, 1), ("body", "t/000001.txt")]


# -- progress ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def terminal(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(progress, "console", lambda: console)
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    return console


def shown(console):
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_bars_even_two_at_a_time(terminal):
    with progress.progress("rollout", 10, done=4) as outer:
        with progress.progress("targets", 3) as inner:
            inner.advance(3)
        outer.advance(6)
    assert "rollout" in shown(terminal)
    assert "10/10" in shown(terminal)
    assert "3/3" in shown(terminal)


def test_a_job_gets_lines_instead_of_bars(terminal, monkeypatch, caplog):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    caplog.set_level("INFO", logger="nlrl")
    with progress.progress("rollout", 1000, done=400, every=60) as lines:
        for _ in range(600):
            lines.advance()
    assert shown(terminal) == ""
    assert caplog.messages[0] == "rollout: 400 of 1000"
    assert caplog.messages[-1].startswith("rollout: 1000 of 1000, ")
    assert len(caplog.messages) == 2


def test_lines_come_at_intervals_with_the_time_left(terminal, monkeypatch, caplog):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    caplog.set_level("INFO", logger="nlrl")
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcd", "games")) == list("abcd")
    assert any("of 4, " in message and "s left" in message for message in caplog.messages)


# -- logs --------------------------------------------------------------------------------------------------------------
@pytest.fixture
def stderr(capsys):
    """What was written to stderr; the project's handler is taken away afterwards."""
    logs.console.cache_clear()
    root, ours = logging.getLogger(), logging.getLogger("nlrl")
    handlers, level = list(root.handlers), ours.level
    yield lambda: capsys.readouterr().err.splitlines()
    root.handlers[:] = handlers
    ours.setLevel(level)
    logs.console.cache_clear()


def test_json_lines_carry_the_context_and_the_traceback(stderr):
    logs.setup_logging("info", json_lines=True)
    with logs.log_context(run="r", iteration=3), logs.log_context(game="g"):
        logging.getLogger("nlrl.test").info("won %d", 5)
    try:
        raise KeyError("lost")
    except KeyError:
        logging.getLogger("nlrl.test").exception("failed")
    first, second = (json.loads(line) for line in stderr())
    assert first | {"time": 0} == {
        **{"time": 0, "level": "info", "logger": "nlrl.test", "message": "won 5"},
        **{"run": "r", "iteration": 3, "game": "g"},
    }
    assert "KeyError" in second["error"]
    assert "run" not in second


def test_a_pipe_gets_plain_lines_and_only_warnings_of_others(stderr):
    logs.setup_logging("debug")
    logs.setup_logging("info")  # replaces, does not double
    with logs.log_context(iteration=3):
        logging.getLogger("nlrl.test").info("hello")
    logging.getLogger("nlrl.test").debug("detail")
    logging.getLogger("library").warning("careful")
    logging.getLogger("library").info("chatter")
    lines = [line.split(" ", 1)[1] for line in stderr()]
    assert lines == ["INFO nlrl.test: hello [iteration=3]", "WARNING library: careful"]
