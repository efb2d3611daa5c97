"""Asking: one batch, retries for what cannot be read, and no answer made up."""

from __future__ import annotations

import re

import pytest

from nlrl.agents.asking import RETRY_TEMPERATURE, ask
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import LanguageModelError, Sampling
from nlrl.envs import make

GAME = make("tictactoe")
START = GAME.initial_states()[0]
STATES = [GAME.apply(START, action).state for action in range(9)]
POLICY = Roles(GAME).policy
FREE = "best_move: 9"  # legal in all but the last of STATES


def inputs(states=STATES):
    return [StateInput(state) for state in states]


def test_replies_come_in_the_order_of_the_inputs_from_one_batch(scripted_model):
    batches = []

    class Batches(scripted_model):
        def generate(self, requests):
            batches.append(len(requests))
            return super().generate(requests)

    free = re.compile(r"free: (\d) (\d)")
    model = Batches(lambda request: f"best_move: {free.search(request.messages[-1].content)[2]}")
    replies = ask(model, POLICY, inputs(), Sampling(), retries=0)
    assert [reply.output.action for reply in replies] == [2, 2] + [1] * 7
    assert batches == [9]


def test_each_input_has_its_own_seed_or_all_the_same(scripted_model):
    model = scripted_model({"": "best_move: 1"})
    ask(model, POLICY, inputs(STATES[1:4]), Sampling(), [5, 6, 7])
    ask(model, POLICY, inputs(STATES[1:4]), Sampling(), 8)
    assert [request.seed for request in model.requests] == [5, 6, 7, 8, 8, 8]
    with pytest.raises(ValueError, match="zip"):
        ask(model, POLICY, inputs(), Sampling(), [1, 2])


def test_only_what_failed_is_asked_again_with_another_seed_and_some_temperature(scripted_model):
    model = scripted_model([FREE] * 8 + ["best_move: 9", "best_move: 1"])
    replies = ask(model, POLICY, inputs(), Sampling(temperature=0.0), 3, retries=1)
    assert [reply.failed for reply in replies] == [False] * 9
    assert [failure.reason for failure in replies[8].failures] == ["illegal"]
    assert all(reply.failures == () for reply in replies[:8])
    assert len(model.requests) == 10
    first, again = model.requests[8:]
    assert again.messages == first.messages
    assert again.seed != first.seed
    assert (first.sampling.temperature, again.sampling.temperature) == (0.0, RETRY_TEMPERATURE)


def test_retries_keep_a_higher_temperature_and_never_repeat_a_seed(scripted_model):
    model = scripted_model({"": "I pass."})
    (reply,) = ask(model, POLICY, inputs(STATES[:1]), Sampling(temperature=1.2, max_tokens=9), 3, retries=3)
    assert {request.sampling for request in model.requests} == {Sampling(temperature=1.2, max_tokens=9)}
    assert len({request.seed for request in model.requests}) == len(model.requests) == 4
    assert reply.failed
    assert [failure.reason for failure in reply.failures] == ["missing"] * 4


def test_retries_of_one_question_are_the_same_every_time(scripted_model):
    first, second = scripted_model({"": "I pass."}), scripted_model({"": "I pass."})
    for model in (first, second):
        ask(model, POLICY, inputs(STATES[:2]), Sampling(), [1, 2], retries=2)
    assert first.requests == second.requests


def test_a_question_that_is_never_answered_has_no_output_and_its_last_words(scripted_model):
    model = scripted_model(["best_move: 1", "best_move: 2 or 3"])
    (reply,) = ask(model, POLICY, inputs(STATES[:1]), Sampling())
    assert reply.output is None
    assert reply.completion.text == "best_move: 2 or 3"
    assert [failure.reason for failure in reply.failures] == ["illegal", "ambiguous"]


def test_no_retries_are_made_when_none_are_wanted_or_needed(scripted_model):
    model = scripted_model({"": "I pass."})
    assert ask(model, POLICY, inputs(STATES[:1]), Sampling(), retries=0)[0].failed
    assert len(model.requests) == 1
    assert ask(model, POLICY, [], Sampling()) == []


def test_a_model_that_is_down_is_an_error_and_no_answer(faulty_model):
    with pytest.raises(LanguageModelError, match="scripted failure"):
        ask(faulty_model({"": FREE}, {0: "failing"}), POLICY, inputs(), Sampling())
