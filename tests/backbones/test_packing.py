"""Packed rows teach exactly what separate documents teach."""

import random

import numpy as np
import pytest
import torch

from nlrl.backbones.packing import TokenBatch, TokenExample, block_mask, pack, pad_rows
from nlrl.backbones.train_step import target_loss
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM
from nlrl.errors import NLRLError


def examples(count, seed=0, longest=30):
    rng = random.Random(seed)

    def tokens(n):
        return tuple(rng.randrange(3, 60) for _ in range(n))

    return [
        TokenExample(
            tokens(rng.randrange(1, longest // 2)), tokens(rng.randrange(1, longest // 2)), rng.choice([0.5, 1.0, 2.0])
        )
        for _ in range(count)
    ]


def documents_of(packed):
    found = []
    for row in range(len(packed.tokens)):
        for number in range(1, packed.documents[row].max() + 1):
            places = packed.documents[row] == number
            assert packed.positions[row][places].tolist() == list(range(places.sum()))
            found.append((tuple(packed.tokens[row][places]), tuple(packed.weights[row][places])))
    return sorted(found)


def expected_documents(given):
    return sorted((e.prompt + e.completion, (0.0,) * len(e.prompt) + (e.weight,) * len(e.completion)) for e in given)


def test_every_example_is_packed_once_with_its_weights():
    given = examples(200)
    packed = pack(given, 64)
    assert documents_of(packed) == expected_documents(given)
    assert packed.leftover == []
    assert packed.examples == 200


def test_rows_are_nearly_full():
    packed = pack(examples(1000), 128)
    assert packed.fill > 0.97
    assert packed.fill == pytest.approx(sum(map(len, examples(1000))) / packed.tokens.size)


def test_a_given_number_of_rows_is_kept_and_the_rest_returned():
    given = examples(200)
    packed = pack(given, 64, rows=10)
    assert packed.tokens.shape == (10, 64)
    assert documents_of(packed) == expected_documents(set(given) - set(packed.leftover))
    assert packed.examples + len(packed.leftover) == 200
    assert pack(given[:1], 64, rows=10).tokens.shape == (10, 64)


def test_padding_is_no_target_and_no_document():
    packed = pack([TokenExample((5, 6), (7,))], 8)
    assert packed.tokens.tolist() == [[5, 6, 7, 0, 0, 0, 0, 0]]
    assert packed.weights.tolist() == [[0, 0, 1, 0, 0, 0, 0, 0]]
    assert packed.documents.tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]


def test_a_document_without_a_prompt_does_not_learn_from_its_neighbour():
    packed = pack([TokenExample((5, 6, 8), (7,)), TokenExample((), (9, 10))], 6)
    assert packed.weights.tolist() == [[0, 0, 0, 1, 0, 1]]


@pytest.mark.parametrize("bad", [TokenExample((1,) * 5, (2,) * 4), TokenExample((), ())])
def test_examples_that_fit_no_row_are_refused(bad):
    with pytest.raises(NLRLError, match="1 to 8"):
        pack([TokenExample((1,), (2,)), bad], 8)
    with pytest.raises(NLRLError, match="1 to 8"):
        pad_rows([bad], 8)


def test_block_mask_is_causal_within_documents():
    mask = block_mask(torch.tensor([[1, 1, 2, 2, 0, 0]]))
    assert mask.shape == (1, 1, 6, 6)
    expected = np.zeros((6, 6), bool)
    for start in (0, 2, 4):
        expected[start : start + 2, start : start + 2] = [[True, False], [True, True]]
    assert mask[0, 0].tolist() == expected.tolist()


def model():
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
    )
    return TransformerForCausalLM(config).double()


def loss_and_gradients(network, batch, masked=True):
    network.zero_grad()
    total, weight = target_loss(network, batch, masked)
    total.backward()
    return total.item(), weight.item(), [p.grad.clone() for p in network.parameters()]


def test_packed_loss_and_gradients_are_the_sum_of_the_documents_own():
    given, network = examples(40), model()
    packed = TokenBatch.of(pack(given, 64))
    total, weight, gradients = loss_and_gradients(network, packed)
    alone = [loss_and_gradients(network, TokenBatch.of(pad_rows([example])), masked=False) for example in given]
    assert total == pytest.approx(sum(loss for loss, _, _ in alone), rel=1e-6)
    assert weight == pytest.approx(sum(e.weight * len(e.completion) for e in given))
    for packed_gradient, separate in zip(gradients, zip(*(g for _, _, g in alone), strict=True), strict=True):
        assert torch.allclose(packed_gradient, sum(separate), rtol=1e-4, atol=1e-6)


def test_without_the_mask_documents_would_leak():
    packed = TokenBatch.of(pack(examples(40), 64))
    network = model()
    assert abs(loss_and_gradients(network, packed)[0] - loss_and_gradients(network, packed, masked=False)[0]) > 1e-3


def test_padded_rows_need_no_mask():
    padded = TokenBatch.of(pad_rows(examples(20), 40))
    network = model()
    assert loss_and_gradients(network, padded, masked=False)[0] == pytest.approx(
        loss_and_gradients(network, padded)[0], rel=1e-6
    )


def test_sixteen_bits_carry_a_batch():
    packed = TokenBatch.of(pack(examples(40), 64))
    small = packed.small()
    assert {tensor.element_size() for tensor in small} == {2}
    for a, b in zip(packed, small, strict=True):
        assert torch.equal(a, b.to(a.dtype))
