"""FrozenLake in words: facts are the map's, retold walks say where they slid, scores are what the game is about."""

from __future__ import annotations

from itertools import pairwise

import pytest

from nlrl.agents.corpus.states import states_by_ply
from nlrl.agents.language import Line, Outlook, language_of, line_of, load_phrases
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks, strip_leaks
from nlrl.envs import make
from nlrl.envs.frozen_lake import FrozenLakeState
from nlrl.envs.oracle import oracle_for

FIRM, SLIPPERY = make("frozen_lake", slippery=False), make("frozen_lake")
MAP = FIRM.initial_states()[0].map
LANGUAGE, SLIDING = language_of(FIRM), language_of(SLIPPERY)
LEFT, DOWN, RIGHT, UP = range(4)


def at(row, column):
    return FrozenLakeState(MAP, 4 * (row - 1) + column - 1)


def walked(*cells_and_actions):
    """A line from cells and the actions between them: cell, action, cell, action, cell."""
    return Line(tuple(cells_and_actions[::2]), tuple(cells_and_actions[1::2]))


class Nth:
    """Always the n-th phrasing, around."""

    def __init__(self, n):
        self._n = n

    def choice(self, items):
        return items[self._n % len(items)]


EVERY = [Nth(n) for n in range(4)]
STATES = [state for layer in states_by_ply(FIRM.spec).values() for state in layer]


# -- facts -------------------------------------------------------------------------------------------------------------
def test_facts_say_where_the_player_is_how_far_the_goal_and_what_lies_around():
    facts = "The player is in row 1, column 2, the goal 3 down and 2 right; left ice, down hole, right ice, up edge."
    assert LANGUAGE.facts(at(1, 2)) == facts
    assert SLIDING.facts(at(1, 2)) == facts


def test_facts_of_a_move_on_firm_ice_are_those_of_where_it_leads():
    after = (
        "Then the player is in row 1, column 3, the goal 3 down and 1 right; left ice, down ice, right ice, up edge."
    )
    assert LANGUAGE.facts_after(at(1, 2), RIGHT) == after
    assert LANGUAGE.facts_after(at(1, 2), DOWN) == "That falls into a hole."
    assert LANGUAGE.facts_after(at(4, 3), RIGHT) == "That reaches the goal."
    assert LANGUAGE.facts_after(at(1, 2), UP).startswith("The edge is there: the player stays in row 1, column 2,")


def test_facts_of_a_move_on_slippery_ice_are_those_of_every_way_it_may_take():
    facts = "The player may slide right to ice, down to a hole or up to the edge; the goal is 3 down and 2 right."
    assert SLIDING.facts_after(at(1, 2), RIGHT) == facts


@pytest.mark.parametrize("pick", EVERY)
@pytest.mark.parametrize("game", [FIRM, SLIPPERY], ids=["firm", "slippery"])
def test_every_phrasing_of_the_facts_is_true_of_every_position(pick, game):
    language = language_of(game)
    for state in STATES:
        claims = check_claims(language.facts(state, pick), game, state)
        assert len(claims) == 6  # place, goal, four sides
        assert all(claim.true for claim in claims), claims
        assert all(claim.true for claim in check_claims(language.read(state, pick), game, state))
        for action in range(4):
            claims = check_claims(language.facts_after(state, action, pick), game, state, action)
            assert claims
            assert all(claim.true for claim in claims), (claims, language.facts_after(state, action, pick))


@pytest.mark.parametrize("pick", EVERY)
def test_facts_of_another_position_are_found_out(pick):
    for state, other in pairwise(STATES):
        assert not all(claim.true for claim in check_claims(LANGUAGE.facts(state, pick), FIRM, other))


def test_prose_of_other_writers_is_checked_too():
    def truth(text, action=None):
        return [claim.true for claim in check_claims(text, FIRM, at(3, 2), action)]

    assert truth("There is a hole above, and ice below.") == [True, True]
    assert truth("A hole lies to the left.") == [False]
    assert truth("The goal is at row 4, column 4 and I am in row 3, column 2.") == [True, True]
    assert truth("A hole is in row 2, column 2; another hole in row 2, column 3.") == [True, False]
    assert truth("Going up leads to a hole.", DOWN) == [True]
    assert truth("That falls into a hole.", UP) == [True]
    assert truth("That falls into a hole.", DOWN) == [False]
    assert truth("The goal is 1 down and 2 right.") == [True]
    assert truth("The goal is 2 right.") == [False]


# -- walks -------------------------------------------------------------------------------------------------------------
def test_walks_are_retold_with_what_was_wanted_and_where_it_slid():
    slid = walked(at(3, 2), DOWN, at(3, 1), RIGHT, at(3, 2), DOWN, at(4, 2))
    assert SLIDING.moves(slid) == "D>L R D"
    assert SLIDING.retell(slid) == "The player goes down but slips left, then right, then down."
    assert SLIDING.moves(walked(at(3, 2), UP, at(2, 2))) == "U, fell into a hole"
    assert SLIDING.moves(walked(at(4, 3), DOWN, at(4, 4))) == "D>R, reached the goal"
    assert SLIDING.retell(walked(at(4, 3), DOWN, at(4, 4))) == (
        "The player goes down but slips right and reaches the goal."
    )
    assert SLIDING.moves(walked(at(1, 1), UP, at(1, 1))) == "U"


