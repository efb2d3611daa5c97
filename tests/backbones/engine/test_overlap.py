"""A burst that is launched before the last one was looked at changes nothing but the time it takes."""

import random
import threading
import time
from dataclasses import replace

import pytest
import torch

from nlrl.backbones.engine.ledger import Ledger
from nlrl.backbones.engine.pages import Pages
from nlrl.backbones.engine.transfer import Download
from nlrl.backbones.language_model import Constraint, Request, Sampling

from .conftest import make_model, plain, prompt

FAST = pytest.mark.parametrize("fast", [True, False])


def mixed(count: int, **sampling) -> list[Request]:
    """Prompts and answers of many lengths, some greedy; a third of them begins with the same marked tokens."""
    out = []
    for i in range(count):
        common = prompt(0, 20) if i % 3 == 0 else ()
        settings = Sampling(max_tokens=1 + 5 * i % 23, temperature=(0.0, 1.0)[i % 4 > 0], **sampling)
        tokens = common + prompt(i, 1 + 7 * i % 30)
        out.append(Request(tokens=tokens, sampling=settings, marks=(20,) if common else (), seed=i))
    return out


def same(found, expected) -> bool:
    """Whether completions are; log-probabilities are rounded otherwise in batches of other sizes."""
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
        assert len(one.top_logprobs) == len(other.top_logprobs)
        numbers = [-9.0 if answer.expectation is None else answer.expectation for answer in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], abs=1e-4)
        plainly = [replace(answer, logprobs=(), top_logprobs=(), expectation=None) for answer in (one, other)]
        assert plainly[0] == plainly[1]
    return True


def settled(engine) -> None:
    """Waits for rest, and says that nothing is left: no page, row, kept mark or ticket."""
    lane, deadline = engine._lanes["default"], time.monotonic() + 20
    while time.monotonic() < deadline and (engine._running or lane.scheduler.busy or lane._flights):
        time.sleep(0.01)
    assert not engine._running
    assert not lane._flights
    lane.prefix.clear()
    assert lane.store.pages.used == 0
    assert len(lane.scheduler._free_rows) == lane.store.rows
    assert not lane.book.seats.any()


@FAST
@pytest.mark.parametrize("name", ["transformer", "hymba", "bimamba"])
def test_answers_are_those_of_looking_at_every_burst(name, fast, tokenizer, engine_of):
    model = make_model(name, tokenizer)
    requests = mixed(40)
    settings = {"max_rows": 12, "chunk_tokens": 9, "burst": 3, "compiled_cpu": fast}
    at_once, later = (engine_of(model, overlap=overlap, **settings) for overlap in (False, True))
    assert same(later.generate(requests), at_once.generate(requests))
    settled(later)


def test_bursts_fly_while_the_last_one_is_looked_at(monkeypatch, engine_of):
    engine = engine_of(overlap=True, burst=2, compiled_cpu=False)
    events, runner = [], engine._lanes["default"].runner
    burst, wait = runner.burst, Download.wait
    monkeypatch.setattr("nlrl.backbones.engine.runner.BURST_SECONDS", 1000.0)
    monkeypatch.setattr(runner, "burst", lambda *a: (events.append("burst"), burst(*a)))
    monkeypatch.setattr(Download, "wait", lambda self: (events.append("look"), wait(self))[1])
    engine.generate([Request(tokens=prompt(1, 4), sampling=Sampling(max_tokens=7, ignore_end=True))])
    assert events == ["burst", "look", "burst", "look", "burst", "look", "look"]


