"""The engine says what the model says: no batching, paging, reuse or preemption may show in an answer."""

import random
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch

from nlrl.backbones.engine import QueueFull
from nlrl.backbones.language_model import Constraint, LanguageModelError, Message, Request, Sampling
from nlrl.errors import NLRLError

from .conftest import CONTEXT, MODELS, make_model, plain, prompt

NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def mixed(count: int, shared: int = 20, **sampling) -> list[Request]:
    """Prompts of many lengths; half of them begin with the same marked tokens."""
    out = []
    for i in range(count):
        common = prompt(0, shared) if i % 2 else ()
        tokens = common + prompt(i, 1 + 7 * i % 30)
        settings = Sampling(max_tokens=3 + 4 * i % 11, temperature=(0.0, 1.0)[i % 3 > 0], **sampling)
        out.append(Request(tokens=tokens, sampling=settings, marks=(shared,) if common else (), seed=i))
    return out


def check(engine, model, tokenizer, requests) -> None:
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        assert answer.tokens == plain(model, tokenizer, request)
        assert len(answer.logprobs) == len(answer.tokens)


@pytest.mark.parametrize(
    ("device", "fast"),
    [("cpu", True), ("cpu", False), *(pytest.param("cuda", fast, marks=NEEDS_CUDA) for fast in (True, False))],
)
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_reading_everything_anew(name, device, fast, tokenizer, engine_of):
    """Three rows for eight requests, prompts read in pieces of five tokens, three tokens drawn at a time."""
    model = make_model(name, tokenizer, device=device)
    engine = engine_of(model, max_rows=3, chunk_tokens=5, burst=3, compiled_cpu=fast, cuda_graphs=fast)
    check(engine, model, tokenizer, mixed(8))
    assert engine.metrics()["prefix_hit_tokens_total"] > 0


def test_the_time_in_which_it_computes_is_counted(tokenizer, engine_of):
    engine = engine_of(make_model("transformer", tokenizer))
    began = time.perf_counter()
    engine.generate(mixed(4))
    busy, took = engine.metrics()["busy_seconds_total"], time.perf_counter() - began
    time.sleep(0.05)
    assert 0 < busy <= took
    assert engine.metrics()["busy_seconds_total"] - busy < 0.05


@pytest.mark.parametrize("name", ["transformer", "hymba"])
def test_giving_way_changes_no_token(name, tokenizer, engine_of):
    model = make_model(name, tokenizer)
    roomy = engine_of(model, max_rows=4)
    page, row = roomy._lanes["default"].store.page_nbytes, roomy._lanes["default"].store.row_nbytes
    engine = engine_of(model, max_rows=4, memory_bytes=8 * row + 10 * page, burst=4)
    requests = [
        Request(tokens=prompt(i, 20), sampling=Sampling(max_tokens=30, ignore_end=True), seed=i) for i in range(4)
    ]
    check(engine, model, tokenizer, requests)
    assert engine.metrics()["preemptions_total"] > 0


