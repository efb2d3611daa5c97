"""Two processes that train together end where one process ends, for every kind of loss, and know when they do not.

The two are real: joined by gloo over a port of this machine. They do everything once, and the tests look at it.
"""

from __future__ import annotations

import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from nlrl.backbones.ngpt.configuration import NGPTConfig
from nlrl.backbones.ngpt.modeling import NGPTForCausalLM
from nlrl.backbones.packing import TokenExample
from nlrl.backbones.policy_gradient import PolicyExample, PolicySettings, fit_policy
from nlrl.backbones.preference import PreferenceExample, fit_preferences
from nlrl.backbones.pretraining import BlockStream, PretrainSettings, pretrain
from nlrl.backbones.ranks import ALONE, Ranks, meeting_point
from nlrl.backbones.train_step import TrainStep, make_optimizer, set_learning_rate
from nlrl.backbones.training import Trainer
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.backbones.value_head import ValueExample, ValueHead, WithValueHead, fit_values
from nlrl.errors import NLRLError

SHAPE = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
RATE = {"learning_rate": 2e-3, "weight_decay": 0.0}
CLOSE = 2e-5
"""Of weights after the steps below, which move them by some 1e-2; Adam divides tiny differences of gradients by tiny
gradients."""


def transformer():
    torch.manual_seed(0)
    return TransformerForCausalLM(TransformerConfig(**SHAPE, initializer_range=0.1))


def with_head():
    model = transformer()
    torch.manual_seed(1)
    return WithValueHead(model, ValueHead(32))


def pairs(count):
    """Prompts and completions of very different lengths, and weights."""
    rng = random.Random(5)

    def draw(low, high):
        return tuple(rng.randrange(4, 48) for _ in range(rng.randrange(low, high)))

    return [(draw(1, 20), (*draw(0, 9), 2), rng.choice((0.5, 1.0, 3.0))) for _ in range(count)]


def texts(ranks, model=None):
    model = model or transformer()
    examples = [TokenExample(*pair) for pair in pairs(23)]
    return model, Trainer(model, 2e-3, ranks=ranks).fit(examples, epochs=2, batch_size=6, seed=3)


def one_a_step(ranks):
    """Batches that have nothing for the second process."""
    model = transformer()
    return model, Trainer(model, 2e-3, ranks=ranks).fit([TokenExample(*pair) for pair in pairs(3)], batch_size=1)


def ngpt(ranks):
    torch.manual_seed(0)
    fields = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    return texts(ranks, NGPTForCausalLM(NGPTConfig(**fields)))


def policy(ranks):
    rng, model = random.Random(1), with_head()
    examples = [
        PolicyExample(p, c, tuple(-rng.random() for _ in c), rng.gauss(0, 1), w, (), rng.gauss(0, 1), 0.1)
        for p, c, w in pairs(14)
    ]
    settings = PolicySettings(entropy=0.01, max_kl=0.5)
    return model, fit_policy(model, examples, settings, epochs=3, batch_size=5, seed=2, ranks=ranks, **RATE)


def preferences(ranks):
    model = transformer()
    examples = [PreferenceExample(p, c, (*c[:-1], 7, 2), w) for p, c, w in pairs(11)]
    fitted = fit_preferences(model, examples, 0.3, epochs=2, batch_size=4, seed=2, likelihood=0.1, ranks=ranks, **RATE)
    return model, fitted


def values(ranks):
    model = with_head()
    examples = [ValueExample(p, len(p) / 10, w) for p, _, w in pairs(13)]
    return model, fit_values(model, examples, epochs=2, batch_size=4, seed=2, ranks=ranks, **RATE)


ROWS = PretrainSettings(steps=4, rows=4, row_length=32, workers=0, compile=False, warmup=2, peak_lr=5e-3)


def stream(worker, workers, seed):
    """Examples without end, other ones for each worker."""
    rng = random.Random(f"{worker}/{workers}/{seed}")
    while True:
        prompt, completion, weight = rng.choice(pairs(40))
        yield TokenExample(prompt, completion, weight)


