"""Several servers behind one model: who gets what, how much, with which weights, and what happens when one dies."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any

import pytest

from nlrl.backbones.language_model import Completion, LanguageModelError, Message, Request, Sampling
from nlrl.orchestration.cluster import Cluster, Unusable
from nlrl.orchestration.config import ModelConfig, RolloutConfig
from nlrl.orchestration.router import GROUP, MAX_IN_FLIGHT, RESTARTS, Router, ServedModel, affinity, start_servers
from nlrl.orchestration.server import ModelServer, ServerStats
from nlrl.orchestration.worker import RolloutWorker


def ask(text="", tokens=(), marks=(), seed=0):
    return Request((Message("user", text),) if text else (), tokens, Sampling(), seed, marks)


def texts(completions):
    return [completion.text for completion in completions]


class Echo:
    """Says which weights answer what; remembers what it was asked. `failed`: its engine is gone."""

    name, reads_expectations = "echo", False

    def __init__(self):
        self.weight_version, self.says, self.failed = "echo@0", "nothing", False
        self.batches: list[list[Request]] = []

    def load_weights(self, state, version):
        self.says, self.weight_version = state.get("says", "nothing"), version

    def generate(self, requests):
        if self.failed:
            raise LanguageModelError("the engine has failed")
        self.batches.append(list(requests))
        return [Completion(f"{self.says}: {self._prompt(r)}", weight_version=self.weight_version) for r in requests]

    def metrics(self):
        read, asked = float(len(self.batches)), sum(map(len, self.batches))
        return {"prompt_tokens_read_total": read, "prefix_hit_tokens_total": asked - read, "prefix_hit_rate": 0.5}

    def _prompt(self, request):
        return request.messages[0].content if request.messages else len(request.tokens)


@pytest.fixture
def three(monkeypatch):
    """A served model behind three servers in this process, and the models that were made."""
    echoes: list[Echo] = []
    module: Any = ModuleType("hosted_model")
    module.make_model = lambda: echoes.append(Echo()) or echoes[-1]
    monkeypatch.setitem(sys.modules, "hosted_model", module)
    with Cluster("inline") as cluster:
        yield ServedModel(start_servers(cluster, ModelConfig(kind="scripted", name="hosted_model"), 3)), echoes


# -- who answers -------------------------------------------------------------------------------------------------------
def test_several_servers_share_prompts_and_answers_keep_their_order(three):
    served, echoes = three
    prompts = [f"prompt {i}" for i in range(60)]
    assert texts(served.generate([ask(prompt) for prompt in prompts])) == [f"nothing: {prompt}" for prompt in prompts]
    assert served.generate([]) == []
    assert [len(echo.batches) for echo in echoes] == [1, 1, 1]
    assert min(len(echo.batches[0]) for echo in echoes) > 8


def test_a_prompt_always_goes_to_the_server_that_remembers_it(three):
    served, echoes = three
    served.generate([ask(f"prompt {i}") for i in range(60)])
    served.with_weights("actor").generate([ask(f"prompt {i}") for i in reversed(range(0, 60, 2))])
    assert [len(echo.batches) for echo in echoes] == [1, 1, 1]
    served.generate([ask("prompt 7", seed=1), ask("prompt 7", seed=2)])
    assert sorted(len(echo.batches) for echo in echoes) == [1, 1, 2]


def test_prompts_with_the_same_marked_prefix_meet_on_one_server(three):
    served, echoes = three
    boards = [tuple(range(board, board + 40)) for board in range(30)]
    served.generate([ask(tokens=(*board, move), marks=(8, 40)) for board in boards for move in range(9)])
    places = {
        board: {i for i, e in enumerate(echoes) for r in e.batches[0] if r.tokens[:40] == board} for board in boards
    }
    assert Counter(map(len, places.values())) == {1: 30}
    assert set.union(*places.values()) == {0, 1, 2}
    assert affinity(ask(tokens=boards[0] + (1,))) != affinity(ask(tokens=boards[0] + (2,)))  # without marks


def test_a_server_that_would_get_much_more_than_its_share_gives_way(three):
    served, echoes = three
    requests = [ask("the one prompt", seed=seed) for seed in range(600)]
    assert len(served.generate(requests)) == 600
    counts = [sum(map(len, echo.batches)) for echo in echoes]
    assert sum(counts) == 600
    assert max(counts) <= 1.25 * 200 + 16
    assert all(count % GROUP in (0, 600 % GROUP) for count in counts)  # equal prompts stay together as far as may be


# -- how much ----------------------------------------------------------------------------------------------------------
class Slow:
    """A server that holds calls until it is told to answer, and counts what it holds."""

    name = "slow"

    def __init__(self):
        self.open: list[tuple[Future, list[Request]]] = []
        self.held = self.most = self.total = 0
        self._lock = threading.Lock()

    def call(self, method, *args):
        future = SlowFuture()
        if method == "describe":
            future.set_result({"name": "slow", "reads_expectations": False})
            return future
        with self._lock:
            self.open.append((future, args[1]))
            self.held += len(args[1])
            self.total += len(args[1])
            self.most = max(self.most, self.held)
        return future

    def answer_one(self):
        with self._lock:
            if not self.open:
                return
            future, requests = self.open.pop(0)
            self.held -= len(requests)
        future.set_result([Completion(str(request.seed)) for request in requests])


class SlowFuture(Future):
    @staticmethod
    def wait(futures, block):
        while not (done := [future for future in futures if future.done()]) and block:
            time.sleep(0.001)
        return done


def test_no_server_holds_more_than_its_bound_and_callers_wait():
    servers = [Slow(), Slow()]
    served = ServedModel(Router(servers, max_in_flight=32))  # pyright: ignore[reportArgumentType]
    requests = [[ask(f"{caller} {i}", seed=1000 * caller + i) for i in range(200)] for caller in range(4)]
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(served.generate, each) for each in requests]
        deadline = time.monotonic() + 20
        while min(server.held for server in servers) < 32 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert [server.held for server in servers] == [32, 32]
        assert not any(future.done() for future in asked)
        while not all(future.done() for future in asked) and time.monotonic() < deadline:
            for server in servers:
                server.answer_one()
        for caller, future in enumerate(asked):
            assert texts(future.result(0)) == [str(1000 * caller + i) for i in range(200)]
    assert max(server.most for server in servers) == 32
    assert sum(server.total for server in servers) == 800


def test_a_long_call_is_cut_so_that_servers_never_wait_for_the_next_one(three):
    served, echoes = three
    served.generate([ask(f"{i}") for i in range(2400)])
    assert min(len(echo.batches) for echo in echoes) >= 3
    assert max(len(batch) for echo in echoes for batch in echo.batches) * 4 <= MAX_IN_FLIGHT


# -- weights and figures -----------------------------------------------------------------------------------------------
def test_weights_are_put_into_all_servers_by_version(three):
    served, _ = three
    served.router.put_weights("actor", "actor@1", {"says": "one"})
    actor = served.with_weights("actor")
    prompts = [f"{i}" for i in range(60)]
    assert texts(actor.generate([ask(prompt) for prompt in prompts])) == [f"one: {prompt}" for prompt in prompts]
    assert texts(served.generate([ask("a")])) == ["nothing: a"]
    assert (actor.weight_version, served.weight_version) == ("actor@1", "echo@0")
    served.router.put_weights("actor", "actor@2", {"says": "two"})
    assert {text.split(":")[0] for text in texts(actor.generate([ask(prompt) for prompt in prompts]))} == {"two"}
    assert (served.name, served.reads_expectations) == ("echo", False)


def test_figures_of_servers_add_up(three):
    served, _ = three
    served.generate([ask(f"prompt {i}") for i in range(60)])
    assert served.router.metrics() == {
        "prompt_tokens_read_total": 3,
        "prefix_hit_tokens_total": 57,
        "prefix_hit_rate": 57 / 60,
    }
    stats = served.router.take_stats()
    assert (stats.requests, stats.cached, stats.restarts) == (60, 0, 0)
    assert served.router.take_stats().requests == 0
    total = sum([ServerStats(3, 1, 10, 6, 0.5), ServerStats(2, 0, 4, 2, 0.25, 1)], ServerStats())
    assert total == ServerStats(5, 1, 14, 8, 0.75, 1)


# -- deaths ------------------------------------------------------------------------------------------------------------
def test_a_server_whose_model_has_failed_is_replaced_and_given_its_weights_again(three):
    served, echoes = three
    served.router.put_weights("actor", "actor@1", {"says": "one"})
    actor, requests = served.with_weights("actor"), [ask(f"{i}") for i in range(60)]
    before = texts(actor.generate(requests))
    for echo in list(echoes):
        echo.failed = True
    assert texts(actor.generate([ask(f"{i}", seed=1) for i in range(60)])) == before
    assert len(echoes) == 6


class Speaker(RolloutWorker):
    """A rollout worker that may say anything."""

    def say(self, prompt):
        return self._model.generate([ask(prompt)])[0].text


def test_a_worker_that_was_made_anew_learns_with_its_call_which_weights_must_answer(three):
    served, echoes = three
    newcomer = ServedModel(copy.copy(served.router), "actor")  # what it was made of knows nothing of training
    served.router.put_weights("actor", "actor@1", {"says": "one"})
    for echo in list(echoes):
        echo.failed = True  # the servers are made anew, too, and have the base only
    worker = Speaker("tictactoe", newcomer, "plain", 20, RolloutConfig(), 0)
    done = worker.metered(("say", "a", served.router.noted()))
    assert (done.result, done.restarted) == ("one: a", "")


def test_a_model_that_fails_again_and_again_is_an_error(three, monkeypatch):
    served, _ = three
    monkeypatch.setattr(Echo, "generate", lambda self, requests: 1 / 0)
    monkeypatch.setattr(Echo, "failed", property(lambda self: True, lambda self, value: None), raising=False)
    with pytest.raises(Unusable, match="division"):
        served.generate([ask("a")])


class Watched(ModelServer):
    """A server that can be told to dawdle and to break, and says in which process it lives."""

    seconds = 0.0

    def generate(self, weights, requests, version=""):
        time.sleep(self.seconds)
        return super().generate(weights, requests, version)

    def dawdle(self, seconds):
        self.seconds = seconds

    def process(self):
        return os.getpid()

    def break_engine(self):
        """The next thing that the engine's thread does is an error."""
        self._model._lanes["default"].step = lambda admits: 1 / 0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def cluster():
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with Cluster("ray", address="local", num_cpus=2) as cluster:
        yield cluster


