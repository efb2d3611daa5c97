"""Fine-tuning learns, repeats itself exactly, and resumes; graphs and compilation change nothing."""

import contextlib
import copy
import logging
import math
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nlrl.backbones.packing import TokenBatch, TokenExample, pack
from nlrl.backbones.train_step import TrainStep, make_optimizer
from nlrl.backbones.training import Trainer
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.errors import NLRLError

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", "cuda"] if CUDA else ["cpu"]


@pytest.fixture(params=DEVICES)
def model(request):
    return make_model().to(request.param)


def make_model():
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    return TransformerForCausalLM(config)


def copying(count, seed=0):
    """Prompt of random tokens; the completion repeats its first two."""
    rng = random.Random(seed)
    prompts = [tuple(rng.randrange(4, 60) for _ in range(rng.randrange(2, 9))) for _ in range(count)]
    return [TokenExample(prompt, (*prompt[:2], 2)) for prompt in prompts]


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def close(a, b, tolerance=1e-5):
    return all(torch.allclose(x, y, atol=tolerance) for x, y in zip(a, b, strict=True))


def test_it_learns_what_the_examples_teach(model):
    trainer = Trainer(model, 3e-3, weight_decay=0.0)
    first = trainer.fit(copying(512), epochs=1, batch_size=64)
    last = trainer.fit(copying(512), epochs=25, batch_size=64)
    assert first.loss > 2.5
    assert last.loss < 0.4 * first.loss
    assert (first.steps, first.examples, first.tokens) == (8, 512, sum(map(len, copying(512))))
    assert (last.steps, last.examples, last.tokens) == (200, 25 * 512, 25 * first.tokens)
    assert first.seconds > 0


def test_one_step_is_adamw_on_the_weighted_mean_of_the_targets():
    network, reference = make_model(), make_model()
    data = [
        replace(example, weight=weight) for example, weight in zip(copying(5), (1.0, 2.0, 0.5, 1.0, 3.0), strict=True)
    ]
    metrics = Trainer(network, 1e-3, weight_decay=0.1).fit(data, batch_size=5)
    loss = reference_loss(reference, data)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
    make_optimizer(reference, 1e-3, (0.9, 0.98), 0.1, torch.device("cpu")).step()
    assert metrics.loss == pytest.approx(loss.item(), abs=1e-5)
    assert close(weights(network), weights(reference), 1e-6)


def reference_loss(network, data):
    total, weight = 0.0, 0.0
    for example in data:
        ids = torch.tensor([example.prompt + example.completion])
        logprobs = network.logits(network.hidden(ids, torch.arange(ids.shape[1])[None])).log_softmax(-1)[0]
        for place in range(len(example.prompt), ids.shape[1]):
            total = total - example.weight * logprobs[place - 1, ids[0, place]]
            weight += example.weight
    return total / weight


def test_the_seed_decides_the_order_and_nothing_else_does():
    def after(seed):
        network = make_model()
        random.seed(seed + 1)  # a global generator that the trainer must not look at
        torch.manual_seed(seed + 1)
        Trainer(network, 1e-3).fit(copying(100), batch_size=16, seed=seed)
        return weights(network)

    assert close(after(1), after(1), 0)
    assert not close(after(1), after(2), 1e-7)


def test_every_example_is_used_once_an_epoch_in_even_batches(monkeypatch):
    sizes = []
    network = make_model()
    trainer = Trainer(network, 1e-3)
    step = trainer._step
    monkeypatch.setattr(
        trainer, "_step", lambda parts, masked: sizes.append(sum(len(p.tokens) for p in parts)) or step(parts, masked)
    )
    trainer._step.loss_sum = step.loss_sum
    trainer.fit(copying(101), batch_size=25)
    assert sizes == [21, 20, 20, 20, 20]


def test_learning_rate_can_be_set_for_one_call():
    network = make_model()
    before = weights(network)
    trainer = Trainer(network, 1e-3)
    trainer.fit(copying(8), learning_rate=0.0)
    assert close(weights(network), before, 0)
    trainer.fit(copying(8))
    assert not close(weights(network), before, 1e-5)


def test_a_resumed_trainer_goes_on_as_if_nothing_had_happened(model, tmp_path):
    trainer = Trainer(model, 1e-3)
    trainer.fit(copying(64), batch_size=16, seed=1)
    torch.save({"model": model.state_dict(), "trainer": trainer.state_dict()}, tmp_path / "state.pt")
    trainer.fit(copying(64), batch_size=16, seed=2)

    fresh = make_model().to(model.device)
    resumed = Trainer(fresh, 1e-3)
    state = torch.load(tmp_path / "state.pt")
    fresh.load_state_dict(state["model"])
    resumed.load_state_dict(state["trainer"])
    resumed.fit(copying(64), batch_size=16, seed=2)
    assert close(weights(fresh), weights(model), 1e-6)

    forgetful = make_model().to(model.device)
    forgetful.load_state_dict(state["model"])
    Trainer(forgetful, 1e-3).fit(copying(64), batch_size=16, seed=2)
    assert not close(weights(forgetful), weights(model), 1e-5)


def test_an_optimizer_state_of_another_model_is_refused():
    trainer = Trainer(make_model(), 1e-3)
    trainer.fit(copying(4))
    other = TransformerForCausalLM(
        TransformerConfig(vocab_size=64, hidden_size=64, num_hidden_layers=1, num_attention_heads=4)
    )
    with pytest.raises(NLRLError, match="another model"):
        Trainer(other, 1e-3).load_state_dict(trainer.state_dict())


