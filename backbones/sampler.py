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
from dataclasses import dataclass

import torch
from torch import Tensor

from nlrl.kernels.sample.reference import gumbel_noise

__all__ = ["NumberTokens", "filtered", "gumbel_noise", "signed_seed"]
NUMBER = re.compile(r"[+-]\d\.\d\d")


def signed_seed(seed: int) -> int:
    """A Python integer as the 64-bit pattern that `gumbel_noise` takes."""
    seed &= (1 << 64) - 1
    return seed - (1 << 64) if seed >> 63 else seed


def filtered(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor | None = None) -> Tensor:
    """Logits with -inf outside each row's top-k and, among those, outside its top-p nucleus at its temperature; and on
    tokens less likely than `min_p` of the likeliest.

    Args:
        logits: float32 `(batch, vocab)`.
        temperature, top_p, min_p: `(batch,)`; top_k: `(batch,)` int64, 0 keeps all. The likeliest token always stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits.shape[-1], device=logits.device)
    out = (rank >= top_k[:, None]) & (top_k > 0)[:, None]
    scaled = (ordered / temperature.clamp_min(1e-4)[:, None]).masked_fill(out, -torch.inf)
    probability = scaled.softmax(-1)
    out |= probability.cumsum(-1) - probability >= top_p[:, None]
    if min_p is not None:
        out |= probability < min_p[:, None] * probability[:, :1]
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