@pytest.fixture
def start(cluster):
    """start(config, count) -> handles that end with the test."""
    handles = []

    def start(config, count):
        options = {"num_cpus": 0, "max_restarts": RESTARTS, "concurrency": 8, "threads": 1}
        handles.extend(cluster.spawn(Watched, config, 1, name=f"model-{i}", **options) for i in range(count))
        return handles

    yield start
    for handle in handles:
        handle.close()


RULES = ModelConfig(kind="scripted", name="nlrl.testing.by_rules")
PROMPT = "Choose a move.\n O | 2 | X\n---+---+---\n O | X | 6\n---+---+---\n 7 | 8 | O\nX to move; free: 2 6 7 8"


@pytest.mark.timeout(120)
def test_requests_of_a_server_killed_while_it_answers_are_answered_again(cluster, start):
    handles = start(RULES, 2)
    served = ServedModel(Router(handles))
    served.router.put_weights("actor", "actor@1", cluster.put({PROMPT: "what the actor has learnt"}))
    copy = pickle.loads(pickle.dumps([served.router]))  # as another process has it
    actor, requests = served.with_weights("actor"), [ask(PROMPT + " " * i, seed=i) for i in range(40)]
    whole = actor.generate(requests)
    assert {answer.weight_version for answer in whole} == {"actor@1"}
    before = [handle.call("process").result() for handle in handles]
    for handle in handles:
        handle.call("dawdle", 1.0).result()
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(actor.generate, requests), threads.submit(copy[0].generate, "actor", requests)]
        time.sleep(0.3)
        os.kill(before[0], signal.SIGKILL)
        assert not any(future.done() for future in asked)
        assert [future.result(90) for future in asked] == [whole, whole]
    after = [handle.call("process").result() for handle in handles]
    assert after[0] != before[0]
    assert after[1] == before[1]
    assert served.router.take_stats().restarts == 1


@pytest.mark.timeout(120)
def test_an_engine_whose_thread_has_failed_is_replaced(start):
    config = ModelConfig(device="cpu", options={"compiled_cpu": False, "max_rows": 8})
    (handle,) = start(config, 1)
    served = ServedModel(Router([handle]))
    requests = [Request((Message("user", PROMPT),), sampling=Sampling(max_tokens=5), seed=seed) for seed in range(4)]
    whole, before = served.generate(requests), handle.call("process").result()
    handle.call("break_engine").result()
    others = [Request((Message("user", PROMPT),), sampling=Sampling(max_tokens=6), seed=seed) for seed in range(4)]
    assert [answer.tokens[:5] for answer in served.generate(others)] == [answer.tokens for answer in whole]
    assert texts(served.generate(requests)) == texts(whole)
    assert handle.call("process").result() != before
    assert served.router.metrics()["requests_completed_total"] == 8
