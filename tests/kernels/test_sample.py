"""Sampling: every implementation against the definition, and the noise against whole numbers of Python."""

import math

import pytest
import torch

from nlrl import kernels
from nlrl.kernels.sample import reference

BITS_64 = (1 << 64) - 1
BITS_32 = (1 << 32) - 1


def by_hand(seed: int, step: int, token: int) -> float:
    """Gumbel noise, hashed with integers of any size."""
    x = (seed + (step + 1) * 0x9E3779B97F4A7C15) & BITS_64
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ (x >> shift)) * factor & BITS_64
    y = token * 0x9E3779B1 & BITS_32 ^ (x >> 32)
    y = ((y ^ (y >> 16)) * 0x85EBCA6B + (x & BITS_32)) & BITS_32
    y = (y ^ (y >> 16)) * 0x85EBCA6B & BITS_32
    y = (y ^ (y >> 13)) * 0xC2B2AE35 & BITS_32
    return -math.log(-math.log((((y ^ (y >> 16)) & 0x7FFFFF) + 0.5) / (1 << 23)))


def inputs(rows, vocabulary, dtype=torch.float32, spread=3.0, device="cpu"):
    """Logits, seeds, steps, temperatures (every fifth row greedy), bits."""
    draw = torch.Generator().manual_seed(rows + vocabulary)
    logits = (spread * torch.randn(rows, vocabulary, generator=draw)).to(dtype)
    seeds = torch.randint(-(1 << 63), (1 << 63) - 1, (rows,), generator=draw)
    steps = torch.randint(0, 5000, (rows,), generator=draw)
    temperature = 0.2 + 2 * torch.rand(rows, generator=draw)
    temperature[::5] = 0
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (rows, -(-vocabulary // 32)), generator=draw).int()
    return [x.to(device) for x in (logits, seeds, steps, temperature, bits)]


def test_noise_is_the_hash():

    _, seeds, steps, *_ = inputs(20, 40)
    noise = reference.gumbel_noise(seeds, steps, 40)
    expected = [
        [by_hand(a, b, token) for token in range(40)] for a, b in zip(seeds.tolist(), steps.tolist(), strict=True)
    ]
    torch.testing.assert_close(noise, torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert torch.equal(reference.gumbel_noise(seeds, steps[3], 40)[3], noise[3])


def test_draws_follow_the_softmax_at_their_temperature():
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    rows = 20000
    tokens, _ = kernels.sample(
        logits.expand(rows, -1), torch.arange(rows), torch.tensor(7), torch.full((rows,), 0.8), None
    )
    found = torch.bincount(tokens, minlength=4) / rows
    torch.testing.assert_close(found, (logits / 0.8).softmax(-1), rtol=0, atol=0.015)


def check_greedy_and_ties(function, device="cpu"):
    """At temperature 0 the likeliest, of equals the lowest, and the next best where the mask forbids it."""
    logits = torch.zeros(3, 5000, device=device)
    logits[:, [4100, 7, 4999]] = 2.0
    bits = torch.full((3, 157), -1, dtype=torch.int32, device=device)
    bits[1, 0] = ~(1 << 7)
    bits[2] = 0
    seeds, steps = torch.arange(3, device=device), torch.zeros(3, dtype=torch.int64, device=device)
    tokens, logprobs = function(logits, seeds, steps, torch.zeros(3, device=device), bits)
    assert tokens.tolist() == [7, 4100, 0]
    whole = 2 - math.log(3 * math.exp(2) + 4997)
    assert logprobs.tolist() == pytest.approx([whole, whole, whole - 2], abs=1e-5)


def check_mask(function, device="cpu"):
    """Every token drawn is allowed, and all allowed ones are drawn."""
    seeds = torch.arange(60, device=device)
    bits = torch.tensor([[-(1 << 31), 0b101]], dtype=torch.int32, device=device).expand(60, -1)
    tokens, _ = function(torch.zeros(60, 40, device=device), seeds, seeds, torch.ones(60, device=device), bits)
    assert sorted(set(tokens.tolist())) == [31, 32, 34]


def test_greedy_rows_take_the_lowest_of_the_likeliest():
    check_greedy_and_ties(kernels.sample)


def test_only_allowed_tokens_are_drawn():
    check_mask(kernels.sample)


def test_logprobs_are_those_of_all_tokens_at_temperature_one():
    logits, *rest = inputs(30, 100, torch.float64)
    tokens, logprobs = kernels.sample(logits, *rest)
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0])


def test_a_row_is_drawn_alike_whatever_its_neighbours():
    arguments = inputs(9, 200)
    tokens, _ = kernels.sample(*arguments)
    alone, _ = kernels.sample(*(x[4:5] for x in arguments))
    assert alone.item() == tokens[4].item()


def assert_same(function, arguments) -> None:
    """The reference's tokens (scores that rounding could swap aside), log-probabilities to 2e-6 of the largest sum."""
    tokens, logprobs = function(*arguments)
    assert (tokens.dtype, logprobs.dtype) == (torch.int64, torch.float32)
    expected, exact = reference.sample(arguments[0].double(), *arguments[1:])
    differ = tokens != expected
    assert differ.sum() <= len(tokens) // 1000
    torch.testing.assert_close(logprobs[~differ].double(), exact[~differ], rtol=2e-6, atol=2e-6)


def check_triton(device: str) -> None:
    """Run in a process of its own on a CPU, where the interpreter must be chosen before Triton is imported."""
    from nlrl.kernels.sample.triton import sample

    shapes = [(8, 33), (4, 1024), (2, 9000)]
    if device == "cuda":
        shapes += [(3000, 1024), (256, 128000), (1, 128001)]
    for shape in shapes:
        for dtype, spread in ((torch.float32, 0.0), (torch.float32, 3.0), (torch.bfloat16, 3.0), (torch.float16, 8.0)):
            *arguments, bits = inputs(*shape, dtype, spread, device)
            assert_same(sample, [*arguments, None])
            assert_same(sample, [*arguments, bits])
    logits, *rest = inputs(6, 50, device=device)
    wider = torch.cat([logits, logits + 100], 1)
    assert torch.equal(sample(wider[:, :50], *rest)[0], sample(logits, *rest)[0])
    logits[:, :40] = -torch.inf
    assert_same(sample, [logits, *rest[:3], None])
    seeds, steps, *_ = rest
    same = sample(logits, seeds, steps[0], *rest[2:]), sample(logits, seeds, steps[:1].expand(6), *rest[2:])
    assert torch.equal(same[0][0], same[1][0])
    assert sample(logits[:0], *(x[:0] for x in rest))[0].shape == (0,)
    check_greedy_and_ties(sample, device)
    check_mask(sample, device)


def test_triton_kernel_in_the_interpreter(interpreted):
    interpreted(__file__)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernel_on_the_device():
    check_triton("cuda")
    arguments = inputs(3000, 1024, torch.bfloat16, device="cuda")
    assert torch.equal(kernels.sample(*arguments)[0], kernels.sample(*arguments)[0])
    assert kernels.sample.provider("nlrl").__module__.endswith("triton")


if __name__ == "__main__":
    check_triton("cpu")
