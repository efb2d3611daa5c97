from __future__ import annotations

import socket
import tomllib

import pytest

from nlrl.orchestration.run_folder import RunFolder
from nlrl.testing import write_run
from nlrl.ui import library

from .shelf import METRICS, config, write_growing


def read(run, now=None):
    return library.read_run(run.name, run, now)


def test_runs_are_named_by_their_place_in_the_folder(tmp_path):
    for place in ("b", "group/a"):
        write_run(tmp_path / place)
    assert list(library.named_runs(tmp_path)) == ["b", "group/a"]
    assert list(library.named_runs(tmp_path / "b")) == ["."]


def test_configs_differ_where_their_values_do_and_names_count_not(tmp_path):
    first = write_run(tmp_path / "a", config=config("a", 1) + "[targets]\nkind = 'mc'\n")
    second = write_run(tmp_path / "b", config=config("b", 2))
    found = library.differences([read(first), read(second)])
    assert found == {"seed": {"a": "1", "b": "2"}, "targets.kind": {"a": "mc", "b": "-"}}
    assert library.differences([read(first)]) == {}


def test_last_figures_prefer_the_random_player_and_the_newest_iteration():
    metrics = [
        {"step": 0, "metrics": {"evaluation/exact/exploitability": 1.0, "evaluation/exact/against/minimax/win": 0.5}},
        {
            "step": 1,
            "metrics": {f"evaluation/exact/against/{who}/win": w for who, w in (("minimax", 0.0), ("random", 0.9))},
        },
        {"step": 2, "metrics": {"train/loss": 1.0}},
    ]
    assert library.last_figures(metrics) == {"win (exact)": 0.9, "exploitability": 1.0}
    assert library.last_figures([]) == {}


def test_a_run_is_finished_at_its_last_iteration_or_when_its_agent_is_exported(tmp_path):
    run = write_run(tmp_path / "run", config=config(), metrics=[*METRICS, {}, {"x": 1.0}])
    assert read(run).progress == library.Progress("finished", 3, 3)
    early = write_run(tmp_path / "early", config=config(), metrics=METRICS)
    assert read(early).progress.state == "stopped"
    (early / "agent").mkdir()
    assert read(early).progress == library.Progress("finished", 1, 3)
    assert read(early).progress.words == "1 of 3"


def test_a_growing_run_is_running_while_its_driver_holds_it(tmp_path):
    run = write_growing(tmp_path / "run")
    with RunFolder.open(run, tomllib.loads(config("growing")), config("growing")):
        assert read(run).progress == library.Progress("running", None, 3, "001/rollout")
    assert read(run).progress.state == "stopped"
    (run / ".lock").write_text(f"process 999999999 on {socket.gethostname()}")
    assert read(run).progress.state == "stopped"


def test_a_run_of_another_machine_is_running_while_its_files_grow(tmp_path):
    run = write_growing(tmp_path / "run")
    (run / ".lock").write_text("process 1 on elsewhere")
    changed = read(run).changed
    assert read(run, changed + 10).progress.state == "running"
    assert read(run, changed + 3600).progress.state == "stopped"


@pytest.mark.parametrize("lock", [b"", b"process x on y", b"\xff\xfe", b"process 99999999999999999999 on h"])
def test_a_lock_that_says_nothing_holds_nothing(tmp_path, lock):
    run = write_growing(tmp_path / "run")
    (run / ".lock").write_bytes(lock)
    assert read(run).progress.state == "stopped"


def test_an_empty_and_a_torn_run_read_as_far_as_they_go(tmp_path):
    empty = read(write_run(tmp_path / "empty"))
    assert (empty.progress.state, empty.figures, empty.problem) == ("empty", {}, "")
    torn = write_run(tmp_path / "torn", metrics=METRICS)
    (torn / "metrics.jsonl").write_text("torn\n{}\n")
    (torn / "config.toml").write_text("not = toml = at all")
    found = read(torn)
    assert "metrics.jsonl, line 1" in found.problem
    assert found.config == {}


def test_the_stamp_of_a_run_changes_when_it_grows(tmp_path):
    run = write_run(tmp_path / "run")
    before = library.run_stamp(run)
    assert library.run_stamp(run) == before
    write_growing(tmp_path / "run2")
    (tmp_path / "run2" / "iterations").rename(run / "iterations")
    assert library.run_stamp(run) != before
