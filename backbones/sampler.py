"""From logits to the next token, vectorised over rows that each have their own settings.

1. A token is drawn by the Gumbel-max trick: `argmax(logits + temperature * g)`, g standard Gumbel (Maddison, Tarlow,
   Minka 2014). Temperature 0 is therefore greedy without a special case, and small rounding differences seldom change a
   choice.
2. The noise is a hash of (seed, step, token id). No generator is advanced, so a row's draw depends neither on its
   neighbours nor on the device.
3. The first number of an answer can be read as an expectation instead of drawn (`Sampling.expected_number`).
4. All of it is tensor arithmetic without host decisions, so that it can live in a CUDA graph.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NUMBER = re.compile(r"[+-]\d\.\d\d")
_GAMMA, _MIX_1, _MIX_2 = (c - (1 << 64) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_TOKEN, _FINAL_1, _FINAL_2 = 0x9E3779B1 - (1 << 32), 0x85EBCA6B - (1 << 32), 0xC2B2AE35 - (1 << 32)


def signed_seed(seed: int) -> int:
    """A Python integer as the 64-bit pattern that `gumbel_noise` takes."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def _xor_shift(x: Tensor, shift: int, bits: int) -> Tensor:
    return x ^ ((x >> shift) & ((1 << (bits - shift)) - 1))


