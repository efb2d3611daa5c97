"""Whole runs of the rule-following model: they improve, repeat to the byte, and do not care who works for them."""

from __future__ import annotations

import json
import shutil

import pytest

from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.loop import run
from nlrl.orchestration.methods import stages_of
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics

STAGES = stages_of(RunConfig())
LEARNING = {
    "iterations": 3,
    "rollout": {"games": 96, "samples_per_state": 1, "samples_at_start": 32},
    "targets": {"texts_min": 1, "texts_max": 1, "continuations": 9},
    "evaluation": {"games": 0, "opponents": ["random"], "value_states": 1},
}


def exact_wins(folder):
    paths = sorted(folder.glob("iterations/*/evaluation/manifest.json"))
    return [json.loads(path.read_text())["metrics"]["exact"]["against"]["random"]["win"] for path in paths]


# -- learning ----------------------------------------------------------------------------------------------------------
def test_the_loop_makes_the_actor_win_more(small_config, tmp_path):
    wins = exact_wins(run(small_config(tmp_path / "run", **LEARNING)).path)
    assert len(wins) == 4
    assert wins[3] > wins[0] + 0.08
    assert wins[3] == max(wins)


@pytest.mark.slow
@pytest.mark.parametrize("control", ["shuffled_g1", "shuffled_evaluations"])
def test_a_broken_pipeline_does_not(small_config, tmp_path, control):
    wins = exact_wins(run(small_config(tmp_path / "run", **LEARNING, control=control)).path)
    assert wins[3] < wins[0] + 0.05


# -- what a run leaves -------------------------------------------------------------------------------------------------
def test_a_run_commits_every_stage_of_every_iteration(finished):
    expected = {(0, "evaluation")} | {(i, name) for i in (1, 2) for name, _ in STAGES}
    stages = list(RunFolder(finished).stages())
    assert {(stage.iteration, stage.name) for stage in stages} == expected
    assert all(stage.is_committed() for stage in stages)
    assert verify(finished) == []
    assert (finished / "agent").is_dir()
    assert not list(finished.rglob("shards"))


def test_a_run_logs_every_iteration_once_with_metrics_of_all_stages(finished):
    entries = read_metrics(finished / METRICS_FILE)
    assert [entry["step"] for entry in entries] == [0, 1, 2]
    for entry in entries[1:]:
        names = entry["metrics"].keys()
        assert {f"seconds/{name}" for name, _ in STAGES} <= names
        assert {"rollout/games", "targets/texts", "evaluation/exact/against/random/win", "model/requests"} <= names
    lines = [json.loads(line) for line in (finished / METRICS_FILE).read_text().splitlines()]
    assert [(line["step"], line["name"]) for line in lines if "text" in line] == [(i, "evaluations") for i in range(3)]


# -- the same again ----------------------------------------------------------------------------------------------------
def test_two_runs_of_a_config_are_equal_byte_for_byte(finished, small_config, tmp_path, committed_files):
    again = run(small_config(tmp_path / "again")).path
    assert committed_files(again) == committed_files(finished)
    assert len(committed_files(again)) == 17


def test_another_seed_is_another_run(finished, small_config, tmp_path, committed_files):
    other = committed_files(run(small_config(tmp_path / "other", seed=1, iterations=1)).path)
    same = [path for path, content in committed_files(finished).items() if other.get(path) == content]
    assert same == []


@pytest.mark.parametrize(("workers", "servers"), [(1, 1), (5, 3)])
def test_the_number_of_workers_and_servers_leaves_no_trace(
    finished, small_config, tmp_path, committed_files, workers, servers
):
    other = run(small_config(tmp_path / "other", rollout={"workers": workers}, cluster={"servers": servers})).path
    assert committed_files(other) == committed_files(finished)


def test_a_run_with_every_other_setting_is_repeatable_too(small_config, tmp_path, committed_files):
    runs = []
    for workers in (1, 3):
        rollout = {"games": 8, "workers": workers, "opponents": ["random", "self"]}
        changes = {"targets": {"kind": "td"}, "improvement": {"candidates": "sampled"}, "rollout": rollout}
        runs.append(run(small_config(tmp_path / str(workers), **changes)).path)
    assert committed_files(runs[0]) == committed_files(runs[1])


# -- running again -----------------------------------------------------------------------------------------------------
def test_running_a_finished_run_again_changes_nothing(finished, small_config, tmp_path, committed_files):
    copy = shutil.copytree(finished, tmp_path / "copy")
    before = committed_files(copy)
    metrics = (copy / METRICS_FILE).read_bytes()
    run(small_config(copy))
    assert committed_files(copy) == before
    assert (copy / METRICS_FILE).read_bytes() == metrics  # the times of the first run are not overwritten


def test_more_iterations_go_on_where_the_run_ended(finished, small_config, tmp_path, committed_files):
    short = run(small_config(tmp_path / "run", iterations=1)).path
    assert committed_files(run(small_config(short, iterations=2)).path) == committed_files(finished)


@pytest.mark.parametrize("lost", ["001/critic", "001/improvement", "002/targets", "002/evaluation"])
def test_a_deleted_stage_is_made_again_with_the_same_bytes(finished, small_config, tmp_path, committed_files, lost):
    copy = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(copy / "iterations" / lost)
    run(small_config(copy))
    assert committed_files(copy) == committed_files(finished)


def test_a_run_stops_in_time(small_config, tmp_path):
    folder = run(small_config(tmp_path / "run", iterations=50, max_minutes=0.001, rollout={"games": 4}))
    assert max(stage.iteration for stage in folder.stages()) == 1
    assert (folder.path / "agent").is_dir()
