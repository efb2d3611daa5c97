"""Autoregressive distillation: the loss and its gradient, on packed rows as on single ones, and in pretraining."""

import random

import pytest
import torch

from nlrl.backbones import BiMambaConfig, BiMambaForCausalLM, TransformerConfig, TransformerForCausalLM
from nlrl.backbones.bimamba.distillation import distillation_loss, distilled_from
from nlrl.backbones.packing import TokenBatch, TokenExample, pack, pad_rows
from nlrl.backbones.pretraining import PretrainSettings, pretrain
from nlrl.backbones.train_step import TrainStep, make_optimizer, target_loss
from nlrl.errors import NLRLError

VOCABULARY = 24
EXAMPLES = [TokenExample((3, 4, 5), (6, 7)), TokenExample((8,), (9, 3, 2), 0.5), TokenExample((4, 4), (5, 2))]


def student(seed: int = 0) -> BiMambaForCausalLM:
    torch.manual_seed(seed)
    sizes = dict(hidden_size=16, num_hidden_layers=2, head_dim=8, state_size=4)
    return BiMambaForCausalLM(BiMambaConfig(vocab_size=VOCABULARY, **sizes))


def teacher(vocab_size: int = VOCABULARY) -> TransformerForCausalLM:
    torch.manual_seed(1)
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    made = TransformerForCausalLM(TransformerConfig(vocab_size=vocab_size, **sizes))
    made.embed_tokens.weight.data.mul_(20)  # so that it is sure of something
    return made


def test_the_loss_and_its_gradient_are_the_published_ones():
    found = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    loss = distillation_loss(found, wanted)
    plain = [-(w.softmax(0) * f.log_softmax(0)).sum() for f, w in zip(found.view(6, 7), wanted.view(6, 7), strict=True)]
    torch.testing.assert_close(loss, torch.stack(plain).mean())
    loss.backward()
    torch.testing.assert_close(found.grad, (found.softmax(-1) - wanted.softmax(-1)).detach() / 6)
    assert wanted.grad is None


def test_it_ends_at_the_entropy_of_the_teacher():
    wanted = torch.randn(5, 7, dtype=torch.float64)
    entropy = torch.distributions.Categorical(logits=wanted).entropy().mean()
    torch.testing.assert_close(distillation_loss(wanted + 3, wanted), entropy)
    assert distillation_loss(torch.randn(5, 7, dtype=torch.float64), wanted) > entropy


def test_a_teacher_that_is_certain_gives_the_loss_of_the_tokens():
    class Certain(torch.nn.Module):
        """Knows each row's next token."""

        def hidden(self, tokens, positions, mask):
            return torch.nn.functional.one_hot(tokens.roll(-1, 1), VOCABULARY).float()

        def logits(self, hidden):
            return 1e4 * hidden

    net, batch = student(), TokenBatch.of(pack(EXAMPLES, 16))
    for found, expected in zip(distilled_from(Certain())(net, batch), target_loss(net, batch), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("static", [False, True])
def test_packed_rows_give_the_documents_own_loss_and_gradients(static):
    """Weighted, on completions only."""
    found = []
    loss = distilled_from(teacher().double())
    for batch, masked in ((TokenBatch.of(pack(EXAMPLES, 16)), True), (TokenBatch.of(pad_rows(EXAMPLES)), False)):
        net = student().double()
        total, weight = loss(net, batch, masked, static)
        total.backward()
        assert weight == 2 + 1.5 + 2
        found.append([total.detach(), *(weight.grad for weight in net.parameters())])
    for packed, alone in zip(*found, strict=True):
        torch.testing.assert_close(packed, alone)


def test_a_step_moves_the_student_and_not_the_teacher():
    net, master = student(), teacher()
    before = [weight.detach().clone() for weight in master.parameters()]
    optimizer = make_optimizer(net, 1e-2, (0.9, 0.98), 0.0, net.device)
    step = TrainStep(net, optimizer, clip=1.0, bf16=False, loss=distilled_from(master))
    batch = TokenBatch.of(pack(EXAMPLES, 16))
    losses = []
    for _ in range(30):
        step.loss_sum.zero_()
        step([batch], masked=True)
        losses.append(float(step.loss_sum))
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(a, b) for a, b in zip(before, master.parameters(), strict=True))
    assert all(weight.grad is None for weight in master.parameters())


def copying(worker, workers, seed):
    """Endless examples whose answer repeats the prompt's last token."""
    rng = random.Random(f"{seed}/{worker}")
    while True:
        prompt = tuple(rng.randrange(4, VOCABULARY) for _ in range(3))
        yield TokenExample(prompt, (prompt[-1], 2))


def test_pretraining_with_a_teacher_brings_the_student_to_it():
    settings = PretrainSettings(steps=60, rows=4, row_length=40, warmup=2, peak_lr=1e-2, log_every=20, compile=False)
    net, master, logs = student(), teacher(), []
    pretrain(net, range(VOCABULARY), copying, settings, logs.append, master)
    batch = TokenBatch.of(pack([e for e, _ in zip(copying(9, 1, 9), range(20), strict=False)], 40))
    with torch.no_grad():
        after, fresh = (distilled_from(master)(model, batch) for model in (net, student()))
        entropy = distilled_from(master)(master, batch)
    assert after[0] / after[1] == pytest.approx(logs[-1]["loss"], abs=0.3)
    assert after[0] - entropy[0] < 0.8 * (fresh[0] - entropy[0])


def test_a_teacher_of_another_vocabulary_is_refused():
    with pytest.raises(NLRLError, match="vocab_size of 30, the student of 24"):
        pretrain(student(), range(VOCABULARY), copying, PretrainSettings(compile=False), print, teacher(30))


def test_the_loss_compiles_without_a_break():
    net, batch = student(), TokenBatch.of(pack(EXAMPLES, 16))
    loss = distilled_from(teacher())
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for found, expected in zip(compiled(net, batch, True, True), loss(net, batch, True, True), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("loss", ["tokens", "teacher"])
def test_without_logits_in_memory_losses_and_gradients_are_the_same(loss, monkeypatch):
    model, batch = student(), TokenBatch.of(pack(EXAMPLES, 16))
    function = target_loss if loss == "tokens" else distilled_from(teacher())
    found = []
    for kept in (False, True):
        for module in ("nlrl.backbones.train_step", "nlrl.backbones.bimamba.distillation"):
            monkeypatch.setattr(f"{module}.keeps_no_logits", lambda model, hidden, kept=kept: not kept)
        total, _ = function(model, batch)
        found.append([total.detach(), *torch.autograd.grad(total, list(model.parameters()))])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
