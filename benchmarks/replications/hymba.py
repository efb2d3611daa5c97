"""Hymba against the Transformer and Mamba: validation loss at equal parameters, recall of key-value pairs and bytes of
the decode state, along the roadmap of the paper's table 1 (arXiv 2411.13676: each of its steps at 300 million
parameters and 100 billion tokens).

Mamba is Mamba-1. A has Mamba and attention in layers by turns, B side by side in every layer; C gives all layers but
the first, the middle and the last a window of a quarter of the context; D lets neighbouring windowed layers share keys
and values; E puts meta tokens before every text, as many as an eighth of the context. As in the paper the Transformer
has keys and values for every head, A to E for every third one only, so part of what B saves is saved by that. All have
the same width and depth, and feed-forward layers as wide as makes the parameters equal. Four tenths of the rows that
all are trained on ask for pairs (`recall`). The roadmap's throughput is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from nlrl.benchmarks.replications.experiment import Arm, Claim, Data, Report
from nlrl.benchmarks.replications.recall import mix, recall

LAYERS, WIDTH, HEADS, KV_HEADS = 7, 192, 6, 2
"""Layers between the three global ones come in pairs, which share keys and values from D on."""
FEED_FORWARD = 864
"""Of the Transformer."""
CHANNELS = 8
"""Feed-forward layers of the others are a multiple of this, which matrix products want."""
CONTEXT, TOKENS, BATCH = 512, 800 << 14, 1 << 12
"""Small batches, as recall is learned in steps rather than tokens."""
WINDOW, META = 1 / 4, 1 / 8
"""Window and meta tokens, in contexts; the paper's ablation has 256 and 128 of 1,024."""
LRS = (1e-3, 2e-3, 4e-3)
LONG = 8192
"""Tokens, where the decode state is compared beside the claim's own context."""


def claim() -> Claim:
    arms = (
        Arm("transformer", "Transformer", _transformer, LRS),
        _arm("mamba", "Mamba", "mamba"),
        _arm("a_sequential", "A: by turns", "A"),
        _arm("b_parallel", "B: side by side", "B"),
        _arm("c_windows", "C: B with windows", "C"),
        _arm("d_shared", "D: C with shared keys and values", "D"),
        _arm("e_meta", "E: D with meta tokens (Hymba)", "E"),
    )
    measures = {"recall": recall, "cache": cache}
    return Claim("hymba", arms, (CONTEXT,), TOKENS, BATCH, mix, measures, mix_share=0.4, extensions=1)


def sections(report: Report):
    """Tables and figures beside the common ones."""
    from nlrl.benchmarks.replications.hymba_report import cache_section, recall_section

    return [recall_section(report), cache_section(report)]


def cache(model, data: Data, device) -> dict:
    """Bytes of the decode state in bfloat16, recurrent states in float32, by tokens: what every sequence takes
    (`kv`, `conv`, `recurrent`) and what is there once for all (`shared`)."""
    from dataclasses import asdict

    from nlrl.benchmarks.cache import footprint

    return {str(tokens): asdict(footprint(model, tokens)) for tokens in (data.context, LONG)}


def _arm(name: str, label: str, step: str) -> Arm:
    # Where the scan has no kernel a compiler gets a form of it that keeps all states of all tokens: tens of GB here.
    return Arm(name, label, partial(_hymba, step=step), LRS, extra={"compiled": False})


def step_fields(step: str, context: int) -> dict:
    """What a step of the roadmap says in a `HymbaConfig`."""
    mixer = {"mamba": "mamba", "A": "sequential"}.get(step, "parallel")
    return {
        "mixer": mixer,
        "sliding_window": max(1, round(WINDOW * context)) if step in "CDE" else None,
        "kv_reuse_group": None if step in "DE" else [],
        "num_memory_tokens": max(1, round(META * context)) if step == "E" else 0,
    }


def _transformer(vocab: int, context: int):
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    config = TransformerConfig(
        vocab_size=vocab, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD, max_position_embeddings=context,
    )  # fmt: skip
    return TransformerForCausalLM(config)


def _hymba(vocab: int, context: int, step: str):
    """The step's model, with as many parameters as the Transformer up to a few channels of the feed-forward layers."""
    from nlrl.backbones import HymbaConfig, HymbaForCausalLM

    sizes = dict(
        vocab_size=vocab, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
    ) | step_fields(step, context)  # fmt: skip

    def with_channels(channels: int):
        return HymbaForCausalLM(HymbaConfig(intermediate_size=channels, **sizes))

    missing = _size(partial(_transformer, vocab, context)) - _size(partial(with_channels, CHANNELS))
    return with_channels(CHANNELS * (1 + round(missing / (3 * WIDTH * LAYERS * CHANNELS))))


def _size(build: Callable) -> int:
    """Parameters of a model, which is not made."""
    import torch

    with torch.device("meta"):
        return sum(weight.numel() for weight in build().parameters())
