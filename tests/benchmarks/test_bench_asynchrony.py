"""`nlrl bench asynchrony` prints what overlap and more servers were worth, and keeps it."""

import json
from pathlib import Path

import pytest

from nlrl.benchmarks import asynchrony

FAST = ['model.options={"speed": 50}', "iterations=1", "rollout.games=4", "targets.states=2", "improvement.states=2"]


def test_both_arms_get_a_line_with_their_ratio_and_are_kept(capsys, tmp_path):
    out = tmp_path / "figures.json"
    assert asynchrony.main(["--seeds", "0", "--set", *FAST, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert all(words in text for words in ("lock-step ", "overlapped", "x as fast"))
    runs = json.loads(out.read_text())["runs"]
    assert [run["arm"] for run in runs] == ["lock-step", "ahead"]
    assert all(run["seconds"] > 0 and 0 < run["win"] < 1 for run in runs)
    assert asynchrony.main(["--read", str(out)]) == 0
    assert capsys.readouterr().out.splitlines() == text.splitlines()[-4:]


def test_the_bound_is_that_of_a_pipeline_of_two_halves():
    assert asynchrony.overlapped({"gather": [1, 1, 1], "learn": [1, 1, 1]}) == pytest.approx(6 / 4)
    assert asynchrony.overlapped({"gather": [1, 1], "learn": [9, 9]}) == pytest.approx(20 / 19)


def test_settings_reach_fields_in_tables():
    arguments = ["--gpus", "3", "--servers", "6", "--set", "rollout.games=7", 'evaluation.opponents=["minimax"]']
    arguments += ['cluster.kind="ray"']
    parsed = asynchrony.read_arguments(arguments)
    config = asynchrony.configured(parsed, "separate", 5, Path("runs/x"))
    assert (config.rollout.games, config.rollout.samples_at_start, config.seed) == (7, 32, 5)
    assert config.evaluation.opponents == ("minimax",)
    assert (config.cluster.gpus, config.cluster.placement, config.cluster.servers) == (3, "separate", 6)
    assert config.staleness == 1


@pytest.mark.slow
def test_rollouts_get_a_line_for_each_number_of_servers(capsys):
    few = ["--rollouts", "1", "2", "--games", "8", "--repeats", "1", "--workers", "1"]
    assert asynchrony.main([*few, "--set", 'model.options={"speed": 50}']) == 0
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split()[0] for line in lines] == ["1", "2"]
    assert "efficiency 1.00" in lines[0]
