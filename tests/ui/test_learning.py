from __future__ import annotations

import pytest

from nlrl.testing import write_run
from nlrl.ui import learning
from nlrl.ui.learning import Point

from .shelf import METRICS, config


def entries(*numbers):
    return [{"step": step, "metrics": found} for step, found in enumerate(numbers)]


def test_the_optimum_against_a_random_player_is_the_known_one():
    """`python benchmarks/tictactoe_references.py` walks the game by itself: at best 0.9667."""
    assert learning.optimum("tictactoe", "random") == pytest.approx(0.9667, abs=5e-5)
    assert learning.optimum("tictactoe", "minimax") == 0.0
    assert learning.optimum("tictactoe", "first-move") == 1.0


def test_what_cannot_be_known_is_no_optimum():
    assert learning.optimum("tictactoe", "agent(somewhere)") is None
    assert learning.optimum("breakthrough(rows=5,columns=5)", "random") is None
    assert learning.optimum("maze(layout=umaze)", "none") is None
    assert learning.optimum("no such game", "random") is None


def test_optima_are_of_the_game_that_the_config_names(tmp_path):
    run = write_run(tmp_path / "run", config=config())
    assert list(learning.optima(run, ["random", "nobody"])) == ["random"]
    assert learning.optima(write_run(tmp_path / "other"), ["random"]) == {}
    assert learning.optima(write_run(tmp_path / "odd", config='game = "x"\n'), ["random"]) == {}


def test_points_take_the_interval_beside_them():
    metrics = entries(*METRICS)
    assert learning.ratings(metrics)[:2] == [Point(0, "agent", 44.0, 0.0, 120.0), Point(1, "agent", 74.0, 0.0, 120.0)]
    assert learning.exploitability(metrics)[1] == Point(1, "exploitability", 0.26, 0.26, 0.26)
    assert learning.verdict_errors(metrics)[0].curve == "brier against policy"


def test_numbers_that_are_none_are_no_points():
    assert learning.points(entries({"a": None, "b": True, "c": "x"}), {"[abc]": "curve"}) == []


def test_a_league_of_many_is_drawn_without_its_checkpoints():
    names = ["random", "minimax", *(f"checkpoint({n})" for n in range(7))]
    metrics = entries({f"league/ratings/{name}/rating": 1.0 for name in names})
    assert {point.curve for point in learning.ratings(metrics)} == {"random", "minimax"}


def test_opponents_that_never_saw_a_forfeit_are_left_out():
    share = "evaluation/sampled/greedy/{}/forfeit/share"
    metrics = entries(
        {share.format("a"): 0.0, share.format("b"): 0.0}, {share.format("a"): 0.0, share.format("b"): 0.5}
    )
    assert [point.curve for point in learning.failures(metrics)] == ["forfeits, greedy against b"] * 2


def test_costs_are_seconds_of_metrics_and_budgets_of_manifests(tmp_path):
    from nlrl.orchestration.run_folder import RunFolder

    run = write_run(tmp_path / "run", metrics=METRICS)
    RunFolder(run).stage(1, "rollout").commit({"budget": {"prompt_tokens": 7, "trained_tokens": 0}})
    (RunFolder(run).stage(2, "rollout").dir).mkdir(parents=True)
    (RunFolder(run).stage(2, "rollout").dir / "manifest.json").write_text("torn")
    spent = learning.spent(run, entries(*METRICS))
    assert learning.Spent(1, "rollout", "prompt tokens", 7.0) in spent
    assert [row.unit for row in spent] == ["seconds", "seconds", "prompt tokens"]


def test_reliability_is_read_from_evaluations(tmp_path):
    from nlrl.orchestration.run_folder import RunFolder

    bars = [{"low": 0.0, "high": 0.1, "count": 3, "probability": 0.05, "outcome": 0.0}, {"count": 0}]
    run = write_run(tmp_path / "run")
    RunFolder(run).stage(1, "evaluation").commit({"texts": {"reliability": bars}})
    RunFolder(run).stage(2, "evaluation").commit({"texts": None})
    assert learning.reliability(run) == {1: bars[:1]}