def _row_keys(seeds: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit keys of every row: the halves of SplitMix64's output number `step` (Steele, Lea, Flood 2014)."""
    x = seeds + (step + 1) * _GAMMA
    x = _xor_shift(x, 30, 64) * _MIX_1
    x = _xor_shift(x, 27, 64) * _MIX_2
    x = _xor_shift(x, 31, 64)
    return (x >> 32).int(), (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).int()


def gumbel_noise(seeds: Tensor, step: Tensor, vocabulary: int) -> Tensor:
    """Standard Gumbel noise, float32 `(batch, vocabulary)`.

    Args:
        seeds: `(batch,)` int64, from `signed_seed`.
        step: int64, `()` or `(batch,)`: index of the token to be drawn.
    """
    high, low = _row_keys(seeds, step)
    x = torch.arange(vocabulary, device=seeds.device, dtype=torch.int32) * _TOKEN
    x = x ^ high[:, None]
    x = _fold(x, 16).mul_(_FINAL_1).add_(low[:, None])
    x = _fold(_fold(x, 16).mul_(_FINAL_1), 13).mul_(_FINAL_2)
    x = _fold(x, 16).bitwise_and_(0x7FFFFF)
    # 23 bits and a half: exact in float32, so the uniform is never 0 nor 1.
    uniform = x.float().add_(0.5).mul_(2.0**-23)
    return uniform.log_().neg_().log_().neg_()


def _fold(x: Tensor, shift: int) -> Tensor:
    """In-place xor-shift of 32-bit words (`>>` keeps the sign, hence the mask)."""
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits with -inf outside each row's top-k and, among those, outside its top-p nucleus at its temperature.

    Args:
        logits: float32 `(batch, vocab)`.
        temperature, top_p: `(batch,)`; top_k: `(batch,)` int64, 0 keeps all. The likeliest token always stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    out = (rank >= top_k[:, None]) & (top_k > 0)[:, None]
    scaled = (ordered / temperature.clamp_min(1e-4)[:, None]).masked_fill(out, -torch.inf)
    probability = scaled.softmax(-1)
    out |= probability.cumsum(-1) - probability >= top_p[:, None]
    out[:, 0] = False
    return logits.masked_fill(torch.zeros_like(out).scatter_(1, index, out), -torch.inf)


@dataclass
class NumberTokens:
    """The vocabulary's signed two-decimal numbers, as tensors on one device."""

    ids: Tensor
    """`(numbers,)` int64."""
    values: Tensor
    """`(numbers,)` float32."""
    is_number: Tensor
    """`(vocab,)` bool."""
    form: Tensor
    """`(vocab,)` int64: which leading text ("", " ", ...) a number token has."""
    off_grid: Tensor
    """`(numbers,)` bool: never written as an expectation."""

    @classmethod
    def of(cls, tokenizer, vocabulary: int, grid: float, device: torch.device) -> NumberTokens | None:
        """Tokens that read like `+0.42` with |value| <= 1, surrounding space aside; None if there are none.

        Args:
            vocabulary: number of logits, at least the tokenizer's size.
            grid: numbers are written as multiples of this only; 0 for all.
        """
        # "+0.00" before "-0.00": of equally near tokens the first is written.
        found = sorted(_numbers(tokenizer, vocabulary), key=lambda number: (number.value, number.text))
        if not found:
            return None
        ids = torch.tensor([number.token for number in found], device=device)
        values = torch.tensor([number.value for number in found], dtype=torch.float64)
        off_grid = (
            (torch.round(values / grid) * grid - values).abs() > 1e-6
            if grid
            else torch.zeros(len(found), dtype=torch.bool)
        )
        forms = {text: i for i, text in enumerate(dict.fromkeys(number.form for number in found))}
        form = torch.zeros(vocabulary, dtype=torch.int64, device=device)
        form[ids] = torch.tensor([forms[number.form] for number in found], device=device)
        is_number = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        is_number[ids] = True
        off_grid = off_grid & ~off_grid.all()
        return cls(ids, values.float().to(device), is_number, form, off_grid.to(device))

    def expectation(self, logits: Tensor) -> Tensor:
        """Mean value under the softmax over number tokens alone, float32 `(batch,)`; logits `(batch, vocab)`."""
        return logits[:, self.ids].softmax(-1) @ self.values

    def nearest(self, expectation: Tensor, token: Tensor) -> Tensor:
        """The number token on the grid nearest to `expectation`, with the leading space `token` has. All `(batch,)`."""
        distance = (self.values - expectation[:, None]).abs().masked_fill(self.off_grid, torch.inf)
        other_form = self.form[self.ids] != self.form[token][:, None]
        return self.ids[(distance + 10.0 * other_form).argmin(-1)]


@dataclass(frozen=True)
class _Number:
    token: int
    text: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def form(self) -> str:
        return self.text.replace(self.text.strip(), "#")


def _numbers(tokenizer, vocabulary: int) -> list[_Number]:
    candidates = [i for text, i in tokenizer.get_vocab().items() if "." in text and len(text) < 12 and i < vocabulary]
    numbers = (_Number(i, tokenizer.decode([i])) for i in candidates)
    return [n for n in numbers if NUMBER.fullmatch(n.text.strip()) and abs(n.value) <= 1]


@dataclass
class Settings:
    """Each row's sampling settings as tensors, all `(batch,)`."""

    seeds: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    limit: Tensor
    """Tokens to draw at most, int64."""
    wants_number: Tensor
    """bool: read the first number as an expectation."""

    @classmethod
    def of(cls, samplings: Sequence, seeds: Sequence[int], device: torch.device) -> Settings:
        """From `Sampling` objects and their seeds."""

        def column(values, dtype):
            return torch.from_numpy(np.array(list(values), dtype=dtype)).to(device)

        return cls(
            seeds=column(map(signed_seed, seeds), np.int64),
            temperature=column((s.temperature for s in samplings), np.float32),
            top_k=column((s.top_k for s in samplings), np.int64),
            top_p=column((s.top_p for s in samplings), np.float32),
            limit=column((s.max_tokens for s in samplings), np.int64),
            wants_number=column((s.expected_number for s in samplings), np.bool_),
        )


@dataclass(frozen=True)
class Features:
    """What a batch's sampler must be able to do, known to the host: a batch pays only for what some row asks."""

    noise: bool = True
    filters: bool = False
    numbers: bool = False

    @classmethod
    def of(cls, samplings: Sequence) -> Features:
        drawn = [s for s in samplings if s.temperature > 0]
        return cls(
            noise=bool(drawn),
            filters=any(s.top_k > 0 or s.top_p < 1 for s in drawn),
            numbers=any(s.expected_number for s in samplings),
        )


def choose(logits: Tensor, settings: Settings, step: Tensor, features: Features) -> Tensor:
    """The next token of every row, int64 `(batch,)`; logits float32 `(batch, vocab)`, step int64 `()`."""
    scores = logits
    if features.filters:
        scores = filtered(scores, settings.temperature, settings.top_k, settings.top_p)
    if features.noise:
        noise = gumbel_noise(settings.seeds, step, logits.shape[-1])
        scores = torch.addcmul(scores, noise, settings.temperature[:, None])
    return scores.argmax(-1)
