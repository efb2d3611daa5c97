"""Gradients from replicas in threads are the gradients of the model."""

import copy

import pytest
import torch

from nlrl.backbones.packing import TokenBatch, TokenExample, pad_rows
from nlrl.backbones.replicas import Replicas
from nlrl.backbones.train_step import target_loss
from nlrl.backbones.training import Trainer
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, tie_word_embeddings=True,
    )  # fmt: skip
    return TransformerForCausalLM(config).double()


def examples(count):
    draw = torch.Generator().manual_seed(1)
    rows = torch.randint(1, 40, (count, 9), generator=draw).tolist()
    return [TokenExample(tuple(row[: 3 + i % 3]), tuple(row[3 + i % 3 :]), 1.0 + i % 2) for i, row in enumerate(rows)]


def share(model, batch):
    total, _ = target_loss(model, batch, masked=False)
    total.backward()
    return total.detach()


def parts(count):
    return [TokenBatch.of(pad_rows(examples(count)[i : i + 2])) for i in range(0, count, 2)]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_gradients_of_replicas_add_up_to_those_of_the_model(model, threads):
    expected = copy.deepcopy(model)
    losses = torch.stack([share(expected, part) for part in parts(8)]).sum()
    found = Replicas(model, threads).gradients(parts(8), share)
    assert found == pytest.approx(float(losses), rel=1e-12)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_replicas_follow_the_weights_of_the_model(model):
    replicas = Replicas(model, 2)
    before = replicas.gradients(parts(4), share)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert float(replicas.gradients(parts(4), share)) != pytest.approx(float(before), rel=1e-3)


def test_training_gives_the_same_weights_with_any_number_of_threads(model):
    weights = []
    for threads in (1, 3):
        chosen = copy.deepcopy(model)
        trainer = Trainer(chosen, learning_rate=1e-3, precision="fp32")
        trainer._step.replicas = Replicas(chosen, threads) if threads > 1 else None
        trainer.fit(examples(24), epochs=2, batch_size=8, seed=3)
        weights.append([parameter.detach().clone() for parameter in chosen.parameters()])
    for one, other in zip(*weights, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)
