"""How each op is called: one entry an op.

To add an op: an entry in `CASES` here, its sizes in `shapes`, `costs.py` in its folder, and peers, if any, in `peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nlrl.benchmarks.kernels.peers import Inputs
from nlrl.kernels.paged_attention.reference import PAGE
from nlrl.kernels.sample.reference import gumbel_noise


class Draw:
    """Random tensors of a dtype on a device; equal seeds give equal ones."""

    def __init__(self, dtype: torch.dtype, device: str, seed: int = 0):
        self.dtype, self.device = dtype, device
        self.wide = torch.promote_types(dtype, torch.float32)
        """Of parameters and states."""
        self._generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *size: int, dtype: torch.dtype | None = None) -> Tensor:
        numbers = torch.randn(size, generator=self._generator, device=self.device, dtype=torch.float32)
        return numbers.to(dtype or self.dtype)

    def share(self, *size: int) -> Tensor:
        """Between 0 and 1, wide."""
        return torch.rand(size, generator=self._generator, device=self.device, dtype=self.wide)

    def positions(self, batch: int, time: int, documents: bool = False) -> Tensor:
        """One text a row from its beginning; a single token in the middle of one; or rows that go on with a text and
        begin others, with padding behind (even rows) or before (odd rows)."""
        at = torch.arange(time, device=self.device)
        if time == 1:
            return at.expand(batch, 1) + 9
        if not documents:
            return at.expand(batch, time)
        packed = torch.where(at < time // 3, at + 9, (at - time // 3) % max(1, time // 4))
        packed[time - time // 8 :] = -1
        return torch.stack([(at - time // 5).clamp_min(-1) if row % 2 else packed for row in range(batch)])


def _plain(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    return {"y": result}


def _scanned(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs of padding are noise."""
    y, state = result
    hidden = (inputs["position_ids"] < 0).view(y.shape[:2] + (1,) * (y.ndim - 2))
    return {"y": y.masked_fill(hidden, 0), "state": state}


@dataclass(frozen=True)
class Case:
    """An op's arguments and what is compared."""

    make: Callable[..., Inputs]
    """`make(draw, **shape)`: named arguments."""
    leaves: tuple[str, ...] = ()
    """Arguments that get a gradient."""
    outputs: Callable[[Any, Inputs], dict[str, Tensor]] = _plain
    """Of the result and the arguments (an op may change those): tensors to compare, free of noise."""
    compiles: bool = True
    """Whether `torch.compile` of the formula is worth a try."""


def unit_lerp(draw: Draw, tokens: int, width: int) -> Inputs:
    h = torch.nn.functional.normalize(draw.normal(tokens, width, dtype=draw.wide), dim=-1).to(draw.dtype)
    return {"h": h, "x": 5 * draw.normal(tokens, width), "a": 0.3 * draw.share(width)}


def adam_normalise(draw: Draw, rows: int, columns: int, axis: int, rounded: int) -> Inputs:
    weight, grad, moment = (draw.normal(rows, columns) for _ in range(3))
    return {
        "weight": weight, "grad": grad, "exp_avg": 0.1 * moment, "exp_avg_sq": draw.normal(rows, columns).square(),
        "step": torch.tensor(7.0, device=draw.device), "learning_rate": torch.tensor(1e-3, device=draw.device),
        "betas": (0.9, 0.95), "eps": 1e-8, "axis": axis,
        "rounded": torch.zeros_like(weight, dtype=torch.bfloat16) if rounded else None,
    }  # fmt: skip


def _stepped(result: None, inputs: Inputs) -> dict[str, Tensor]:
    """The copy in bfloat16 is compared by the tests; here its rounding would hide what the weights are."""
    return {name: inputs[name] for name in ("weight", "exp_avg", "exp_avg_sq")}


