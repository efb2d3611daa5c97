"""The next token of every row and its log-probability, in plain PyTorch.

    token = argmax over allowed i of (logit_i + temperature * g_i),      g_i standard Gumbel
    logprob = logit_token - log sum over all i of exp(logit_i)

which draws from softmax(logits / temperature) over the allowed tokens (Gumbel-max trick: Maddison, Tarlow, Minka 2014)
and, at temperature 0, takes the likeliest. The noise is a hash of (seed, step, token id), so a row's draw depends
neither on its neighbours nor on the device. With n logits a fused kernel reads n numbers and writes two a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

GAMMA, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Of SplitMix64."""
TOKEN, FINAL_1, FINAL_2 = 0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35
"""Golden ratio, and the finaliser of MurmurHash3."""


def sample(
    logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor, bitmask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draws one token a row.

    Args:
        logits: `(rows, vocab)`, bfloat16, float16, float32 or float64.
        seeds: `(rows,)` int64, any bits.
        steps: `(rows,)` int64, index of the token to be drawn; `()` for all rows the same.
        temperature: `(rows,)` float32, 0 for the likeliest.
        bitmask: `(rows, ceil(vocab / 32))` int32; token i may be drawn where bit `i % 32` (lowest first) of word
            `i // 32` is set. Of a row that allows nothing token 0 is drawn.
    Returns: tokens `(rows,)` int64, of equally high ones the lowest; logprobs `(rows,)` float32 (float64 of float64
        logits), of the softmax over all tokens at temperature 1, whatever mask and temperature.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noise = gumbel_noise(seeds, steps, logits.shape[-1])
    scores = logits + temperature[:, None] * noise
    if bitmask is not None:
        scores = scores.masked_fill(~allowed(bitmask, logits.shape[-1]), -torch.inf)
    tokens = scores.argmax(-1)
    return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def allowed(bitmask: Tensor, vocabulary: int) -> Tensor:
    """The bits as bool `(rows, vocabulary)`."""
    bits = bitmask[..., None] >> torch.arange(32, device=bitmask.device, dtype=torch.int32)
    return (bits & 1).flatten(1)[:, :vocabulary].bool()


def gumbel_noise(seeds: Tensor, step: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 `(batch, vocabulary)`.

    Args:
        seeds: `(batch,)` int64, any bits.
        step: int64, `()` or `(batch,)`: index of the token to be drawn.
    """
    high, low = _row_keys(seeds, step)
    x = torch.arange(vocabulary, device=seeds.device, dtype=torch.int32) * _signed(TOKEN, 32)
    x = x ^ high[:, None]
    x = _fold(x, 16).mul_(_signed(FINAL_1, 32)).add_(low[:, None])
    x = _fold(_fold(x, 16).mul_(_signed(FINAL_1, 32)), 13).mul_(_signed(FINAL_2, 32))
    x = _fold(x, 16).bitwise_and_(0x7FFFFF)
    # 23 bits and a half: exact in float32, so the uniform is never 0 nor 1.
    uniform = x.float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _row_keys(seeds: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit keys of every row: the halves of SplitMix64's output number `step` (Steele, Lea, Flood 2014)."""
    x = seeds + (step + 1) * _signed(GAMMA, 64)
    x = _xor_shift(x, 30, 64) * _signed(MIX_1, 64)
    x = _xor_shift(x, 27, 64) * _signed(MIX_2, 64)
    x = _xor_shift(x, 31, 64)
    return (x >> 32).int(), (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).int()


def _signed(word: int, bits: int) -> int:
    return word - (1 << bits) if word >> (bits - 1) else word


def _xor_shift(x: Tensor, shift: int, bits: int) -> Tensor:
    """`>>` keeps the sign, hence the mask."""
    return x ^ ((x >> shift) & ((1 << (bits - shift)) - 1))


def _fold(x: Tensor, shift: int) -> Tensor:
    """The same of 32-bit words, in place."""
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))