def pretraining(ranks):
    """With all rows in one process where there is one: those that two would have packed."""
    model = transformer()
    if ranks.size == 2:
        return model, pretrain(model, range(48), stream, ROWS, lambda line: None, ranks=ranks)
    halves = [iter(BlockStream(stream, replace(ROWS, rows=2), False, Ranks(rank, 2))) for rank in range(2)]
    optimizer = make_optimizer(model, ROWS.peak_lr, ROWS.betas, ROWS.weight_decay, model.device)
    step, examples = TrainStep(model, optimizer, ROWS.clip, bf16=False), 0
    for number in range(ROWS.steps):
        blocks = [next(half) for half in halves]
        set_learning_rate(optimizer, ROWS.learning_rate(number, 0.0))
        step([block.batch for block in blocks], masked=True)
        examples += sum(block.examples for block in blocks)
    return model, {"examples": examples, "steps": ROWS.steps, "loss": float(step.loss_sum) / ROWS.steps}


KINDS = {
    "texts": texts,
    "ngpt": ngpt,
    "one_a_step": one_a_step,
    "policy": policy,
    "preferences": preferences,
    "values": values,
    "pretraining": pretraining,
}


def outcome(kind, ranks):
    model, metrics = KINDS[kind](ranks)
    told = metrics if isinstance(metrics, dict) else asdict(metrics)
    told.pop("seconds", None)
    return {name: p.detach().clone() for name, p in model.named_parameters()}, told


def work(port, folder, rank):
    torch.set_num_threads(1)
    ranks = Ranks.join(rank, 2, "127.0.0.1", port)
    found = {kind: outcome(kind, ranks) for kind in KINDS}
    apart = transformer()
    if rank:
        next(apart.parameters()).data[0, 0] += 1e-6
    try:
        ranks.check_equal(apart)
        complaint = ""
    except NLRLError as error:
        complaint = str(error)
    torch.save({"found": found, "complaint": complaint, "same": ranks.same(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What each of the two processes found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    store = meeting_point("127.0.0.1", 2)
    command = [sys.executable, __file__, str(store.port), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=60)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_end_where_one_does(pair, kind):
    weights, told = outcome(kind, ALONE)
    together, said = pair[0]["found"][kind]
    apart = max(float((weights[name] - together[name]).abs().max()) for name in weights)
    assert apart < CLOSE
    assert {key: said[key] for key in told} == pytest.approx(told, abs=1e-5)
    for name, tensor in pair[1]["found"][kind][0].items():
        assert torch.equal(tensor, together[name])


def test_the_steps_have_moved_the_weights_far_more_than_that(pair):
    before, (after, _) = dict(transformer().named_parameters()), pair[0]["found"]["texts"]
    assert max(float((before[name].detach() - after[name]).abs().max()) for name in after) > 100 * CLOSE


def test_unit_vectors_stay_unit_vectors_in_every_process(pair):
    model = ngpt(ALONE)[0]
    for found in pair:
        weights, _ = found["found"]["ngpt"]
        model.load_state_dict(weights, strict=False)
        for weight, axis in model.unit_axes():
            assert torch.allclose(weight.norm(dim=axis), torch.ones(()), atol=1e-5)


def test_processes_whose_weights_differ_are_told_so(pair):
    for found in pair:
        assert "ended with different weights (embed_tokens.weight, 1 of" in found["complaint"]
        assert found["same"] is False


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(NLRLError, match="rows is 5, which 2 processes cannot share evenly"):
        pretrain(transformer(), range(48), stream, replace(ROWS, rows=5), ranks=Ranks(0, 2))


def test_shares_are_even_in_tokens_and_together_are_the_batch():
    batch = [TokenExample(prompt, completion) for prompt, completion, _ in pairs(40)]
    shares = [Ranks(rank, 4).share(batch) for rank in range(4)]
    assert sorted(map(repr, batch)) == sorted(repr(each) for share in shares for each in share)
    loads = [sum(map(len, share)) for share in shares]
    assert max(loads) - min(loads) <= max(map(len, batch))
    assert [Ranks(rank, 2).share([replace(batch[0])]) for rank in (0, 1)] == [[batch[0]], []]


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
