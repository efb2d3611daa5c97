from __future__ import annotations

import pytest

from nlrl.testing import write_run
from nlrl.ui.games_index import sources_of
from nlrl.ui.value_errors import value_errors

from .shelf import config, played, turn


def errors(folder, *records):
    run = write_run(folder / "run", config=config(), records={"001/rollout": records})
    return {error.key: error.value_error for error in value_errors(sources_of("run", run))}


def test_the_error_is_the_mean_distance_of_what_the_player_says_from_best_play(tmp_path):
    turns = [turn(0, "I prefer 5 at +0.40.\nbest_move: 5"), turn(2, "I put O at -0.60.\nbest_move: 1")]
    found = errors(tmp_path, played("k", [4, 1, 0], "win", turns=turns))  # after 5 and 2 O wins: +1
    assert found == {"k": pytest.approx((0.4 + 1.6) / 2)}


def test_games_that_state_no_value_or_cannot_be_replayed_have_none(tmp_path):
    silent = played("a", [4], "win", turns=[turn(0, "best_move: 5")])
    illegal = played("b", [4, 4], "win", turns=[turn(0, "I prefer 5 at +0.40.")])
    unknown = played("c", [4], "win", turns=[turn(0, "I prefer 5 at +0.40.")]) | {"game": "chess"}
    fine = played("d", [4], "win", turns=[turn(0, "I prefer 5 at +0.25.")])
    assert errors(tmp_path, silent, illegal, unknown, fine) == {"d": 0.25}


def test_a_forfeit_counts_with_what_it_said(tmp_path):
    assert errors(tmp_path, played("k", [], "forfeit", turns=[turn(0, "I put O at +0.50.")])) == {"k": 0.5}