def bit_linear(draw: Draw, rows: int, inputs: int, outputs: int) -> Inputs:
    bits = torch.randint(0, 256, (outputs, -(-inputs // 8)), generator=draw._generator, device=draw.device)
    return {
        "x": draw.normal(rows, inputs), "bits": bits.to(torch.uint8),
        "alpha": draw.normal(inputs), "beta": 0.1 * draw.normal(inputs),
    }  # fmt: skip


def linear_cross_entropy(draw: Draw, tokens: int, width: int, vocab: int) -> Inputs:
    return {
        "hidden": draw.normal(tokens, width), "matrix": draw.normal(vocab, width) * width**-0.5,
        "targets": torch.randint(vocab, (tokens,), generator=draw._generator, device=draw.device),
        "weights": torch.ones(tokens, device=draw.device),
    }  # fmt: skip


def linear_distillation(draw: Draw, tokens: int, width: int, teacher_width: int, vocab: int) -> Inputs:
    return {
        "hidden": draw.normal(tokens, width), "matrix": draw.normal(vocab, width) * width**-0.5,
        "teacher_hidden": draw.normal(tokens, teacher_width),
        "teacher_matrix": draw.normal(vocab, teacher_width) * teacher_width**-0.5,
        "weights": torch.ones(tokens, device=draw.device),
    }  # fmt: skip


def rms_norm(draw: Draw, rows: int, width: int, added: int = 0) -> Inputs:
    return {
        "x": 3 * draw.normal(rows, width), "weight": 0.5 + draw.share(width).to(draw.dtype),
        "residual": draw.normal(rows, width) if added else None,
    }  # fmt: skip


def _normed(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    return dict(zip(("y", "sum"), result, strict=True)) if isinstance(result, tuple) else {"y": result}


def dual_norm(draw: Draw, rows: int, width: int) -> Inputs:
    weights = {name: 0.5 + draw.share(width).to(draw.dtype) for name in ("a_weight", "b_weight")}
    return {"a": 3 * draw.normal(rows, width), "b": draw.normal(rows, width)} | weights


def rotary(draw: Draw, batch: int, time: int, heads: int, head_dim: int) -> Inputs:
    angle = 6.28 * draw.share(1, time, 1, head_dim // 2)
    return {"x": draw.normal(batch, time, heads, head_dim), "cos": angle.cos(), "sin": angle.sin()}


def norm_rotary(draw: Draw, batch: int, time: int, heads: int, head_dim: int) -> Inputs:
    return rotary(draw, batch, time, heads, head_dim) | {"scale": 0.5 + draw.share(heads, head_dim)}


def swiglu(draw: Draw, tokens: int, channels: int) -> Inputs:
    return {"up_gate": draw.normal(tokens, 2 * channels)}


def causal_conv1d(
    draw: Draw, batch: int, time: int, channels: int, taps: int, documents: bool = False
) -> Inputs:  # fmt: skip
    inputs = {
        "x": draw.normal(batch, time, channels), "weight": 0.5 * draw.normal(channels, taps),
        "bias": draw.normal(channels), "position_ids": draw.positions(batch, time, documents),
    }  # fmt: skip
    return inputs | ({"window": draw.normal(batch, taps - 1, channels)} if time == 1 else {})


def selective_scan(
    draw: Draw, batch: int, time: int, channels: int, states: int, documents: bool = False
) -> Inputs:  # fmt: skip
    inputs = {
        "x": draw.normal(batch, time, channels), "delta": (draw.normal(batch, time, channels) - 2).exp(),
        "A": -draw.normal(channels, states, dtype=draw.wide).exp(), "B": draw.normal(batch, time, states),
        "C": draw.normal(batch, time, states), "D": draw.normal(channels, dtype=draw.wide),
        "position_ids": draw.positions(batch, time, documents),
    }  # fmt: skip
    before = documents or time == 1
    return inputs | ({"state": draw.normal(batch, channels, states, dtype=draw.wide)} if before else {})


def ssd(
    draw: Draw, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int, documents: bool = False
) -> Inputs:  # fmt: skip
    inputs = {
        "x": draw.normal(batch, time, heads, head_dim),
        "dt": 0.05 * draw.normal(batch, time, heads, dtype=draw.wide).exp(),
        "A": -draw.normal(heads, dtype=draw.wide).exp(), "B": draw.normal(batch, time, groups, states),
        "C": draw.normal(batch, time, groups, states), "position_ids": draw.positions(batch, time, documents),
        "D": draw.normal(heads, dtype=draw.wide),
    }  # fmt: skip
    if documents or time == 1:
        inputs["state"] = draw.normal(batch, heads, head_dim, states, dtype=draw.wide)
    return inputs | ({"overwrite": True} if time == 1 else {})


def mamba1_mixer(
    draw: Draw, batch: int, time: int, channels: int, states: int, rank: int, taps: int, documents: bool = False
) -> Inputs:
    x, gate = draw.normal(batch, time, 2 * channels).chunk(2, -1)
    step = mamba1_step(draw, 1, channels, states, rank, taps)
    weights = {name: value for name, value in step.items() if name not in ("x", "gate", "window", "state", "positions")}
    return {"x": x, "gate": gate, **weights, "position_ids": draw.positions(batch, time, documents)}


def _mixed(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    """Outputs of padding are noise; a window is copied."""
    y, _window, state = result
    return {"y": y.masked_fill((inputs["position_ids"] < 0)[..., None], 0), "state": state}


def mamba1_step(draw: Draw, rows: int, channels: int, states: int, rank: int, taps: int) -> Inputs:
    wide, outputs = draw.wide, rank + 2 * states
    return {
        "x": draw.normal(rows, channels), "gate": draw.normal(rows, channels),
        "window": draw.normal(rows, taps - 1, channels), "state": draw.normal(rows, channels, states, dtype=wide),
        "conv_weight": 0.5 * draw.normal(channels, taps), "conv_bias": draw.normal(channels),
        "x_proj": draw.normal(outputs, channels) * channels**-0.5,
        "dt_norm": 0.5 + draw.share(rank).to(draw.dtype), "B_norm": 0.5 + draw.share(states).to(draw.dtype),
        "C_norm": 0.5 + draw.share(states).to(draw.dtype),
        "dt_proj": draw.normal(channels, rank) * rank**-0.5, "dt_bias": draw.normal(channels, dtype=wide) - 3,
        "A_log": draw.normal(channels, states, dtype=wide), "D": draw.normal(channels, dtype=wide),
        "positions": torch.arange(rows, device=draw.device),
    }  # fmt: skip


def mamba2_mixer(
    draw: Draw, batch: int, time: int, heads: int, head_dim: int, groups: int, states: int, taps: int,
    documents: bool = False,
) -> Inputs:  # fmt: skip
    step = mamba2_step(draw, 1, heads, head_dim, groups, states, taps)
    weights = {name: value for name, value in step.items() if name not in ("projected", "window", "state", "positions")}
    weights["dt_bias"] = weights["dt_bias"] - 3
    projected = draw.normal(batch, time, step["projected"].shape[1])
    return {"projected": projected, **weights, "position_ids": draw.positions(batch, time, documents)}


def mamba2_step(
    draw: Draw, rows: int, heads: int, head_dim: int, groups: int, states: int, taps: int
) -> Inputs:  # fmt: skip
    inner, conv = heads * head_dim, heads * head_dim + 2 * groups * states
    return {
        "projected": draw.normal(rows, inner + conv + heads), "window": draw.normal(rows, taps - 1, conv),
        "state": draw.normal(rows, heads, head_dim, states, dtype=draw.wide),
        "conv_weight": 0.5 * draw.normal(conv, taps), "conv_bias": draw.normal(conv),
        "A_log": draw.normal(heads, dtype=draw.wide), "D": draw.normal(heads, dtype=draw.wide),
        "dt_bias": draw.normal(heads, dtype=draw.wide), "norm_weight": 0.5 + draw.share(inner).to(draw.dtype),
        "positions": torch.arange(rows, device=draw.device), "eps": 1e-5, "groups": groups,
    }  # fmt: skip


def _decoded(result: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    return {"y": result, "window": inputs["window"], "state": inputs["state"]}


def diff_attention(
    draw: Draw, batch: int, time: int, heads: int, kv_heads: int, width: int, documents: bool = False
) -> Inputs:  # fmt: skip
    inputs = {
        "query": draw.normal(batch, time, 2 * heads, width), "key": draw.normal(batch, time, 2 * kv_heads, width),
        "value": draw.normal(batch, time, kv_heads, 2 * width), "lambda_": draw.share() / 2 + 0.2,
        "weight": 0.5 + draw.share(2 * width), "output_scale": 0.2,
    }  # fmt: skip
    at = torch.arange(time, device=draw.device)
    return inputs | ({"starts": (at // 17 * 17).expand(batch, time)} if documents else {})


def diff_attention_v2(
    draw: Draw, batch: int, time: int, heads: int, kv_heads: int, width: int, documents: bool = False
) -> Inputs:  # fmt: skip
    inputs = {
        "query": draw.normal(batch, time, 2 * heads, width), "key": draw.normal(batch, time, kv_heads, width),
        "value": draw.normal(batch, time, kv_heads, width), "gate": draw.normal(batch, time, heads).sigmoid(),
    }  # fmt: skip
    at = torch.arange(time, device=draw.device)
    return inputs | ({"starts": (at // 17 * 17).expand(batch, time)} if documents else {})


def prefix_attention(
    draw: Draw, batch: int, time: int, heads: int, kv_heads: int, key_dim: int, value_dim: int, prefix: int,
    window: int, documents: bool = False,
) -> Inputs:  # fmt: skip
    at = torch.arange(time, device=draw.device)
    first = at // 17 * 17 if documents else torch.zeros_like(at)
    starts = torch.maximum(first, at - window) if window else first
    return {
        "query": draw.normal(batch, time, heads, key_dim), "key": draw.normal(batch, time, kv_heads, key_dim),
        "value": draw.normal(batch, time, kv_heads, value_dim),
        "prefix_key": draw.normal(kv_heads, prefix, key_dim), "prefix_value": draw.normal(kv_heads, prefix, value_dim),
        "starts": starts.expand(batch, time) if window or documents else None,
    }  # fmt: skip


def paged_attention(
    draw: Draw, rows: int, context: int, heads: int, kv_heads: int, v_heads: int, key_dim: int, value_dim: int,
    prefix: int = 0,
) -> Inputs:  # fmt: skip
    """Every row holds `context` tokens, the new one among them; its pages lie anywhere in the pool."""
    width = -(-context // PAGE)
    pages = 1 + torch.randperm(rows * width, generator=draw._generator, device=draw.device)
    return {
        "query": draw.normal(rows, heads, key_dim), "key": draw.normal(rows, kv_heads, key_dim),
        "value": draw.normal(rows, v_heads, value_dim),
        "keys": draw.normal(1 + rows * width, kv_heads, PAGE, key_dim),
        "values": draw.normal(1 + rows * width, v_heads, PAGE, value_dim),
        "table": pages.view(rows, width),
        "positions": torch.full((rows,), context - 1, device=draw.device),
    } | _shared(draw, prefix, (kv_heads, key_dim), (v_heads, value_dim))  # fmt: skip


def _shared(draw: Draw, prefix: int, *sizes: tuple[int, int]) -> Inputs:
    """Keys and values of a prefix, if there is one; sizes: heads and width of each."""
    names = ("prefix_key", "prefix_value") if prefix else ()
    return {name: draw.normal(heads, prefix, width) for name, (heads, width) in zip(names, sizes, strict=False)}


def ring_attention(
    draw: Draw, rows: int, slots: int, heads: int, kv_heads: int, key_dim: int, value_dim: int, prefix: int = 0
) -> Inputs:  # fmt: skip
    """Rings that have gone round, each at a place of its own; `rotary`'s angles are given, as models do."""
    angle = 6.28 * draw.share(rows, 1, 1, key_dim // 2)
    return {
        "query": draw.normal(rows, heads, key_dim), "key": draw.normal(rows, kv_heads, key_dim),
        "value": draw.normal(rows, kv_heads, value_dim), "keys": draw.normal(rows, kv_heads, slots, key_dim),
        "values": draw.normal(rows, kv_heads, slots, value_dim),
        "positions": slots + 7 * torch.arange(rows, device=draw.device), "reach": slots,
        "cos": angle.cos(), "sin": angle.sin(),
    } | _shared(draw, prefix, (kv_heads, key_dim), (kv_heads, value_dim))  # fmt: skip


def extend_attention(
    draw: Draw, batch: int, time: int, old: int, heads: int, kv_heads: int, v_heads: int, key_dim: int, value_dim: int,
    prefix: int = 0, reach: int = 0, slots: int = 0,
) -> Inputs:  # fmt: skip
    """Every row has `old` tokens in pages anywhere in the pool, or in a ring of `slots`, and goes on with `time`."""
    width = -(-old // PAGE) + 1
    pages = 1 + torch.randperm(batch * width, generator=draw._generator, device=draw.device).view(batch, width)
    stores, tokens = (batch, slots) if slots else (1 + batch * width, PAGE)
    return {
        "query": draw.normal(batch, time, heads, key_dim), "key": draw.normal(batch, time, kv_heads, key_dim),
        "value": draw.normal(batch, time, v_heads, value_dim),
        "keys": draw.normal(stores, kv_heads, tokens, key_dim),
        "values": draw.normal(stores, v_heads, tokens, value_dim),
        "positions": (old + torch.arange(time, device=draw.device)).repeat(batch, 1),
        "start": torch.full((batch,), old, device=draw.device),
        "table": None if slots else pages, "reach": reach or None,
    } | _shared(draw, prefix, (kv_heads, key_dim), (v_heads, value_dim))  # fmt: skip


def _attended(result: Tensor, inputs: Inputs) -> dict[str, Tensor]:
    return {"y": result, "keys": inputs["keys"], "values": inputs["values"]}


def sample(draw: Draw, rows: int, vocabulary: int, masked: int) -> Inputs:
    return {"logits": 3 * draw.normal(rows, vocabulary)} | _rows_that_draw(draw, rows, vocabulary, masked)


def sample_head(draw: Draw, rows: int, width: int, vocabulary: int, masked: int = 0, scaled: int = 0) -> Inputs:
    return {
        "hidden": draw.normal(rows, width), "matrix": 3 * width**-0.5 * draw.normal(vocabulary, width),
        "scale": 0.5 + draw.share(vocabulary).to(draw.dtype) if scaled else None,
    } | _rows_that_draw(draw, rows, vocabulary, masked)  # fmt: skip


def _rows_that_draw(draw: Draw, rows: int, vocabulary: int, masked: int) -> Inputs:
    words = -(-vocabulary // 32)
    bits = torch.randint(-(2**31), 2**31, (rows, words), generator=draw._generator, device=draw.device)
    return {
        "seeds": torch.arange(rows, device=draw.device) * 1_000_003,
        "steps": torch.full((rows,), 5, device=draw.device),
        "temperature": torch.ones(rows, device=draw.device),
        "bitmask": bits.to(torch.int32) if masked else None,
    }


def _drawn(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    (tokens, logprobs), logits = result, inputs["logits"]
    return _scores(tokens, logprobs, logits.gather(1, tokens[:, None])[:, 0], logits.shape[1], inputs)


def _drawn_from_hidden(result: Any, inputs: Inputs) -> dict[str, Tensor]:
    """The logit of a drawn token is made anew, exactly: implementations round theirs differently."""
    tokens, logprobs = result
    logit = (inputs["hidden"].double() * inputs["matrix"][tokens].double()).sum(1)
    logit = logit if inputs["scale"] is None else logit * inputs["scale"][tokens].double()
    return _scores(tokens, logprobs, logit, len(inputs["matrix"]), inputs)


def _scores(tokens: Tensor, logprobs: Tensor, logit: Tensor, vocabulary: int, inputs: Inputs) -> dict[str, Tensor]:
    """Two tokens may be equally good but for rounding, so the score of the drawn one is compared."""
    at, logit, mask = tokens[:, None], logit.to(logprobs.dtype), inputs["bitmask"]
    noise = gumbel_noise(inputs["seeds"], inputs["steps"], vocabulary).gather(1, at)[:, 0]
    allowed = torch.ones_like(tokens) if mask is None else mask.gather(1, at // 32)[:, 0] >> (tokens % 32) & 1
    return {"score": logit + noise, "normaliser": logit - logprobs, "allowed": allowed.to(logprobs.dtype)}


_CONV_LEAVES = ("x", "weight", "bias")
_MAMBA1_LEAVES = ("x", "gate", "conv_weight", "conv_bias", "x_proj", "dt_proj", "dt_bias", "A_log", "D")
_MAMBA2_LEAVES = ("projected", "conv_weight", "conv_bias", "A_log", "D", "dt_bias", "norm_weight")
_SCAN_LEAVES = ("x", "delta", "A", "B", "C", "D")

CASES: dict[str, Case] = {
    "unit_lerp": Case(unit_lerp, ("h", "x", "a")),
    "adam_normalise": Case(adam_normalise, outputs=_stepped),
    "bit_linear": Case(bit_linear),
    "linear_cross_entropy": Case(linear_cross_entropy, ("hidden", "matrix")),
    "linear_distillation": Case(linear_distillation, ("hidden", "matrix")),
    "rms_norm": Case(rms_norm, ("x", "weight"), _normed),
    "dual_norm": Case(dual_norm, ("a", "b", "a_weight", "b_weight")),
    "rotary": Case(rotary, ("x",)),
    "norm_rotary": Case(norm_rotary, ("x", "scale")),
    "swiglu": Case(swiglu, ("up_gate",)),
    "causal_conv1d": Case(causal_conv1d, _CONV_LEAVES, _scanned),
    "selective_scan": Case(selective_scan, _SCAN_LEAVES, _scanned),
    "ssd": Case(ssd, ("x", "dt", "A", "B", "C", "D"), _scanned),
    "mamba1_mixer": Case(mamba1_mixer, _MAMBA1_LEAVES, _mixed),
    "mamba1_step": Case(mamba1_step, outputs=_decoded),
    "mamba2_mixer": Case(mamba2_mixer, _MAMBA2_LEAVES, _mixed),
    "mamba2_step": Case(mamba2_step, outputs=_decoded),
    "diff_attention": Case(diff_attention, ("query", "key", "value", "lambda_", "weight")),
    "diff_attention_v2": Case(diff_attention_v2, ("query", "key", "value", "gate")),
    "prefix_attention": Case(prefix_attention, ("query", "key", "value", "prefix_key", "prefix_value")),
    "paged_attention": Case(paged_attention),
    "ring_attention": Case(ring_attention, outputs=_attended),
    "extend_attention": Case(extend_attention),
    "sample": Case(sample, outputs=_drawn),
    "sample_head": Case(sample_head, outputs=_drawn_from_hidden),
}
