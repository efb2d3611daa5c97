"""Pretraining learns from a stream, follows its schedule and its clock, and says what it did."""

import itertools
import math
import multiprocessing
import random
import time

import pytest
import torch

from nlrl.backbones.packing import TokenExample
from nlrl.backbones.pretraining import BlockStream, PretrainSettings, pretrain
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.errors import NLRLError

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if CUDA else ["cpu"]
TOKENIZER = range(64)  # only its size matters here


def make_model():
    torch.manual_seed(0)
    return TransformerForCausalLM(
        TransformerConfig(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    )


def copying(worker, workers, seed):
    """Endless examples whose answer repeats the prompt's last token twice."""
    rng = random.Random(f"{seed}/{worker}")
    while True:
        prompt = tuple(rng.randrange(4, 60) for _ in range(rng.randrange(2, 9)))
        yield TokenExample(prompt, (prompt[-1], prompt[-1], 2))


def settings(**changes):
    return PretrainSettings(
        **{"steps": 10, "rows": 8, "row_length": 64, "warmup": 2, "log_every": 5, "compile": False, **changes}
    )


def drain(*_):
    pass


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns_from_the_stream_and_says_what_it_did(device):
    logs = []
    network = make_model().to(device)
    metrics = pretrain(
        network, TOKENIZER, copying, settings(steps=150, rows=16, peak_lr=1e-2, log_every=50), logs.append
    )
    assert [log["steps"] for log in logs] == [50, 100, 150]
    assert metrics["loss"] < 0.1 * logs[0]["loss"]
    assert metrics["padded_tokens"] == 150 * 16 * 64
    assert 0.97 * metrics["padded_tokens"] < metrics["tokens"] <= metrics["padded_tokens"]
    assert metrics["examples"] == pytest.approx(metrics["tokens"] / 8, rel=0.1)
    assert metrics["seconds"] > 0
    assert metrics["tokens_per_second"] > 0
    assert not network.training


def test_the_seed_repeats_a_run():
    def after(seed):
        network = make_model()
        pretrain(network, TOKENIZER, copying, settings(seed=seed), drain)
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    assert torch.equal(after(1), after(1))
    assert not torch.equal(after(1), after(2))


def test_workers_feed_different_examples_and_end_with_the_run():
    seen = []

    def stream(worker, workers, seed):
        assert workers == 2
        return (
            (seen.append(e), e)[1]
            for e in (TokenExample((worker + 10, i % 50), (worker + 10, 2)) for i in itertools.count())
        )

    metrics = pretrain(make_model(), TOKENIZER, stream, settings(workers=2), drain)
    assert metrics["steps"] == 10
    assert seen == [], "examples are drawn in other processes"
    assert multiprocessing.active_children() == []


def test_no_example_is_lost_or_repeated_between_blocks():
    given = list(itertools.islice(copying(0, 1, 0), 300))
    blocks = list(BlockStream(lambda *_: iter(given), settings(), small=True))
    assert sum(block.examples for block in blocks) == 300
    assert sum(block.tokens for block in blocks) == sum(map(len, given))
    assert {tuple(block.batch.tokens.shape) for block in blocks} == {(8, 64)}


def test_a_stream_that_ends_ends_the_run():
    metrics = pretrain(make_model(), TOKENIZER, lambda *_: itertools.islice(copying(0, 1, 0), 100), settings(), drain)
    assert metrics["examples"] == 100
    assert metrics["steps"] == 2


def test_the_schedule_warms_up_and_ends_at_its_fraction():
    chosen = settings(steps=1000, warmup=100, peak_lr=1.0, final_fraction=0.1)
    assert chosen.learning_rate(0, 0.0) == pytest.approx(0.01)
    assert chosen.learning_rate(99, 0.0) == pytest.approx(1.0, abs=0.03)
    assert chosen.learning_rate(500, 0.0) == pytest.approx(0.55)
    assert chosen.learning_rate(1000, 0.0) == pytest.approx(0.1)
    assert settings(warmup=0, peak_lr=1.0).learning_rate(0, 0.0) == 1.0


def test_with_a_time_limit_the_cosine_follows_the_clock():
    chosen = settings(steps=0, warmup=0, peak_lr=1.0, final_fraction=0.0, max_seconds=10.0)
    assert chosen.learning_rate(7, 5.0) == pytest.approx(0.5)
    assert chosen.progress(7, 10.0) == 1.0
    assert settings(steps=7, max_seconds=10.0).progress(7, 1.0) == 1.0


def test_the_time_limit_stops_the_run():
    began = time.monotonic()
    metrics = pretrain(make_model(), TOKENIZER, copying, settings(steps=0, max_seconds=1.0), drain)
    assert time.monotonic() - began < 5
    assert metrics["steps"] > 1
    assert metrics["learning_rate"] < 0.5 * settings().peak_lr


def test_divergence_is_reported():
    with pytest.raises(NLRLError, match="diverged"):
        pretrain(make_model(), TOKENIZER, copying, settings(peak_lr=math.inf, warmup=0), drain)


def test_what_cannot_work_is_refused_at_once():
    with pytest.raises(NLRLError, match="100 tokens"):
        pretrain(make_model(), range(100), copying, settings(), drain)
    with pytest.raises(NLRLError, match="max_seconds"):
        settings(steps=0)
    with pytest.raises(NLRLError, match="log_every"):
        settings(log_every=0)
    with pytest.raises(NLRLError, match="row length"):
        pretrain(make_model(), TOKENIZER, lambda *_: iter([TokenExample((5,) * 60, (6,) * 6)]), settings(), drain)


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_the_graph_trains_like_the_cpu(compile, caplog):
    losses = [
        pretrain(
            make_model().to(device), TOKENIZER, copying, settings(steps=60, rows=16, workers=2, compile=compile), drain
        )["loss"]
        for device in ("cpu", "cuda")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=0.1)
    assert "from now on" not in caplog.text
