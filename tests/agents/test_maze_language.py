"""Mazes in words: facts without a map or a search, walks told by their runs, scores by the logarithm of steps."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from nlrl.agents.language import NO_MOVE, Outlook, language_of, line_of, load_phrases
from nlrl.agents.maze_language import MOST_RUNS
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks, strip_leaks
from nlrl.envs import make
from nlrl.envs.maze import MazeState
from nlrl.envs.oracle import oracle_for

GAME = make("maze")
PARTIAL = make("maze", observed="partial")
LANGUAGE = language_of(GAME)
LEFT, RIGHT, UP, DOWN = range(4)
CORRIDOR = MazeState(5, 4)
STATES = GAME.initial_states()


class Nth:
    """Always the n-th phrasing, around."""

    def __init__(self, n):
        self._n = n

    def choice(self, items):
        return items[self._n % len(items)]


EVERY = [Nth(n) for n in range(4)]


def walk(letters, state=CORRIDOR):
    """`RRD?`: moves by their letters, `?` for a reply that named none."""
    return line_of(GAME, state, [NO_MOVE if letter == "?" else "LRUD".index(letter) for letter in letters])


# -- facts -------------------------------------------------------------------------------------------------------------
def test_a_prompt_shows_places_and_walls_and_no_map():
    board = "goal: row 8, column 6\nyou: row 5, column 4\nwalls: up, down"
    assert LANGUAGE.board(CORRIDOR) == board
    assert language_of(PARTIAL).board(CORRIDOR) == "walls: up, down"


def test_facts_say_how_far_the_goal_lies_and_which_ways_are_open():
    assert LANGUAGE.facts(CORRIDOR) == "The goal is 3 down and 2 right; open: left and right."
    assert (
        LANGUAGE.facts_after(CORRIDOR, RIGHT) == "Then the walker is in row 5, column 5, the goal 3 down and 1 right."
    )
    assert LANGUAGE.facts_after(CORRIDOR, UP) == (
        "A wall is there: the walker stays in row 5, column 4, the goal 3 down and 2 right."
    )
    assert LANGUAGE.facts_after(MazeState(7, 6), DOWN) == "That reaches the goal."


def test_facts_of_a_walker_who_is_not_told_its_place_do_not_tell_it():
    language = language_of(PARTIAL)
    for pick in EVERY:
        for text in (language.facts(CORRIDOR, pick), language.read(CORRIDOR, pick)):
            assert not any(character.isdigit() for character in text)
        assert not any(character.isdigit() for character in language.facts_after(CORRIDOR, RIGHT, pick))


@pytest.mark.parametrize("pick", EVERY)
def test_every_phrasing_of_the_facts_is_true_of_every_position(pick):
    for state in STATES:
        for text in (LANGUAGE.facts(state, pick), LANGUAGE.read(state, pick)):
            claims = check_claims(text, GAME, state)
            assert len(claims) >= 2
            assert all(claim.true for claim in claims), claims
        for action in range(4):
            claims = check_claims(LANGUAGE.facts_after(state, action, pick), GAME, state, action)
            assert claims
            assert all(claim.true for claim in claims), claims


@pytest.mark.parametrize("pick", EVERY)
def test_facts_of_another_position_are_found_out(pick):
    for state, other in pairwise(STATES):
        assert not all(claim.true for claim in check_claims(LANGUAGE.facts(state, pick), GAME, other))


def test_prose_of_other_writers_is_checked_too():
    def truth(text, action=None):
        return [claim.true for claim in check_claims(text, GAME, CORRIDOR, action)]

    assert truth("There is a wall above, and walls below.") == [True, True]
    assert truth("A wall is on the left. The way right is open.") == [False, True]
    assert truth("The goal is 5 steps away.") == [True]
    assert truth("The shortest way to the goal has 6 steps.") == [False]
    assert truth("The goal is in row 8, column 6, I am in row 5, column 5.") == [True, False]
    assert truth("Walls: up, down; open: left.") == [True, False]
    assert truth("That runs into a wall.", UP) == [True]
    assert truth("That runs into a wall.", RIGHT) == [False]
    assert truth("I prefer move left at +0.10.\nbest_move: move left") == [True, True]


# -- walks -------------------------------------------------------------------------------------------------------------
def test_walks_are_told_by_their_runs_with_their_score_at_the_end():
    assert LANGUAGE.moves(walk("RR")) == "R2"
    assert LANGUAGE.moves(walk("RRUDDD")) == "R2 x1 D3, there in 6 steps, +0.16"
    assert LANGUAGE.moves(walk("R?L")) == "R1 n1 L1"
    assert LANGUAGE.moves(walk("D", MazeState(7, 6))) == "D1, there in 1 step, +0.70"
    assert LANGUAGE.told(walk("UU")) == "x2, not there in 2 steps, -1.00"
    assert LANGUAGE.told(walk("RL"), forfeited=True) == "R1 L1, walker forfeits, -1.00"


def test_of_long_walks_the_later_steps_are_counted():
    told = LANGUAGE.moves(walk("RL" * 20))
    assert told.startswith("R1 L1 R1 L1")
    assert told.endswith(f" and {40 - MOST_RUNS} more")
    assert len(told.split()) == MOST_RUNS + 3


@pytest.mark.parametrize("pick", EVERY)
def test_the_content_of_what_is_said_does_not_depend_on_its_phrasing(pick):
    line, other = walk("RRUDDD"), walk("RRDDD")
    assert LANGUAGE.content(LANGUAGE.retell(line, pick)) == LANGUAGE.content(LANGUAGE.retell(line))
    assert LANGUAGE.content(LANGUAGE.retell(line, pick)) != LANGUAGE.content(LANGUAGE.retell(other, pick))
    assert LANGUAGE.content(LANGUAGE.retell(line, pick)) != LANGUAGE.content(LANGUAGE.retell(walk("RRUDD"), pick))
    assert LANGUAGE.content(LANGUAGE.read(CORRIDOR, pick)) == LANGUAGE.content(LANGUAGE.read(CORRIDOR))
    assert LANGUAGE.content(LANGUAGE.read(CORRIDOR, pick)) != LANGUAGE.content(LANGUAGE.read(MazeState(5, 5)))


def test_retold_steps_name_every_run():
    assert LANGUAGE.retell(walk("RRU")) == "In 3 steps the walker goes right 2 and against a wall 1."
    assert LANGUAGE.retell(walk("R")) == "In 1 step the walker goes right 1."
    assert LANGUAGE.retell(walk("RRDDD")) == "In 5 steps the walker goes right 2 and down 3 and is at the goal."


# -- scores ------------------------------------------------------------------------------------------------------------
def test_a_walk_scores_by_the_logarithm_of_its_steps():
    for steps in (0, 1, 3, 20, 99):
        assert LANGUAGE.score_at(MazeState(8, 6), steps) == pytest.approx(1 - 2 * math.log(1 + steps) / math.log(101))
        assert LANGUAGE.steps_of(LANGUAGE.score_of_steps(steps)) == pytest.approx(steps)
    assert LANGUAGE.score_at(CORRIDOR, 100) == -1
    assert LANGUAGE.score(walk("RRDDD"), forfeited=True) == -1
    assert LANGUAGE.steps_of(-1) == math.inf


def test_the_docstring_s_examples_are_right():
    said = {1: 0.70, 3: 0.40, 7: 0.10, 20: -0.32, 50: -0.70}
    assert {steps: round(LANGUAGE.score_of_steps(steps), 2) for steps in said} == said


def test_exact_values_of_best_play_are_scores_of_shortest_walks():
    oracle = oracle_for(GAME)
    for state in STATES:
        best = LANGUAGE.score_of_steps(oracle.distance(state))
        assert LANGUAGE.verdict_of_value(oracle.value(state), state) == pytest.approx(best)
        for action, value in oracle.q_values(state).items():
            steps = 1 + oracle.distance(GAME.apply(state, action).state)
            assert LANGUAGE.verdict_of_value(value, state) == pytest.approx(LANGUAGE.score_of_steps(steps))
    assert LANGUAGE.verdict_of_value(0.0, MazeState(8, 6)) == 1


def test_an_outlook_on_the_end_of_a_line_is_one_of_a_longer_walk():
    for steps in (1, 4, 30):
        outlook = Outlook(LANGUAGE.score_of_steps(steps))
        assert LANGUAGE.carry(walk("RR"), outlook).verdict == round(LANGUAGE.score_of_steps(steps + 2), 2)
    assert LANGUAGE.carry(walk("RR"), Outlook(-1.0)).verdict == -1
    assert LANGUAGE.carry(walk("RR"), Outlook(-0.99)).verdict == -1


def test_scores_are_summed_up_and_the_sum_is_evidence():
    scores = [-1.0, 0.22, 0.1]
    assert LANGUAGE.summary(scores, "walker") == "Of 3 games 2 arrived, scores from -1.00 to +0.22."
    for pick in EVERY:
        forecast = LANGUAGE.forecast("walker", Outlook(-0.23), pick)
        told = f"{LANGUAGE.summary(scores, 'walker', pick)} {forecast}\nfinal_evaluation: -0.23"
        assert find_leaks(told)
        assert strip_leaks(told) == f"{forecast}\nfinal_evaluation: -0.23"


def test_no_band_s_words_are_part_of_another_s():
    words = [word for band_words in load_phrases("maze")["bands"].values() for word in band_words]
    assert len(set(words)) == len(words)
    assert not any(a in b for a in words for b in words if a != b)