def test_giving_way_changes_no_token(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    page = engine_of(model)._lanes["default"].store.page_nbytes
    engine = engine_of(model, max_rows=4, memory_bytes=10 * page, burst=4, overlap=True)
    requests = [
        Request(tokens=prompt(i, 20), sampling=Sampling(max_tokens=30, ignore_end=True), seed=i) for i in range(6)
    ]
    for request, answer in zip(requests, engine.generate(requests), strict=True):
        assert answer.tokens == plain(model, tokenizer, request)
    assert engine.metrics()["preemptions_total"] > 0
    settled(engine)


@FAST
def test_a_storm_of_cancellations_leaks_nothing_and_touches_nobody_else(fast, tokenizer, engine_of):
    model, chance = make_model("transformer", tokenizer), random.Random(1)
    requests = [request.with_seed(i) for i, request in enumerate(mixed(40) * 10)]
    expected = engine_of(model, overlap=False).generate(requests)
    engine = engine_of(model, overlap=True, max_rows=16, burst=2, compiled_cpu=fast)
    tickets = []
    for request in requests:
        tickets.append(engine.submit(request))
        if chance.random() < 0.4:
            chance.choice(tickets[-20:]).cancel()
    for ticket, answer in zip(tickets, expected, strict=True):
        assert ticket.cancelled() or same([ticket.result(60)], [answer])
    assert any(ticket.cancelled() for ticket in tickets)
    settled(engine)


def test_those_who_must_be_looked_at_and_those_who_need_not_share_a_batch(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    text = engine_of(model).generate([Request(tokens=prompt(5, 9), sampling=Sampling(max_tokens=40, ignore_end=True))])
    special = [
        {"constraint": Constraint("choice", ("abba", "ab", "h g"))},
        {"top_logprobs": 2},
        {"stop": (text[0].text[12:15],), "ignore_end": True},
        {"expected_number": True},
        {"top_k": 5, "top_p": 0.9},
    ]
    requests = mixed(12)
    requests += [
        Request(tokens=prompt(5, 9), sampling=Sampling(max_tokens=40, **one), seed=i)
        for i, one in enumerate(special * 3)
    ]
    random.Random(0).shuffle(requests)
    settings = {"max_rows": 6, "burst": 3, "compiled_cpu": False}
    at_once, later = (engine_of(model, overlap=overlap, **settings).generate(requests) for overlap in (False, True))
    assert same(later, at_once)


def test_a_stream_says_what_the_answer_says(engine_of):
    engine = engine_of(overlap=True, burst=3)
    others = [engine.submit(request) for request in mixed(20)]
    deltas, request = [], Request(tokens=prompt(5, 9), sampling=Sampling(max_tokens=40, ignore_end=True))
    answer = engine.submit(request, on_tokens=deltas.append).result(30)
    assert "".join(delta.text for delta in deltas) == answer.text
    assert sum((delta.tokens for delta in deltas), ()) == answer.tokens
    assert all(ticket.result(30) for ticket in others)
    assert same(engine.generate([request]), [answer])


def test_new_weights_wait_until_nothing_flies(tokenizer, engine_of):
    old, new = make_model("transformer", tokenizer), make_model("transformer", tokenizer, seed=1)
    states = {"old": {k: v.clone() for k, v in old.state_dict().items()}, "new": new.state_dict()}
    engine = engine_of(old, max_rows=3, weight_version="old", overlap=True, burst=2)
    requests = mixed(24)
    tickets = [engine.submit(request) for request in requests]
    tickets[0].result(30)
    engine.load_weights(states["new"], "new")
    answers = [ticket.result(60) for ticket in tickets]
    assert {answer.weight_version for answer in answers} == {"old", "new"}
    judge = make_model("transformer", tokenizer)
    for request, answer in zip(requests, answers, strict=True):
        judge.load_state_dict(states[answer.weight_version])
        assert answer.tokens == plain(judge, tokenizer, request)
    settled(engine)


def test_many_callers_at_once(tokenizer, engine_of):
    model = make_model("transformer", tokenizer)
    engine, requests, found = engine_of(model, max_rows=8, overlap=True), mixed(30), {}
    expected = engine_of(model, overlap=False).generate(requests)

    def ask(start: int) -> None:
        found[start] = engine.generate(requests[start::3])

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert same([found[i % 3][i // 3] for i in range(30)], expected)
    settled(engine)


def test_a_flight_brings_nothing_to_a_seat_that_was_left():
    from nlrl.backbones.engine.sequence import Sequence, Ticket

    def sequence(row: int) -> Sequence:
        out = Sequence((5, 6), Sampling(max_tokens=4), 0, Ticket(lambda ticket: None))
        out.row = row
        return out

    def drawn(*tokens: int) -> Download:
        return Download(torch.tensor([[token] for token in tokens]), torch.zeros(len(tokens), 1))

    book = Ledger(4, 8, frozenset({2}))
    flight = book.depart(book.seat([sequence(0), sequence(1), sequence(3)]), 1, drawn(7, 8, 9))
    book.leave(0)
    book.leave(3)
    book.seat([sequence(3)])
    rows, done, tokens = book.land(flight)
    assert (rows.tolist(), done.tolist(), tokens) == ([1], [False], 1)
    assert [book.answer(row)[0] for row in (1, 3)] == [[8], []]


def test_pages_are_free_when_their_last_holder_lets_go():
    pages = Pages(5)
    mine = pages.take(3)
    pages.share(mine[:2])
    pages.release(mine)
    assert pages.free == 2
    with pytest.raises(IndexError, match="3 pages wanted, 2 free"):
        pages.take(3)
    pages.release(mine[:2])
    assert (pages.free, pages.used) == (4, 0)
    with pytest.raises(AssertionError, match="more often"):
        pages.release(mine[:1])
