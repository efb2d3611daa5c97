"""Output tokens a second of one Llama-shaped checkpoint in both engines; a part of `nlrl bench serve`.

Both read the same folder of random weights and get the same prompts of random tokens, new ones in every round, so that
no cache of prefixes helps anybody. Decoding is greedy and goes on after end tokens: the work is equal. Ours also
computes the log-probability of every token and decodes texts; vLLM is asked for neither.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nlrl.benchmarks.figures import Figure
from nlrl.benchmarks.serve_vllm import VLLM
from nlrl.benchmarks.timing import ratio

Answer = Callable[[list[list[int]], int], tuple[int, float]]
"""Prompts and tokens wanted for each -> tokens that came out, seconds."""
FIRST_PLAIN = 5
"""Token ids below are special ones of the bundled tokenizers."""
GPU_SHARE = 0.4
"""Of the GPU's memory for vLLM; ours takes half of what is left."""


@dataclass(frozen=True)
class Load:
    """What both engines are asked for."""

    name: str
    fields: dict[str, Any]
    """Of `TransformerConfig`."""
    requests: int
    prompt_tokens: int
    tokens: int
    """Written for each request."""
    targets: tuple[float, float]
    """Ours over vLLM's: all requests at once, one alone; 0 is none."""


def shape(layers: int, width: int, vocabulary: int, kv_heads: int = 0, feed_forward: int = 0) -> dict[str, Any]:
    """A Llama-shaped config; heads of 64 numbers, of 32 in narrow models."""
    head = 64 if width > 256 else 32
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": feed_forward or 128 * round(width * 8 / 3 / 128),
        "num_hidden_layers": layers,
        "num_attention_heads": width // head,
        "num_key_value_heads": kv_heads or width // head,
        "head_dim": head,
    }


def export(fields: dict[str, Any], folder: Path, length: int, dtype: str) -> int:
    """Random weights as a Hugging Face Llama with the bundled tokenizer; returns the number of parameters."""
    import torch

    from nlrl.backbones import TransformerConfig, TransformerForCausalLM, load
    from nlrl.backbones.transformer.llama import save_hf_llama

    torch.manual_seed(0)
    config = TransformerConfig(**{**fields, "max_position_embeddings": length, "eos_token_id": 2})
    model = TransformerForCausalLM(config)
    save_hf_llama(model, folder, load("transformer-base")[1], getattr(torch, dtype))
    return sum(weight.numel() for weight in model.parameters())


def prompts(count: int, tokens: int, vocabulary: int, key: object) -> list[list[int]]:
    """Random tokens, the same for the same key."""
    draw = random.Random(f"{key}").randrange
    return [[draw(FIRST_PLAIN, vocabulary) for _ in range(tokens)] for _ in range(count)]


def in_turns(
    answers: dict[str, Answer], material: Callable[[int], list[list[int]]], tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Tokens a second of each in every round; the first one, in which graphs are captured, does not count."""
    rates: dict[str, list[float]] = {name: [] for name in answers}
    for number in range(rounds + 1):
        asked = material(number)
        for name, answer in answers.items():
            written, seconds = answer(asked, tokens)
            if written != tokens * len(asked):
                raise RuntimeError(f"{name} wrote {written} tokens, not {tokens} for each of {len(asked)} requests")
            rates[name] += [written / seconds] if number else []
    return rates


def native(engine) -> Answer:
    """Ours."""
    from nlrl.backbones.language_model import Request, Sampling

    def answer(asked: list[list[int]], tokens: int) -> tuple[int, float]:
        sampling = Sampling(temperature=0.0, max_tokens=tokens, ignore_end=True)
        requests = [Request(tokens=tuple(prompt), sampling=sampling) for prompt in asked]
        start = time.perf_counter()
        completions = engine.generate(requests)
        return sum(len(completion.tokens) for completion in completions), time.perf_counter() - start

    return answer


def vllm_settings(folder: Path, length: int, requests: int, dtype: str, device: str, eager: bool) -> dict[str, Any]:
    settings = {"model": str(folder), "dtype": dtype, "max_model_len": length, "max_num_seqs": max(requests, 16)}
    settings |= {"enable_prefix_caching": False, "skip_tokenizer_init": True, "enforce_eager": eager}
    return settings | ({"gpu_memory_utilization": GPU_SHARE} if device != "cpu" else {})


def compare(load: Load, device: str, rounds: int, folder: Path, peer: Callable[..., VLLM] | None, eager: bool):
    """Figures of one load.

    Args:
        folder: where the checkpoint goes.
        peer: makes vLLM from its settings; None measures ours alone.
        eager: vLLM neither compiles nor captures graphs.
    """
    dtype, length = ("float32" if device == "cpu" else "bfloat16"), load.prompt_tokens + load.tokens
    size = export(load.fields, folder, length, dtype)
    if peer is None:
        return _figures(load, size, device, rounds, folder, None)
    with peer(**vllm_settings(folder, length, load.requests, dtype, device, eager)) as vllm:
        return _figures(load, size, device, rounds, folder, vllm)


def _figures(load: Load, size: int, device: str, rounds: int, folder: Path, vllm: VLLM | None) -> list[Figure]:
    import torch

    from nlrl.backbones import load as load_model
    from nlrl.backbones.engine import Engine

    their_name = f"vLLM {vllm.version()}" if vllm else ""  # waits: vLLM takes its share of a GPU's memory first
    model, tokenizer = load_model(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    figures = []
    with Engine(model.to(device=device, dtype=dtype), tokenizer, max_rows=load.requests) as engine:
        answers: dict[str, Answer] = {"nlrl": native(engine)}
        if vllm:
            answers[their_name] = vllm.generate
        for requests, target in zip((load.requests, 1), load.targets, strict=True):
            material = _material(load, requests)
            rates = in_turns(answers, material, load.tokens, rounds)
            what = f"{requests} request(s) of {load.prompt_tokens} tokens in, {load.tokens} out"
            figures += _shown(load.name, what, rates, target, f"{size:,} parameters")
    return figures


def _material(load: Load, requests: int) -> Callable[[int], list[list[int]]]:
    vocabulary = load.fields["vocab_size"]
    return lambda number: prompts(requests, load.prompt_tokens, vocabulary, (load.name, requests, number))


def _shown(section: str, what: str, rates: dict[str, list[float]], target: float, note: str) -> list[Figure]:
    figures = [Figure(section, what, "nlrl", median(rates["nlrl"]), "tokens/s", note=note)]
    for name in rates.keys() - {"nlrl"}:
        times = ratio(rates["nlrl"], rates[name])
        wanted = {"target": f"at least {target:g}x", "met": times >= target} if target else {}
        figures.append(Figure(section, what, name, median(rates[name]), "tokens/s", times, **wanted))
    return figures
