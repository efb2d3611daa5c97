"""Games played on with fewer moves than the longest has: what is played, what is told, what it is worth."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from nlrl.envs import make
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import RunConfig, validated
from nlrl.orchestration.exact import action_values
from nlrl.orchestration.loop import run
from nlrl.orchestration.players import NONE, Play, move_or_forfeit
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.stages.policy_table import read_table, run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import run_targets
from nlrl.orchestration.worker import ContinuationTask, ContinueJob, horizon

FIRM = "frozen_lake(layout=random,maps=12,slippery=False)"
MODEL = {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": FIRM}}
LEFT, DOWN, RIGHT = 0, 1, 2


def on_firm_ice(horizon, **changes):
    return {
        "game": {"name": "frozen_lake", "params": {"layout": "random", "maps": 12, "slippery": False}},
        "model": MODEL,
        "rollout": {"games": 120, "samples_per_state": 4, "samples_at_start": 4},
        "targets": {"horizon": horizon, "texts_max": 4},
        "evaluation": {"opponents": ["none"], "probes": [], "games": 0},
    } | changes


LAKE = "SFF/FHF/FFG"
WAY = {0: RIGHT, 1: RIGHT, 2: DOWN, 5: DOWN}
"""From the start to the goal, by cell: four moves."""


def lake(moves=10):
    return make("frozen_lake", layout=LAKE, slippery=False, max_steps=moves)


def table_of(game, back=0.0) -> dict[Any, dict[int | None, float]]:
    """The way, but on the first two cells with probability `back` to the left."""
    (start,) = game.initial_states()
    return {
        type(start)(start.map, cell): {move: 1 - back, LEFT: back} if cell < 2 else {move: 1.0}
        for cell, move in WAY.items()
    }


def pairs_of(table) -> list[tuple[Any, Any]]:
    return [(state, action) for state, moves in table.items() for action in moves]


# -- how many moves ----------------------------------------------------------------------------------------------------
def test_every_length_is_as_likely_and_few_games_have_many_lengths():
    counts = Counter(horizon(10, seed, 0) for seed in range(20_000))
    assert set(counts) == set(range(1, 11))
    assert all(abs(count - 2000) < 5 * math.sqrt(2000) for count in counts.values())
    for seed in range(50):
        eight = [horizon(10, seed, index) for index in range(8)]
        assert max(Counter(eight).values()) <= 2
        assert abs(sum(eight) / 8 - 5.5) < 1.2  # of independent ones a quarter is further off
        assert eight == [horizon(10, seed, index) for index in range(8)]


def test_a_play_is_cut_after_its_horizon():
    game, state = lake(), lake().initial_states()[0]
    for moves in (1, 3, None):
        one = Play(state, 0, NONE, Rng("cut", 0), horizon=moves)
        while not one.is_over(game):
            assert not one.is_cut(game)
            move_or_forfeit(game, one, LEFT)
        assert len(one.actions) == (moves or 10)
        assert one.is_cut(game)
        assert one.result(game) == "cut"
    given_up = Play(state, 0, NONE, Rng("cut", 1), horizon=3)
    move_or_forfeit(game, given_up, None)
    assert given_up.is_over(game)
    assert not given_up.is_cut(game)


# -- what it is worth --------------------------------------------------------------------------------------------------
def test_the_exact_value_is_the_mean_over_games_of_all_lengths():
    each = []
    for moves in range(1, 11):
        table = table_of(lake(moves), back=0.5)
        each.append(action_values(lake(moves), table, [], pairs_of(table)).values())
    expected = [sum(values) / 10 for values in zip(*each, strict=True)]
    table = table_of(lake(), back=0.5)
    found = action_values(lake(), table, [], pairs_of(table), "uniform")
    assert list(found.values()) == pytest.approx(expected)


def test_a_detour_costs_something_though_there_are_moves_enough():
    game = lake()
    table = table_of(game)
    start = next(iter(table))
    pairs = [(start, LEFT), (start, RIGHT)]
    assert set(action_values(game, table, [], pairs).values()) == {1.0}
    uniform = action_values(game, table, [], pairs, "uniform")
    assert uniform[start, RIGHT] == pytest.approx(2 * 0.7 - 1)  # four moves: seven of ten lengths suffice
    assert uniform[start, LEFT] == pytest.approx(2 * 0.6 - 1)


# -- in runs -----------------------------------------------------------------------------------------------------------
def test_targets_tell_of_cut_walks_and_their_verdicts_are_near_the_exact_values(session):
    targets = {"horizon": "uniform", "continuations": 9, "texts_min": 8, "texts_max": 8}
    one = session(**on_firm_ice("uniform", targets=targets, evaluation={"value_states": 0, "probes": []}))
    for stage in (run_rollout, run_targets, run_policy_table):
        stage(one, 1)
    found, game = list(one.folder.stage(1, "targets").records()), one.game
    told = [sample for record in found for sample in record["samples"]]
    cut = [sample for sample in told if sample.endswith("out of steps")]
    assert {len(sample.split(",")[0].split()) for sample in cut} == set(range(1, 11))
    assert not any("forfeits" in sample for sample in told)
    table, verdicts = read_table(one, 1), dict[tuple[Any, int], list[float]]()
    for record in found:
        state, action = game.parse_text(record["state"]), record["action"]
        verdicts.setdefault((state, action), []).append(record["verdict"])
    exact, full = (action_values(game, table, [], list(verdicts), kind) for kind in ("uniform", "full"))
    means = {pair: sum(values) / len(values) for pair, values in verdicts.items()}

    def error(truth):
        return sum(abs(means[pair] - truth[pair]) for pair in means) / len(means)

    assert error(exact) < 0.06
    assert error(full) > 2 * error(exact)


def test_who_learns_from_walks_of_all_lengths_makes_fewer_detours(small_config, tmp_path):
    returns = {}
    for kind in ("full", "uniform"):
        config = small_config(tmp_path / kind, **on_firm_ice(kind, iterations=4))
        folder = RunFolder(run(config).path)
        metrics = folder.stage(4, "evaluation").load()["metrics"]
        returns[kind] = metrics["exact"]["against"]["none"]["return"]
    assert returns["uniform"] > returns["full"] + 0.1


def test_cut_games_of_a_job_have_the_lengths_that_their_numbers_say(session):
    one = session(**on_firm_ice("full"))
    tasks = [ContinuationTask(start, 0, LEFT, 8, seed=3) for start in one.game.initial_states()]
    job = ContinueJob("base", 1.0, ("none",), tasks, horizon="uniform")
    groups = one.workers[0].call("continue_games", job).result()
    cut = [(index, sample) for group in groups for index, sample in enumerate(group) if sample.is_cut]
    assert len(cut) > 10
    assert [len(sample.actions) for _, sample in cut] == [horizon(10, 3, index) for index, _ in cut]


def test_games_of_two_have_all_their_moves():
    with pytest.raises(NLRLError, match=r"targets.horizon is 'uniform': only games for one player; leave it 'full'"):
        check(validated(RunConfig, {"targets": {"horizon": "uniform"}}, "config"))


@pytest.mark.parametrize("targets", [{"kind": "td"}, {"value": "v"}])
def test_only_games_played_to_their_ends_have_a_horizon(targets):
    with pytest.raises(NLRLError, match="horizon uniform needs games played to their ends"):
        validated(RunConfig, on_firm_ice("uniform") | {"targets": {"horizon": "uniform"} | targets}, "config")