def test_after_step_follows_every_step_and_models_may_refuse_decay(monkeypatch):
    network = make_model()
    calls = []
    monkeypatch.setattr(network, "after_step", lambda: calls.append(1))
    Trainer(network, 1e-3).fit(copying(10), batch_size=2)
    assert len(calls) == 5
    network.no_weight_decay = True
    assert {group["weight_decay"] for group in Trainer(network, 1e-3).optimizer.param_groups} == {0.0}


def test_progress_is_reported(model):
    seen = []
    Trainer(model, 1e-3).fit(
        copying(10), epochs=2, batch_size=5, progress=lambda done, steps: seen.append((done, steps))
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(("arguments", "named"), [({"epochs": 0}, "epochs 0"), ({"batch_size": 0}, "batch_size 0")])
def test_impossible_calls_are_refused(arguments, named):
    with pytest.raises(NLRLError, match=named):
        Trainer(make_model(), 1e-3).fit(copying(2), **arguments)


def test_nothing_to_train_on_is_refused():
    with pytest.raises(NLRLError, match="0 examples"):
        Trainer(make_model(), 1e-3).fit([])


def test_divergence_is_reported():
    with pytest.raises(NLRLError, match="diverged"):
        Trainer(make_model(), math.inf).fit(copying(10), batch_size=2)


def test_training_leaves_the_models_mode_alone():
    network = make_model().eval()
    Trainer(network, 1e-3).fit(copying(4))
    assert not network.training


def test_static_and_packed_steps_equal_padded_ones():
    padded, packed = make_model(), make_model()
    Trainer(padded, 1e-3).fit(copying(40), batch_size=40)
    step = TrainStep(packed, make_optimizer(packed, 1e-3, (0.9, 0.98), 0.05, torch.device("cpu")), 1.0, bf16=False)
    step._step([TokenBatch.of(pack(copying(40), 32, rows=24)).small()], masked=True, static=True)
    assert close(weights(padded), weights(packed), 1e-5)


def test_a_compiler_that_fails_is_done_without(caplog):
    def broken(*_):
        raise RuntimeError("no compiler here")

    plain, stubborn = make_model(), make_model()
    Trainer(plain, 1e-3).fit(copying(20), batch_size=10)
    trainer = Trainer(stubborn, 1e-3)
    trainer._step.compiled = broken
    with caplog.at_level(logging.WARNING):
        trainer.fit(copying(20), batch_size=10)
    assert close(weights(plain), weights(stubborn), 0)
    assert caplog.text.count("no compiler here") == 1


def rehearse(trainer, monkeypatch):
    """Makes the trainer use graphs that are not captured but run: static buffers without CUDA."""
    step = trainer._step

    def capture(batch):
        static = TokenBatch(*(tensor.clone() for tensor in batch))
        replay = lambda: step._step([static], masked=True, static=True)  # noqa: E731
        return SimpleNamespace(replay=replay), static

    step.graphs = True
    monkeypatch.setattr(step, "_capture", capture)
    monkeypatch.setattr(step, "_on_capture_stream", contextlib.nullcontext)
    monkeypatch.setattr(TokenBatch, "pinned", lambda batch: batch)
    monkeypatch.setattr(trainer, "_packs", True)


def test_static_buffers_train_like_eager_steps(monkeypatch):
    eager, static = make_model(), make_model()
    trainers = [Trainer(network, 1e-3) for network in (eager, static)]
    rehearse(trainers[1], monkeypatch)
    for count in (320, 50):
        losses = [trainer.fit(copying(count), epochs=2, batch_size=32, learning_rate=5e-4).loss for trainer in trainers]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert len(trainers[1]._step._captured) == 1
    assert close(weights(eager), weights(static), 1e-4)


def test_a_capture_that_fails_is_done_without(monkeypatch, caplog):
    plain, stubborn = make_model(), make_model()
    Trainer(plain, 1e-3).fit(copying(200), batch_size=20)
    trainer = Trainer(stubborn, 1e-3)
    rehearse(trainer, monkeypatch)
    monkeypatch.setattr(trainer._step, "_capture", lambda batch: (_ for _ in ()).throw(RuntimeError("no capture here")))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    trainer.fit(copying(200), batch_size=20)
    assert close(weights(plain), weights(stubborn), 1e-4)
    assert caplog.text.count("no capture here") == 1


def test_a_static_step_asks_the_host_nothing():
    """Tensors without data have no values to look at: what runs on them can be captured in a graph."""
    with FakeTensorMode():
        network = make_model()
        step = TrainStep(network, make_optimizer(network, 1e-3, (0.9, 0.98), 0.05, torch.device("cpu")), 1.0, bf16=True)
        zeros = [torch.zeros(4, 32, dtype=dtype) for dtype in (torch.int16, torch.int16, torch.int16, torch.float16)]
        step._step([TokenBatch(*zeros)], masked=True, static=True)
    assert step.loss_sum.shape == ()


@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("compile", [False, True])
def test_graphs_train_like_eager_steps(compile, caplog):
    networks = [make_model().cuda() for _ in range(2)]
    options = ({"graphs": False}, {"graphs": True, "compile": compile})
    trainers = [Trainer(n, 1e-3, precision="fp32", **o) for n, o in zip(networks, options, strict=True)]
    for _ in range(2):  # the second call has another learning rate and uses the graphs of the first
        losses = [trainer.fit(copying(320), epochs=2, batch_size=32, learning_rate=5e-4).loss for trainer in trainers]
        assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    assert trainers[1]._step._captured, f"no graph was captured: {caplog.text}"
    assert not compile or trainers[1]._step.compiled is not None, caplog.text
    assert close(weights(networks[0]), weights(networks[1]), 2e-3)
    state = copy.deepcopy(trainers[1].state_dict())
    trainers[1].load_state_dict(state)
    assert not trainers[1]._step._captured
    trainers[1].fit(copying(64), batch_size=32)
