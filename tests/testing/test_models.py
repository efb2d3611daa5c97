from __future__ import annotations

import pytest

from nlrl.backbones.language_model import LanguageModel, Message, Request, Sampling
from nlrl.testing import ScriptedModel, WordTokenizer


def ask(text, seed=0, **sampling):
    return Request(messages=(Message("user", text),), sampling=Sampling(**sampling), seed=seed)


def test_a_table_answers_by_the_longest_piece_of_the_prompt():
    model = ScriptedModel({"": "best_move: 1", "to move": "best_move: 2", "to move: X": "best_move: 3"})
    texts = [c.text for c in model.generate([ask("hello"), ask("to move: O"), ask("to move: X")])]
    assert texts == ["best_move: 1", "best_move: 2", "best_move: 3"]
    assert isinstance(model, LanguageModel)


def test_a_list_answers_in_order_and_says_when_it_ends():
    model = ScriptedModel(["first", "second"])
    assert [c.text for c in model.generate([ask("a"), ask("b")])] == ["first", "second"]
    with pytest.raises(AssertionError, match=r"request 3, but 2 answers"):
        model.generate([ask("c")])


def test_a_function_sees_the_request_and_every_request_is_kept():
    model = ScriptedModel(lambda request: f"best_move: {request.seed}")
    requests = [ask("same", seed=4), ask("same", seed=7)]
    assert [c.text for c in model.generate(requests)] == ["best_move: 4", "best_move: 7"]
    assert model.requests == requests


def test_a_prompt_without_an_answer_is_the_tests_mistake_and_shown():
    with pytest.raises(AssertionError, match="what now"):
        ScriptedModel({"else": "x"}).generate([ask("what now")])


def test_tokens_decode_to_the_text_and_each_has_its_logprob():
    model = ScriptedModel({"": " I take the\n middle.\nbest_move: 5 "})
    (said,) = model.generate([ask("go on then")])
    assert model.tokenizer.decode(said.tokens) == said.text == " I take the\n middle.\nbest_move: 5 "
    assert said.logprobs == tuple(WordTokenizer.logprob(token) for token in said.tokens)
    assert all(-4 <= logprob < 0 for logprob in said.logprobs)
    assert (said.prompt_tokens, said.finish_reason, said.weight_version) == (3, "stop", "scripted-0")


def test_token_limit_and_stop_strings_hold():
    model = ScriptedModel({"": "one two three. four"})
    cut, whole, stopped = model.generate([ask("", max_tokens=2), ask("", max_tokens=4), ask("", stop=("r", "three"))])
    assert (cut.text, cut.finish_reason, len(cut.tokens)) == ("one two", "length", 2)
    assert (whole.text, whole.finish_reason) == ("one two three. four", "stop")
    assert (stopped.text, stopped.finish_reason) == ("one two ", "stop")


def test_a_prompt_may_be_tokens():
    model = ScriptedModel({"middle": "best_move: 5"})
    (said,) = model.generate([Request(tokens=model.tokenizer.encode("take the middle"))])
    assert said.text == "best_move: 5"


def test_expected_number_replaces_the_first_number_where_it_is_asked_for():
    model = ScriptedModel({"": "X stands +0.90, surely.\nfinal_evaluation: +0.90"}, expectation=lambda request: 0.1234)
    read, plain = model.generate([ask("", expected_number=True), ask("")])
    assert (read.text, read.expectation) == ("X stands +0.12, surely.\nfinal_evaluation: +0.90", 0.1234)
    assert (plain.text[:14], plain.expectation) == ("X stands +0.90", None)
    assert model.reads_expectations
    assert not ScriptedModel({}).reads_expectations
