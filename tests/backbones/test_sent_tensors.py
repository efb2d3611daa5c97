"""Weights come out of a message as they went in, and lie beside it, not in it."""

import pickle

import pytest
import torch

from nlrl.backbones.sent_tensors import SentTensors

TIED = torch.randn(6, 4)
STATE = {
    "matrix": torch.randn(8, 4).t(),
    "half": torch.randn(3, 5).bfloat16(),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "tied": TIED,
    "tied too": TIED,
}


def sent(tensors):
    """What arrives, and the bytes of the message and of what lies beside it."""
    beside = []
    message = pickle.dumps(tensors, protocol=5, buffer_callback=beside.append)
    return pickle.loads(message, buffers=beside), len(message), sum(each.raw().nbytes for each in beside)


def test_every_tensor_arrives_whatever_its_type_and_shape():
    found, _, _ = sent(SentTensors.of(STATE))
    assert list(found) == list(STATE)
    for name, tensor in STATE.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def test_numbers_lie_beside_the_message_and_tied_ones_once():
    tensors = SentTensors.of({"large": torch.randn(512, 512), "again": TIED, "tied": TIED})
    _, inside, beside = sent(tensors)
    assert beside == tensors.nbytes == 512 * 512 * 4 + TIED.nbytes
    assert inside < 2000


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_they_are_rounded_before_they_travel_and_are_copies(dtype):
    source = {"weight": torch.randn(4, 4), "count": torch.tensor(3)}
    tensors = SentTensors.of(source, dtype)
    wanted = source["weight"].clone().to(dtype or torch.float32)
    source["weight"].zero_()
    assert torch.equal(tensors["weight"], wanted)
    assert tensors["count"].dtype == torch.int64
