from __future__ import annotations

import pytest

from nlrl.agents.metrics.calibration import brier
from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.testing import write_run
from nlrl.ui.calibration import calibration

from .shelf import AFTER, CHOICES, START, config

GAME = make("tictactoe")


def write(folder, policy=()):
    return write_run(folder, config=config(), records={"001/improvement": CHOICES, "001/policy": list(policy)})


def everywhere(actions):
    """A policy table of every position: the first legal move of `actions`."""
    states, seen = list(GAME.initial_states()), set()
    while states:
        state = states.pop()
        if state in seen or GAME.is_terminal(state):
            continue
        seen.add(state)
        legal = GAME.legal_actions(state)
        moves = {str(next(a for a in actions if a in legal)): 1}
        yield {"kind": "policy", "state": GAME.to_text(state), "moves": moves}
        states += [GAME.apply(state, action).state for action in legal]


def test_without_a_table_verdicts_are_compared_with_best_play(tmp_path):
    found = calibration(write(tmp_path / "run"), 1)
    assert found.against == "optimal"
    assert [(one.ply, one.verdict, one.exact) for one in found.judged] == [(0, 0.5, 0.0), (1, -0.25, 0.0)]
    assert oracle_for(GAME).q_values(GAME.parse_text(START))[4] == 0.0


def test_with_a_table_they_are_compared_with_the_policy_that_is_judged(tmp_path):
    records = list(everywhere(range(9)))
    found = calibration(write(tmp_path / "run", records), 1)
    assert found.against == "policy"
    policy = {GAME.parse_text(r["state"]): {int(action): 1.0 for action in r["moves"]} for r in records}
    for seat, (one, state, action) in enumerate(zip(found.judged, (START, AFTER), (4, 0), strict=True)):
        values = oracle_for(GAME).policy_value(policy, make_opponent("random", GAME), seat)
        assert one.exact == pytest.approx(values.q_values(GAME.parse_text(state))[action])


def test_a_table_of_some_positions_judges_the_moves_from_which_it_knows_everything(tmp_path):
    known = [record for record in everywhere(range(9)) if record["state"].count("X") >= 1]
    found = calibration(write(tmp_path / "run", known), 1)
    assert found.against == "policy"
    assert len(found.judged) == 2
    gone = [record for record in known if record["state"].count("X") > 1]
    assert calibration(write(tmp_path / "other", gone), 1).against == "optimal"


def test_brier_scores_are_those_of_the_verdicts_by_phase(tmp_path):
    found = calibration(write(tmp_path / "run"), 1)
    assert [(score.phase, score.verdicts) for score in found.phases] == [("opening", 1), ("middle", 1)]
    assert found.phases[0].brier == pytest.approx(brier([0.75], [0.5]))
    assert found.phases[0].mae == 0.5
    assert sum(bar["count"] for bar in found.bars) == 2


def test_where_there_is_nothing_to_compare_there_is_no_calibration(tmp_path):
    run = write_run(tmp_path / "run", config=config(), records={"002/improvement": [{"kind": "improvement"}]})
    assert calibration(run, 1) is None
    assert calibration(run, 2) is None
    assert calibration(write_run(tmp_path / "no game", records={"001/improvement": CHOICES}), 1) is None
    assert AFTER != START
