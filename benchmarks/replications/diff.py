"""The Differential Transformer, versions 1 and 2, against the Transformer: validation loss at equal parameters,
retrieval of several needles by depth, and outliers among activations (arXiv 2410.05258).

Version 1 has half the heads of the control, as in the paper; all have heads of 32 channels. Version 2's doubled query
projection and its gates are paid for by a narrower feed-forward layer. Half of the rows that all arms
are trained on hold needles (`needles`).
"""

from __future__ import annotations

from nlrl.benchmarks.replications.experiment import Arm, Claim, Report
from nlrl.benchmarks.replications.needles import mix, retrieval
from nlrl.benchmarks.replications.outliers import outliers

LAYERS, WIDTH, HEADS = 6, 256, 8
FEED_FORWARD = 8 * WIDTH // 3
PAID_FOR = (WIDTH * WIDTH + WIDTH * HEADS) // (3 * WIDTH)
"""Channels of the feed-forward layer that version 2 spends on attention."""
CONTEXT, TOKENS, BATCH = 1024, 1 << 24, 1 << 12
"""Small batches: looking up is learned in steps rather than tokens (960 steps of four times the tokens did not do)."""
LRS = (5e-4, 1e-3, 2e-3)


def claim() -> Claim:
    arms = (
        Arm("transformer", "Transformer", _transformer, LRS),
        Arm("diff_v1", "Differential, version 1", _version_1, LRS),
        Arm("diff_v2", "Differential, version 2", _version_2, LRS),
    )
    return Claim(
        "diff", arms, (CONTEXT,), TOKENS, BATCH, mix, {"needles": retrieval, "outliers": outliers}, mix_share=0.5
    )


def sections(report: Report):
    """Tables and figures beside the common ones."""
    from nlrl.benchmarks.replications.diff_report import needle_section, outlier_section

    return [needle_section(report), outlier_section(report)]


def _sizes(vocab: int, context: int) -> dict:
    return dict(vocab_size=vocab, hidden_size=WIDTH, num_hidden_layers=LAYERS, max_position_embeddings=context)


def _transformer(vocab: int, context: int):
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    sizes = _sizes(vocab, context) | dict(num_attention_heads=HEADS, intermediate_size=FEED_FORWARD)
    return TransformerForCausalLM(TransformerConfig(**sizes))


def _version_1(vocab: int, context: int):
    return _differential(vocab, context, version=1, num_attention_heads=HEADS // 2, intermediate_size=FEED_FORWARD)


def _version_2(vocab: int, context: int):
    narrower = FEED_FORWARD - PAID_FOR
    return _differential(vocab, context, version=2, num_attention_heads=HEADS, intermediate_size=narrower)


def _differential(vocab: int, context: int, **fields):
    from nlrl.backbones import DiffTransformerConfig, DiffTransformerForCausalLM

    return DiffTransformerForCausalLM(DiffTransformerConfig(**_sizes(vocab, context), **fields))
