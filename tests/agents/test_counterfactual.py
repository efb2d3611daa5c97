"""An I that reads evaluations follows them; one with its own opinion, or with an eye for the order, is found out."""

from __future__ import annotations

import pytest

from nlrl.agents.metrics.counterfactual import choose_all, make_swap, score_swaps
from nlrl.agents.roles import CandidatesInput, Evaluation
from nlrl.envs import make
from nlrl.envs.random import Rng

GAME = make("tictactoe")
START = GAME.initial_states()[0]


def offer(*verdicts: float) -> CandidatesInput:
    evaluations = [Evaluation(f"I put O at {verdict:+.2f}.", verdict) for verdict in verdicts]
    return CandidatesInput(START, tuple(enumerate(evaluations)))


def swaps(count: int = 40):
    rng = Rng("swaps")
    offers = [offer(*(round(rng.random() * 2 - 1, 2) for _ in range(4))) for _ in range(count)]
    return [swap for swap in (make_swap(one, rng) for one in offers) if swap]


def scored(choose):
    made = swaps()
    return score_swaps(made, choose_all(made, lambda inputs: [choose(inp) for inp in inputs]))


def best(inp):
    return max(inp.candidates, key=lambda candidate: candidate[1].verdict)[0]


def test_an_i_that_reads_evaluations_follows_them_and_ignores_the_order():
    scores = scored(best)
    assert scores.prompts == scores.first_best == scores.follows == scores.unmoved > 20
    assert (scores.stays, scores.elsewhere, scores.unread) == (0, 0, 0)


def test_an_i_with_an_opinion_of_its_own_stays():
    scores = scored(lambda inp: min(action for action, _ in inp.candidates))
    assert 0 < scores.first_best < scores.prompts
    assert scores.follows == 0
    assert scores.stays == scores.unmoved == scores.first_best


def test_an_i_that_takes_the_first_listed_moves_with_the_order():
    scores = scored(lambda inp: inp.candidates[0][0])
    assert scores.follows == 0
    assert scores.unmoved < scores.first_best


def test_answers_that_cannot_be_read_follow_nothing():
    made = swaps()
    answers = choose_all(made, lambda inputs: [best(i) if n % 3 == 0 else None for n, i in enumerate(inputs)])
    scores = score_swaps(made, answers)
    assert (scores.follows, scores.unread, scores.unmoved) == (0, scores.first_best, 0)


def test_the_swap_exchanges_two_evaluations_and_nothing_else():
    given = offer(0.1, 0.9, -0.4, 0.85)
    swap = make_swap(given, Rng(1))
    assert (swap.best, swap.given) == (1, given)
    assert swap.other in (0, 2)  # 0.85 is too near
    before, after = dict(given.candidates), dict(swap.swapped.candidates)
    assert (after[swap.best], after[swap.other]) == (before[swap.other], before[swap.best])
    assert [action for action, _ in swap.swapped.candidates] == [0, 1, 2, 3]
    assert all(after[action] == before[action] for action in {0, 1, 2, 3} - {swap.best, swap.other})
    assert dict(swap.reordered.candidates) == before
    assert swap.reordered.candidates != given.candidates


@pytest.mark.parametrize("verdicts", [(0.5,), (0.5, 0.5), (0.5, 0.5, -1.0), (0.5, 0.45)])
def test_prompts_that_could_say_nothing_are_left_out(verdicts):
    assert make_swap(offer(*verdicts), Rng(1)) is None
