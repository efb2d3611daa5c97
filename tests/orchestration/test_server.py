"""The inference actor: one model, several weight sets, calls merged, answers kept as long as their weights live."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest
import torch

from nlrl.backbones.language_model import Completion, LanguageModelError, Message, Request, Sampling
from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Unusable
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.server import ModelServer, StaleWeights
from nlrl.testing import FaultyModel, ScriptedModel


def ask(text, seed=0, **sampling):
    return Request((Message("user", text),), sampling=Sampling(**sampling), seed=seed)


class Echo:
    """Says which weights answer what; remembers batches and loads. Waits at `gate` when told to."""

    name, reads_expectations = "echo", False

    def __init__(self):
        self.weight_version = "echo@0"
        self.batches: list[list[str]] = []
        self.loads: list[str] = []
        self.says = "nothing"
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def load_weights(self, state, version):
        self.says, self.weight_version = state.get("says", "nothing"), version
        self.loads.append(version)

    def generate(self, requests):
        self.batches.append([request.messages[0].content for request in requests])
        self.entered.set()
        assert self.gate.wait(20)
        return [self._complete(request) for request in requests]

    def _complete(self, request):
        text = f"{self.says}: {request.messages[0].content}"
        return Completion(text, (1, 2, 3), (0.0,) * 3, weight_version=self.weight_version, prompt_tokens=5)


@pytest.fixture
def serve(monkeypatch):
    """`serve(model)`: a server that hosts just this model."""

    def make(model):
        module: Any = ModuleType("hosted_model")
        module.make_model = lambda: model
        monkeypatch.setitem(sys.modules, "hosted_model", module)
        return ModelServer(ModelConfig(kind="scripted", name="hosted_model"))

    return make


@pytest.fixture
def echo():
    return Echo()


@pytest.fixture
def server(serve, echo):
    return serve(echo)


def texts(completions):
    return [completion.text for completion in completions]


# -- memory ------------------------------------------------------------------------------------------------------------
def test_identical_requests_are_answered_once_within_a_call_and_across_calls(server, echo):
    assert texts(server.generate("base", [ask("a"), ask("b"), ask("a")])) == ["nothing: a", "nothing: b", "nothing: a"]
    server.generate("base", [ask("b"), ask("c")])
    assert echo.batches == [["a", "b"], ["c"]]


def test_another_seed_or_sampling_is_another_request(server, echo):
    server.generate("base", [ask("a"), ask("a", seed=1), ask("a", temperature=0.5), ask("a", max_tokens=7)])
    assert len(echo.batches[0]) == 4


def test_networks_with_the_same_weights_share_answers(server, echo):
    server.generate("base", [ask("a")])
    server.generate("actor", [ask("a")])
    server.generate("critic", [ask("a")])
    assert echo.batches == [["a"]]
    assert echo.loads == []


def test_memory_is_dropped_with_the_weights_and_only_theirs(server, echo):
    server.put_weights("actor", "actor@1", {"says": "one"})
    server.generate("base", [ask("a")])
    server.generate("actor", [ask("a")])
    server.put_weights("actor", "actor@2", {"says": "two"})
    assert texts(server.generate("actor", [ask("a")])) == ["two: a"]
    server.generate("base", [ask("a")])
    assert echo.batches == [["a"]] * 3  # base, actor@1, actor@2; the base was remembered
    server.put_weights("actor", "actor@1", {"says": "one"})
    server.generate("actor", [ask("a")])
    assert len(echo.batches) == 4  # the first actor's answers were gone


def test_weights_that_another_set_still_uses_keep_their_answers(server, echo):
    server.generate("actor", [ask("a")])
    server.put_weights("actor", "actor@1", {})
    server.generate("critic", [ask("a")])
    assert echo.batches == [["a"]]


def test_beyond_its_bound_the_oldest_answers_are_forgotten(server, echo):
    server.remembers = 9  # three answers of three tokens
    for text in "abcd":
        server.generate("base", [ask(text)])
    server.generate("base", [ask("b"), ask("d")])
    assert echo.batches == [["a"], ["b"], ["c"], ["d"]]
    assert texts(server.generate("base", [ask("a")])) == ["nothing: a"]
    assert echo.batches[-1] == ["a"]


def test_answers_of_replaced_weights_take_no_room(server, echo):
    server.remembers = 9
    server.put_weights("actor", "actor@1", {"says": "one"})
    server.generate("base", [ask("a")])
    server.generate("actor", [ask("b"), ask("c")])
    server.put_weights("actor", "actor@2", {"says": "two"})
    server.generate("actor", [ask("b"), ask("c")])
    server.generate("base", [ask("a")])
    assert len(echo.batches) == 3  # the base's answer was still there


def test_an_answer_that_failed_is_not_remembered(serve):
    inner = ScriptedModel({"": "best_move: 5"})
    server = serve(FaultyModel(inner, {0: "error", 1: "empty"}))
    failed, empty = server.generate("base", [ask("a"), ask("b")])
    assert (failed.finish_reason, empty.text) == ("error", "")
    again, still_empty = server.generate("base", [ask("a"), ask("b")])
    assert again.text == "best_move: 5"
    assert still_empty.text == ""  # a bad answer is an answer


def test_counters_tell_what_was_asked_answered_and_remembered(server):
    server.generate("base", [ask("a"), ask("b"), ask("a")])
    stats = server.take_stats()
    assert (stats.requests, stats.cached, stats.prompt_tokens, stats.completion_tokens) == (3, 1, 10, 6)
    assert stats.seconds > 0
    assert server.take_stats().requests == 0


# -- weights -----------------------------------------------------------------------------------------------------------
def test_weights_are_swapped_in_place_when_they_are_needed_and_not_before(server, echo):
    server.put_weights("actor", "actor@1", {"says": "actor"})
    server.put_weights("critic", "critic@1", {"says": "critic"})
    assert echo.loads == []
    for _ in range(2):
        (said,) = server.generate("actor", [ask("x", seed=len(echo.batches))])
        assert (said.text, said.weight_version) == ("actor: x", "actor@1")
    assert echo.loads == ["actor@1"]
    assert texts(server.generate("critic", [ask("x")])) == ["critic: x"]
    assert texts(server.generate("base", [ask("x")])) == ["nothing: x"]
    assert echo.loads == ["actor@1", "critic@1", "echo@0"]


def test_an_unknown_set_is_named_with_those_there_are(server):
    with pytest.raises(NLRLError, match=r"no weights 'teacher'.*base, actor, critic"):
        server.generate("teacher", [ask("a")])
    assert texts(server.generate("base", [ask("a")])) == ["nothing: a"]


def test_a_model_with_fixed_weights_plays_every_part_and_cannot_be_trained(serve):
    server = serve(ScriptedModel({"": "said"}))
    for name in ("base", "actor", "critic"):
        assert texts(server.generate(name, [ask("a")])) == ["said"]
    with pytest.raises(NLRLError, match="fixed weights"):
        server.put_weights("actor", "actor@1", {})
    with pytest.raises(NLRLError, match="no weights 'other'"):
        server.generate("other", [ask("a")])


# -- many callers ------------------------------------------------------------------------------------------------------
def test_calls_that_arrive_while_the_model_is_busy_become_one_batch(server, echo):
    echo.gate.clear()
    with ThreadPoolExecutor(8) as threads:
        first = threads.submit(server.generate, "base", [ask("first")])
        assert echo.entered.wait(20)
        waiting = [threads.submit(server.generate, "base", [ask(f"w{i}"), ask("shared")]) for i in range(5)]
        while len(server._sets._waiting) < 5:
            threading.Event().wait(0.005)
        echo.gate.set()
        assert texts(first.result(20)) == ["nothing: first"]
        for i, future in enumerate(waiting):
            assert texts(future.result(20)) == [f"nothing: w{i}", "nothing: shared"]
    assert len(echo.batches) == 2
    assert sorted(echo.batches[1]) == ["shared", *(f"w{i}" for i in range(5))]


def test_waiting_calls_for_different_weights_each_get_their_own(server, echo):
    server.put_weights("actor", "actor@1", {"says": "actor"})
    server.put_weights("critic", "critic@1", {"says": "critic"})
    names = ["actor", "critic", "base"] * 10
    with ThreadPoolExecutor(16) as threads:
        futures = [threads.submit(server.generate, name, [ask(f"{i}")]) for i, name in enumerate(names)]
        said = [future.result(20)[0].text for future in futures]
    expected = {"actor": "actor", "critic": "critic", "base": "nothing"}
    assert said == [f"{expected[name]}: {i}" for i, name in enumerate(names)]


def test_a_model_that_is_down_tells_every_caller_and_may_come_back(serve):
    server = serve(FaultyModel(ScriptedModel({"": "said"}), {0: "failing"}))
    with pytest.raises(LanguageModelError, match="scripted failure"):
        server.generate("base", [ask("a")])
    assert texts(server.generate("base", [ask("a")])) == ["said"]


def test_a_call_that_names_a_version_is_answered_by_it_or_not_at_all(server):
    server.put_weights("actor", "actor@2", {"says": "two"})
    assert texts(server.generate("actor", [ask("a")], "actor@2")) == ["two: a"]
    for name, version in (("actor", "actor@3"), ("critic", "critic@1")):
        with pytest.raises(StaleWeights, match=version):
            server.generate(name, [ask("a")], version)


def test_a_request_that_is_just_being_answered_is_not_asked_again(server, echo):
    echo.gate.clear()
    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(server.generate, "base", [ask("a"), ask("b")])
        assert echo.entered.wait(20)
        second = threads.submit(server.generate, "base", [ask("b")])
        while server._stats.requests < 3:
            threading.Event().wait(0.005)
        echo.gate.set()
        assert texts(first.result(20) + second.result(20)) == ["nothing: a", "nothing: b", "nothing: b"]
    assert echo.batches == [["a", "b"]]


def test_a_model_that_has_failed_for_good_makes_its_server_unusable(serve):
    model = FaultyModel(ScriptedModel({"": "said"}), {0: "failing"})
    model.failed = True  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(Unusable, match="scripted failure"):
        serve(model).generate("base", [ask("a")])


def test_closing_a_server_closes_a_model_that_can_be_closed(serve, echo, server):
    server.close()
    closed = []
    echo.close = lambda: closed.append(True)
    serve(echo).close()
    assert closed == [True]


# -- an engine's weights lie side by side ------------------------------------------------------------------------------
@pytest.fixture
def native():
    """A server of a bundled model."""
    server = ModelServer(ModelConfig(device="cpu", options={"compiled_cpu": False, "max_rows": 8}), threads=1)
    yield server
    server.close()


def test_an_engine_answers_several_weight_sets_at_once(native):
    requests = [ask("Choose a move.", max_tokens=6, temperature=0)]
    (base,) = native.generate("actor", requests)
    state = {key: tensor.clone() for key, tensor in native._model.model.state_dict().items()}
    twisted = {
        key: tensor + 0.2 * torch.sin(torch.arange(tensor.numel())).view_as(tensor) for key, tensor in state.items()
    }
    native.put_weights("actor", "actor@1", twisted)
    native.put_weights("critic", "critic@1", state)
    with ThreadPoolExecutor(3) as threads:
        said = list(threads.map(lambda name: native.generate(name, requests)[0], ("actor", "critic", "base")))
    assert [answer.weight_version for answer in said] == ["actor@1", "critic@1", "transformer-base@0"]
    assert said[0].tokens != base.tokens == said[1].tokens == said[2].tokens
    assert native.metrics()["requests_completed_total"] == 3  # the base's answer was remembered
    native.put_weights("actor", "actor@2", state)
    (again,) = native.generate("actor", requests)
    assert (again.tokens, again.weight_version) == (base.tokens, "actor@2")