@pytest.fixture
def impatient_threads():
    """Threads give way to each other so often that what may be torn is torn."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_figures_can_be_asked_for_while_it_works(engine_of, impatient_threads):
    """Another thread looks as often as it can while prompts come and states are kept and dropped."""
    engine, failed, done = engine_of("transformer"), [], threading.Event()

    def look():
        try:
            while not done.is_set():
                engine.metrics()
        except Exception as error:
            failed.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    for round_ in range(20):
        engine.generate([replace(one, seed=100 * round_ + i) for i, one in enumerate(mixed(40, shared=round_))])
    done.set()
    watcher.join()
    assert not failed


def test_equal_prompts_are_read_once(engine_of):
    engine = engine_of(max_rows=4)
    requests = [Request(tokens=prompt(1, 37), sampling=Sampling(max_tokens=5), seed=i) for i in range(10)]
    answers = engine.generate(requests)
    metrics = engine.metrics()
    assert metrics["prompt_tokens_read_total"] == 37
    assert metrics["prefix_hit_tokens_total"] == 9 * 37
    assert len({answer.tokens for answer in answers}) > 1


def test_a_marked_prefix_is_read_once_and_its_last_page_never_shared(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    engine = engine_of(model, max_rows=8)
    first, later = mixed(1), [
        Request(tokens=prompt(0, 20) + prompt(i, 9), sampling=Sampling(max_tokens=9), marks=(20,), seed=i)
        for i in range(1, 7)
    ]  # fmt: skip
    check(engine, model, tokenizer, first + later)
    check(engine, model, tokenizer, later[::-1])
    assert engine.metrics()["prompt_tokens_read_total"] <= len(first[0].tokens) + 20 + 2 * 6 * 9


def test_kept_states_make_room_when_memory_is_short(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    page = engine_of(model)._lanes["default"].store.page_nbytes
    engine = engine_of(model, max_rows=2, memory_bytes=9 * page)
    requests = [
        Request(tokens=prompt(i, 50), sampling=Sampling(max_tokens=4), marks=(16, 40), seed=i) for i in range(8)
    ]
    check(engine, model, tokenizer, requests)
    assert engine.metrics()["prefix_evictions_total"] > 0


@pytest.mark.parametrize("count", [1_500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_cancellations_leak_nothing(count, engine_of):
    engine = engine_of(max_rows=16, max_queue=count, burst=2)
    chance = random.Random(0)
    tickets = []
    for i in range(count):
        tokens = prompt(i % 5, 1 + i % 40)
        sampling = Sampling(max_tokens=1 + i % 9, temperature=i % 2)
        tickets.append(
            engine.submit(Request(tokens=tokens, sampling=sampling, marks=(i % 7,), seed=i), client=str(i % 3))
        )
        if chance.random() < 0.3:
            chance.choice(tickets).cancel()
    done = [ticket.result(60) for ticket in tickets if not ticket.cancelled()]
    assert len(done) < count
    lane, deadline = engine._lanes["default"], time.monotonic() + 10
    while engine.metrics()["requests_running"] + engine.metrics()["requests_waiting"] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine.metrics()["requests_running"] == engine.metrics()["requests_waiting"] == 0
    lane.prefix.clear()
    assert lane.store.pages.used == 0
    assert len(lane.scheduler._free_rows) == lane.store.rows
    assert not lane.scheduler._pending
    assert not engine._running


def test_a_cancelled_request_frees_its_row_for_the_next(engine_of):
    engine = engine_of(max_rows=1)
    begun, go_on = threading.Event(), threading.Event()

    def pause(delta):
        begun.set()
        go_on.wait(30)

    sampling = Sampling(max_tokens=120, ignore_end=True)
    endless = engine.submit(Request(tokens=prompt(0, 4), sampling=sampling), on_tokens=pause)
    assert begun.wait(30)
    next_one = engine.submit(Request(tokens=prompt(1, 4), sampling=Sampling(max_tokens=2)))
    assert endless.cancel()
    go_on.set()
    assert next_one.result(30).tokens
    assert engine.metrics()["requests_cancelled_total"] == 1


def test_new_weights_wait_for_what_is_being_written_and_lose_no_request(tokenizer, engine_of):
    old, new = make_model("transformer", tokenizer), make_model("transformer", tokenizer, seed=1)
    states = {"old": {k: v.clone() for k, v in old.state_dict().items()}, "new": new.state_dict()}
    engine = engine_of(old, max_rows=2, weight_version="old")
    requests = mixed(12)
    tickets = [engine.submit(request) for request in requests]
    tickets[0].result(30)
    engine.load_weights(states["new"], "new")
    answers = [ticket.result(60) for ticket in tickets]
    assert {answer.weight_version for answer in answers} == {"old", "new"}
    judge = make_model("transformer", tokenizer)
    for request, answer in zip(requests, answers, strict=True):
        judge.load_state_dict(states[answer.weight_version])
        assert answer.tokens == plain(judge, tokenizer, request)


def test_named_weight_sets_answer_side_by_side(tmp_path, tokenizer, engine_of):
    from safetensors.torch import save_file

    actor, critic = make_model("transformer", tokenizer), make_model("transformer", tokenizer, seed=1)
    untied = {key: tensor.contiguous() for key, tensor in critic.state_dict().items() if "lm_head" not in key}
    save_file(untied, tmp_path / "critic.safetensors")
    engine = engine_of(actor, weight_version="a1")
    engine.load_weights(tmp_path / "critic.safetensors", "c1", name="critic")
    request = Request(tokens=prompt(3, 9), sampling=Sampling(max_tokens=8, temperature=0))
    mine, its = engine.submit(request), engine.submit(request, weights="critic")
    assert mine.result(30).tokens == plain(actor, tokenizer, request)
    assert its.result(30).tokens == plain(critic, tokenizer, request)
    assert engine.weight_versions() == {"default": "a1", "critic": "c1"}
    assert its.result().weight_version == "c1"
    with pytest.raises(NLRLError, match=r"'teacher'.*critic"):
        engine.submit(request, weights="teacher")


@pytest.mark.parametrize("spoil", ["missing", "unknown", "misshapen", "no file"])
def test_wrong_weights_change_nothing(spoil, tmp_path, tokenizer, engine_of):
    engine = engine_of(weight_version="old")
    request = Request(tokens=prompt(3, 9), sampling=Sampling(temperature=0))
    before = engine.generate([request])
    weights = {key: 0 * tensor for key, tensor in make_model("transformer", tokenizer).state_dict().items()}
    key = next(key for key in weights if "layers.1" in key)
    if spoil == "missing":
        del weights[key]
    elif spoil == "unknown":
        weights["extra.weight"] = torch.zeros(2)
    else:
        weights[key] = torch.zeros(2, 2)
    with pytest.raises(NLRLError, match={"unknown": "extra.weight", "no file": "nowhere"}.get(spoil, key)):
        engine.load_weights(tmp_path / "nowhere.safetensors" if spoil == "no file" else weights, "new")
    assert engine.generate([request]) == before


def test_a_full_queue_says_so_and_generate_waits(engine_of):
    engine = engine_of(max_rows=1, max_queue=2)
    long = Request(tokens=prompt(0, 4), sampling=Sampling(max_tokens=100, ignore_end=True))
    tickets = [engine.submit(long.with_seed(i)) for i in range(3)]
    with pytest.raises(QueueFull, match="2 requests"):
        engine.submit(long)
    assert len(engine.generate([Request(tokens=prompt(i, 3), sampling=Sampling(max_tokens=2)) for i in range(9)])) == 9
    assert all(ticket.result(60) for ticket in tickets)


def test_clients_are_served_in_turn(engine_of):
    engine = engine_of(max_rows=1)
    order: list[str] = []
    lock = threading.Lock()

    def note(client):
        with lock:
            order.append(client)

    short = Sampling(max_tokens=2, ignore_end=True)
    tickets = []
    for i in range(40):
        tickets.append(engine.submit(Request(tokens=prompt(i, 5), sampling=short), client="greedy"))
        tickets[-1].add_done_callback(lambda _: note("greedy"))
    for i in range(3):
        tickets.append(engine.submit(Request(tokens=prompt(90 + i, 5), sampling=short), client="modest"))
        tickets[-1].add_done_callback(lambda _: note("modest"))
    for ticket in tickets:
        ticket.result(60)
    assert max(i for i, client in enumerate(order) if client == "modest") < 35


def test_streamed_text_is_the_answer_and_never_part_of_a_stop_string(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    engine = engine_of(model, burst=3)
    whole = engine.generate([Request(tokens=prompt(5, 9), sampling=Sampling(max_tokens=40, ignore_end=True))])[0].text
    stop = (whole[12:15],)
    for sampling in (Sampling(max_tokens=40, ignore_end=True), Sampling(max_tokens=40, ignore_end=True, stop=stop)):
        deltas = []
        request = Request(tokens=prompt(5, 9), sampling=sampling)
        answer = engine.submit(request, on_tokens=deltas.append).result(30)
        assert "".join(delta.text for delta in deltas) == answer.text
        assert len(deltas) > 2
        assert sum((delta.tokens for delta in deltas), ()) == answer.tokens
        assert answer == engine.generate([request])[0]
    assert answer.text == whole[: whole.index(stop[0])]
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize(("seconds", "looks"), [(1e-9, range(15, 41)), (1000.0, range(5, 8))])
def test_on_a_cpu_a_burst_has_as_many_steps_as_time_allows(seconds, looks, monkeypatch, engine_of):
    monkeypatch.setattr("nlrl.backbones.engine.runner.BURST_SECONDS", seconds)
    deltas, sampling = [], Sampling(max_tokens=40, ignore_end=True)
    engine_of(burst=8).submit(Request(tokens=prompt(5, 9), sampling=sampling), on_tokens=deltas.append).result(30)
    assert len(deltas) in looks


def test_a_faulty_listener_harms_nobody(engine_of):
    engine = engine_of()

    def fault(delta):
        raise RuntimeError("mine")

    request = Request(tokens=prompt(5, 9), sampling=Sampling(max_tokens=9))
    assert engine.submit(request, on_tokens=fault).result(30) == engine.submit(request).result(30)


@pytest.mark.parametrize("compiled_cpu", [True, False])
def test_constrained_rows_obey_and_others_do_not_notice(compiled_cpu, tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    engine = engine_of(model, max_rows=4, compiled_cpu=compiled_cpu)
    free = mixed(6)
    moves = Sampling(max_tokens=20, constraint=Constraint("choice", ("abba", "ab", "h g")))
    bound = [Request(tokens=prompt(i, 6), sampling=moves, seed=i) for i in range(20)]
    answers = engine.generate([*free, *bound])
    assert [answer.tokens for answer in answers[:6]] == [plain(model, tokenizer, request) for request in free]
    assert {answer.text for answer in answers[6:]} == {"abba", "ab", "h g"}
    assert all(answer.finish_reason == "stop" for answer in answers[6:])


def test_the_likeliest_tokens_are_reported(engine_of):
    engine = engine_of(max_rows=2)
    requests = [
        Request(tokens=prompt(i, 6), sampling=Sampling(max_tokens=5, temperature=0, top_logprobs=i)) for i in range(4)
    ]
    for i, answer in enumerate(engine.generate(requests)):
        assert len(answer.top_logprobs) == (len(answer.tokens) if i else 0)
        for token, logprob, best in zip(answer.tokens, answer.logprobs, answer.top_logprobs, strict=False):
            assert len(best) == i
            assert best[0] == (token, pytest.approx(logprob, abs=1e-5))


def test_scores_are_the_logprobs_of_sampling(engine_of):
    engine = engine_of()
    request = Request(tokens=prompt(2, 9), sampling=Sampling(max_tokens=12))
    answer = engine.generate([request])[0]
    assert engine.score([request.tokens], [answer.tokens])[0] == pytest.approx(answer.logprobs, abs=1e-5)
    greedy = engine.generate([Request(tokens=prompt(2, 9), sampling=Sampling(max_tokens=12, temperature=0))])[0]
    assert all(one.likeliest for one in engine.score_tokens([request.tokens], [greedy.tokens])[0])


def test_what_has_no_room_is_refused_alone(engine_of):
    engine = engine_of()
    nine = Sampling(max_tokens=9, ignore_end=True)
    room, none, edge = (Request(tokens=prompt(1, 190)[:n], sampling=nine) for n in (9, CONTEXT, CONTEXT - 2))
    good, refused, short = engine.generate([room, none, edge])
    assert len(good.tokens) == 9
    assert refused.finish_reason == "error"
    assert str(CONTEXT) in refused.error
    assert len(short.tokens) == 2
    assert short.finish_reason == "length"


def test_memory_that_runs_out_refuses_the_one_that_is_too_long(monkeypatch, tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    engine = engine_of(model)
    runner = engine._lanes["default"].runner
    read = runner.read

    def limited(chunks):
        if sum(chunk.end - chunk.start for chunk in chunks) > 60:
            raise torch.OutOfMemoryError("out of memory")
        return read(chunks)

    monkeypatch.setattr(runner, "read", limited)
    requests = [Request(tokens=prompt(i, 9), sampling=Sampling(max_tokens=4), seed=i) for i in range(12)]
    requests.insert(5, Request(tokens=prompt(1, 70)))
    answers = engine.generate(requests)
    assert answers.pop(5).finish_reason == "error"
    del requests[5]
    assert [answer.tokens for answer in answers] == [plain(model, tokenizer, request) for request in requests]


def test_a_broken_model_fails_every_caller_with_its_reason(monkeypatch, engine_of):
    engine = engine_of(compiled_cpu=False)
    monkeypatch.setattr(engine._lanes["default"].runner.model, "hidden", lambda *a, **k: 1 / 0)
    with pytest.raises(LanguageModelError, match="division by zero"):
        engine.generate([Request(tokens=prompt(1, 3))])
    with pytest.raises(LanguageModelError, match="division by zero"):
        engine.submit(Request(tokens=prompt(1, 3)))


def test_closing_fails_what_waits(engine_of):
    engine = engine_of(max_rows=1)
    tickets = [engine.submit(Request(tokens=prompt(i, 3), sampling=Sampling(max_tokens=100))) for i in range(30)]
    engine.close()
    with pytest.raises(LanguageModelError, match="closed"):
        tickets[-1].result(10)
    with pytest.raises(LanguageModelError, match="closed"):
        engine.submit(Request(tokens=prompt(0, 3)))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(), "messages"),
        (Request(tokens=(4,), messages=(Message("user", "a"),)), "messages"),
        (Request(tokens=(4,), sampling=Sampling(temperature=-1)), "temperature"),
        (Request(tokens=(4,), sampling=Sampling(min_p=1.5)), "min_p"),
        (Request(tokens=(4,), sampling=Sampling(top_logprobs=-1)), "top_logprobs"),
        (Request(tokens=(4,), sampling=Sampling(constraint=Constraint("regex", "("))), "regex"),
    ],
)
def test_requests_that_cannot_be_obeyed_are_refused_at_once(request_, words, engine_of):
    with pytest.raises(NLRLError, match=words):
        engine_of().submit(request_)


def test_steps_keep_logits_only_for_those_who_read_them(monkeypatch, tokenizer, engine_of):
    from nlrl import kernels

    model, draws, plain = make_model("ngpt", tokenizer), [], kernels.sample_head

    def sample_head(hidden, matrix, seeds, steps, temperature, bitmask=None, scale=None):
        draws.append(bitmask is not None)
        return plain(hidden, matrix, seeds, steps, temperature, bitmask, scale)

    monkeypatch.setattr("nlrl.backbones.engine.runner.kernels.sample_head", sample_head)
    engine = engine_of(model, compiled_cpu=False, burst=1)
    bound = Constraint("regex", "[a-h ]{9,}")
    for settings, wanted in (({}, [False] * 5), ({"constraint": bound}, [True] * 5), ({"top_k": 3}, [])):
        draws.clear()
        engine.generate([Request(tokens=(4, 5), sampling=Sampling(max_tokens=6, ignore_end=True, **settings))])
        assert draws == wanted, settings


class Replay:
    """A graph that is not captured but run."""

    def __init__(self, step):
        self.replay = step


def test_steps_replayed_on_static_buffers_are_the_eager_ones(monkeypatch, tokenizer, engine_of):
    from nlrl.backbones.engine.graphs import Graphs

    def capture(self, size, features):
        runner = self._runner
        state = runner.store.state.view(slice(0, size), runner.store.state.length)
        self._known[size, features] = Replay(lambda: runner.step(runner.rows.at(slice(0, size)), state, features))
        return self._known[size, features]

    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model = make_model("transformer", tokenizer)
    engine = engine_of(model, max_rows=5, compiled_cpu=False, burst=4)
    runner = engine._lanes["default"].runner
    runner._graphs = Graphs(runner)
    check(engine, model, tokenizer, mixed(12))
    assert {size for size, _ in runner._graphs._known} <= {1, 4, 5}


def test_a_capture_that_fails_is_done_without(monkeypatch, caplog, tokenizer, engine_of):
    from nlrl.backbones.engine.graphs import Graphs

    def capture(self, size, features):
        raise RuntimeError("no capture here")

    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    model = make_model("transformer", tokenizer)
    engine = engine_of(model, compiled_cpu=False)
    engine._lanes["default"].runner._graphs = Graphs(engine._lanes["default"].runner)
    check(engine, model, tokenizer, mixed(6))
    assert caplog.text.count("no capture here") == 1


def test_an_idle_engine_ends_its_thread_and_starts_again(monkeypatch, engine_of):
    monkeypatch.setattr("nlrl.backbones.engine.engine.IDLE_SECONDS", 0.05)
    engine = engine_of()
    request = Request(tokens=prompt(1, 5), sampling=Sampling(max_tokens=3))
    first = engine.generate([request])
    deadline = time.monotonic() + 10
    while engine._thread is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert engine._thread is None
    assert engine.generate([request]) == first