def test_a_walk_of_a_deterministic_game_needs_no_states():
    line = line_of(FIRM, at(4, 2), [RIGHT, RIGHT])
    assert line.states == (at(4, 2), at(4, 3), at(4, 4))
    assert LANGUAGE.moves(line) == "R R, reached the goal"
    with pytest.raises(ValueError, match="chance"):
        line_of(SLIPPERY, at(4, 2), [RIGHT])


def test_how_a_whole_walk_ended():
    line = line_of(FIRM, at(4, 2), [RIGHT])
    assert LANGUAGE.told(line) == "R, out of steps"
    assert LANGUAGE.told(line, forfeited=True) == "R, player forfeits"
    assert LANGUAGE.told(line_of(FIRM, at(4, 2), [LEFT])) == "L, fell into a hole"


@pytest.mark.parametrize("pick", EVERY)
def test_the_content_of_what_is_said_does_not_depend_on_its_phrasing(pick):
    slid = walked(at(3, 2), DOWN, at(3, 1), RIGHT, at(3, 2), UP, at(2, 2))
    assert SLIDING.content(SLIDING.retell(slid, pick)) == SLIDING.content(SLIDING.retell(slid))
    other = walked(at(3, 2), DOWN, at(4, 2), RIGHT, at(4, 3), UP, at(3, 3))
    assert SLIDING.content(SLIDING.retell(slid, pick)) != SLIDING.content(SLIDING.retell(other))
    assert LANGUAGE.content(LANGUAGE.read(at(3, 2), pick)) == LANGUAGE.content(LANGUAGE.read(at(3, 2)))
    assert LANGUAGE.content(LANGUAGE.read(at(3, 2), pick)) != LANGUAGE.content(LANGUAGE.read(at(3, 3)))


def test_games_that_arrived_are_counted_and_the_count_is_evidence():
    text = LANGUAGE.summary([1.0, -1.0, -1.0], "player")
    assert text == "Of 3 games 1 reached the goal and 2 did not."
    for pick in EVERY:
        forecast = LANGUAGE.forecast("player", Outlook(-0.33), pick)
        told = f"{LANGUAGE.summary([1.0, -1.0, -1.0], 'player', pick)} {forecast}\nfinal_evaluation: -0.33"
        assert find_leaks(told)
        assert strip_leaks(told) == f"{forecast}\nfinal_evaluation: -0.33"


# -- scores ------------------------------------------------------------------------------------------------------------
def test_the_goal_scores_one_and_everything_else_minus_one():
    assert LANGUAGE.score(line_of(FIRM, at(4, 2), [RIGHT, RIGHT])) == 1
    assert LANGUAGE.score(line_of(FIRM, at(4, 2), [LEFT])) == -1
    assert LANGUAGE.score(line_of(FIRM, at(4, 2), [RIGHT])) == -1
    assert LANGUAGE.score(line_of(FIRM, at(4, 2), [RIGHT]), forfeited=True) == -1
    assert LANGUAGE.verdict_of_value(1.0, at(4, 2)) == 1
    assert LANGUAGE.verdict_of_value(0.75, at(4, 2)) == 0.5
    assert LANGUAGE.verdict_of_value(0.0, at(4, 4)) == 1


def expected_score(game, language, state, steps=0):
    """Of uniformly random play, by the definition: averages of `score_at` over every walk."""
    if game.is_terminal(state) or steps == game.max_length:
        return language.score_at(state, steps)
    ways = [step for action in range(4) for step in game.transitions(state, action)]
    return sum(step.probability / 4 * expected_score(game, language, step.state, steps + 1) for step in ways)


def test_exact_values_are_expected_scores_on_the_scale_of_verdicts():
    game = make("frozen_lake", max_steps=4)
    language, uniform = language_of(game), {state: dict.fromkeys(range(4), 0.25) for state in STATES}
    values = oracle_for(game).policy_value(uniform)
    for state in (at(1, 1), at(3, 3), at(4, 3)):
        verdict = language.verdict_of_value(values.value(state), state)
        assert verdict == pytest.approx(expected_score(game, language, state))


# -- prompts' words ----------------------------------------------------------------------------------------------------
def test_one_player_has_no_opponent_and_the_setting_tells_the_ice():
    assert (LANGUAGE.player(at(1, 1)), LANGUAGE.opponent(at(1, 1))) == ("player", "")
    assert (LANGUAGE.setting, SLIDING.setting) == ("firm ice", "slippery ice")
    assert LANGUAGE.legal(at(1, 1)) == "left down right up"


def test_no_band_s_words_are_part_of_another_s():
    words = [word for band_words in load_phrases("frozen_lake")["bands"].values() for word in band_words]
    assert len(set(words)) == len(words)
    assert not any(a in b for a in words for b in words if a != b)


def test_two_goals_are_both_named_and_the_nearest_is_the_way():
    game = make("frozen_lake", layout="GFFS/FFFG", slippery=False)
    language, start = language_of(game), game.initial_states()[0]
    assert "the goal 1 down" in language.facts(start)
    assert "row 1, column 1 and row 2, column 4" in language.read(start)
    assert all(claim.true for claim in check_claims(language.facts(start), game, start))
