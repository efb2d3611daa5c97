"""Hymba-1.5B decoding beside what the GPU's memory allows; a part of `nlrl bench serve`. Needs a CUDA device.

The weights are random: speed does not depend on them. Every step must read all weights once and, for each sequence, its
keys, values and states; at a bandwidth measured by copying, that gives the roofline. Prompts are read once and kept
(`Request.marks`), and the time of writing one token is taken off that of writing more, so only decoding is measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from nlrl.benchmarks.cache import HYMBA, PUBLISHED
from nlrl.benchmarks.figures import Figure

CASES = ((1, 1024), (1, 8000), (32, 1024), (128, 1024), (128, 8000))
"""Sequences, tokens in each before the steps that are timed."""
STEPS = 96
BANDWIDTH = 3.0e12
"""Bytes a second: a copy of 2 GB on an H100, read and written."""
ACTIVATIONS = 3.5e6
"""Bytes of activations that a sequence's step writes and reads where everything that can be is fused."""
TARGET = 0.6


def roofline(config, weights: int, batch: int, length: int, bandwidth: float = BANDWIDTH) -> float:
    """Tokens a second, if a step took the time of its traffic.

    Args:
        weights: bytes of all of them.
        length: tokens in each sequence, meta tokens not counted.
    """
    meta, whole = config.num_memory_tokens, len(config.global_attn_idx)
    windowed = len(config.attention_layers) - whole
    keys = whole * (length + meta) + windowed * min(length + meta, config.sliding_window + meta)
    kv = keys * config.num_key_value_heads * (config.head_dim + config.v_head_dim) * 2
    states = len(config.ssm_layers) * config.d_inner * (config.mamba_d_state * 4 * 2 + config.mamba_d_conv * 2 * 2)
    return batch * bandwidth / (weights + batch * (kv + states + ACTIVATIONS))


def compare(rounds: int, device: str = "cuda") -> Iterator[Figure]:
    """Case by case; the longest ones take as long as the others together."""
    import torch
    from transformers import AutoConfig

    from nlrl.backbones import load
    from nlrl.backbones.registry import model_class

    if not torch.cuda.is_available():
        print("  hymba-1.5b: left out, there is no CUDA device here")
        return
    fields = dict(PUBLISHED[HYMBA])
    model_type = fields.pop("model_type")
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class(model_type)(AutoConfig.for_model(model_type, eos_token_id=2, **fields))
    model, tokenizer = model.to(torch.bfloat16), load("transformer-base")[1]
    weights = 2 * sum(weight.numel() for weight in model.parameters())
    for batch, length in CASES:
        rate = decoding_rate(model, tokenizer, batch, length, rounds)
        best = roofline(model.config, weights, batch, length + STEPS // 2)
        share, note = rate / best, f"{rate / best:.0%} of the roofline, {best:,.0f}"
        what = f"decoding, {batch} sequence(s) of {length:,} tokens"
        met = f"at least {TARGET:.0%}", share >= TARGET
        yield Figure("hymba-1.5b", what, "nlrl", rate, "tokens/s", None, *met, note)


def decoding_rate(model, tokenizer, batch: int, length: int, rounds: int) -> float:
    """Tokens a second of steps alone."""
    from nlrl.backbones.engine import Engine
    from nlrl.benchmarks.serve_throughput import prompts

    asked = prompts(batch, length, model.config.vocab_size, (batch, length))
    with Engine(model, tokenizer, max_rows=batch) as engine:
        short, long = (_seconds(engine, asked, tokens, rounds) for tokens in (1, 1 + STEPS))
    return batch * STEPS / (long - short)


def _seconds(engine, asked: list[list[int]], tokens: int, rounds: int) -> float:
    from nlrl.backbones.language_model import Request, Sampling

    sampling = Sampling(temperature=1.0, max_tokens=tokens, ignore_end=True)
    requests = [
        Request(tokens=tuple(prompt), sampling=sampling, marks=(len(prompt),), seed=i) for i, prompt in enumerate(asked)
    ]
    engine.generate(requests)  # reads the prompts, captures graphs
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        engine.generate(requests)
        found.append(time.perf_counter() - start)
    return median(found)
