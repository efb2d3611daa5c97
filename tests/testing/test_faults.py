from __future__ import annotations

import time

import pytest

from nlrl.agents.parser import ParseFailure, parse_evaluation, parse_move
from nlrl.backbones.language_model import LanguageModel, LanguageModelError, Message, Request
from nlrl.envs import make
from nlrl.testing import FaultyModel, ScriptedGame, ScriptedModel

MOVE = "The middle holds four lines.\nbest_move: 5"
VERDICT = "Neither side has a threat.\nfinal_evaluation: +0.50"


def ask(seed=0):
    return Request(messages=(Message("user", "to move: O"),), seed=seed)


def faulty(answer, fault, **options):
    return FaultyModel(ScriptedModel({"": answer}), {0: fault}, **options).generate([ask()])[0]


def move_failure(said):
    game = make("tictactoe")
    parsed = parse_move(said.text, game, game.initial_states()[0], said.finish_reason)
    return parsed.reason if isinstance(parsed, ParseFailure) else parsed


def verdict_failure(said):
    parsed = parse_evaluation(said.text, said.finish_reason)
    return parsed.reason if isinstance(parsed, ParseFailure) else parsed


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("illegal", "illegal"),
        ("ambiguous", "ambiguous"),
        ("truncated", "truncated"),
        ("empty", "empty"),
        ("error", "error"),
    ],
)
@pytest.mark.parametrize("answer", [MOVE, '{"why": "it holds four lines", "best_move": 5}', "best_move: 5."])
def test_a_move_fails_as_its_fault_says(answer, fault, reason):
    assert move_failure(faulty(answer, fault)) == reason


@pytest.mark.parametrize(
    ("fault", "reason"), [("illegal", "out_of_range"), ("ambiguous", "ambiguous"), ("truncated", "truncated")]
)
@pytest.mark.parametrize("answer", [VERDICT, VERDICT.replace("+0.50", "-1.00"), VERDICT.replace("+0.50", "+0.00")])
def test_a_verdict_fails_as_its_fault_says(answer, fault, reason):
    assert verdict_failure(faulty(answer, fault)) == reason


def test_only_the_numbered_requests_are_spoiled_whatever_the_batches():
    model = FaultyModel(ScriptedModel({"": MOVE}), {1: "empty", 3: "illegal"})
    said = model.generate([ask()]) + model.generate([ask(), ask()]) + model.generate([ask(), ask()])
    assert [move_failure(s) for s in said] == [4, "empty", 4, "illegal", 4]
    assert isinstance(model, LanguageModel)


def test_shares_are_met_and_depend_on_the_request_alone():
    requests = [ask(seed) for seed in range(1000)]

    def reasons(order):
        model = FaultyModel(ScriptedModel({"": MOVE}), {"empty": 0.2, "illegal": 0.1}, seed=5)
        return {r.seed: move_failure(model.generate([r])[0]) for r in order}

    found = reasons(requests)
    assert 160 <= sum(reason == "empty" for reason in found.values()) <= 240
    assert 70 <= sum(reason == "illegal" for reason in found.values()) <= 130
    assert found == reasons(requests[::-1])


def test_a_failing_request_fails_the_call_and_then_it_is_over():
    model = FaultyModel(ScriptedModel({"": MOVE}), {1: "failing"})
    with pytest.raises(LanguageModelError, match="request 1"):
        model.generate([ask(), ask()])
    assert move_failure(model.generate([ask()])[0]) == 4


def test_a_slow_answer_is_late_but_right():
    start = time.perf_counter()
    assert move_failure(faulty(MOVE, "slow", delay=0.2)) == 4
    assert time.perf_counter() - start >= 0.2


def test_a_spoiled_answer_keeps_tokens_and_logprobs_that_match_its_text():
    said = faulty(MOVE, "illegal")
    assert len(said.tokens) == len(said.logprobs) == len(said.text.split())
    assert said.text == MOVE.replace("5", "999")


def test_moves_that_are_words_need_another_word_to_be_ambiguous():
    game = ScriptedGame({"a": {"left": "b", "right": "b"}, "b": 0.0})
    said = faulty("best_move: left", "ambiguous", other_move="right")
    parsed = parse_move(said.text, game, "a")
    assert isinstance(parsed, ParseFailure)
    assert parsed.reason == "ambiguous"
    with pytest.raises(ValueError, match="other_move"):
        faulty("best_move: left", "ambiguous")


@pytest.mark.parametrize("faults", [{0: "sulking"}, {"sulking": 0.5}, {"empty": -0.1}, {"empty": 0.6, "slow": 0.5}])
def test_unknown_faults_and_impossible_shares_are_refused(faults):
    with pytest.raises(ValueError, match="fault"):
        FaultyModel(ScriptedModel({}), faults)
