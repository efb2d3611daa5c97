"""nGPT against the Transformer: steps and seconds to equal loss, by context length (arXiv 2410.01131: 4, 10 and 20
times fewer tokens at 1k, 4k and 8k, at half a billion parameters and more).

As in the paper both have SwiGLU layers of 4 times the width, true rotary embedding and untied embeddings; the control
has RMSNorm, warm-up and weight decay 0.1, nGPT neither. Weights of both are float32.
"""

from __future__ import annotations

from nlrl.benchmarks.replications.experiment import Arm, Claim

LAYERS, WIDTH, HEADS = 6, 256, 4
TOKENS, BATCH = 640 << 14, 1 << 14


def claim() -> Claim:
    arms = (
        Arm("transformer", "Transformer", _transformer, (1e-3, 2e-3, 4e-3, 8e-3)),
        Arm("ngpt", "nGPT", _ngpt, (2e-3, 4e-3, 8e-3, 16e-3), optimizer="normalised"),
    )
    return Claim("ngpt", arms, (256, 1024, 4096), TOKENS, BATCH)


def _sizes(vocab: int, context: int) -> dict:
    return dict(
        vocab_size=vocab, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, max_position_embeddings=context, tie_word_embeddings=False,
    )  # fmt: skip


def _transformer(vocab: int, context: int):
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    return TransformerForCausalLM(TransformerConfig(**_sizes(vocab, context)))


def _ngpt(vocab: int, context: int):
    from nlrl.backbones import NGPTConfig, NGPTForCausalLM

    return NGPTForCausalLM(NGPTConfig(alpha_init=1 / LAYERS, **_sizes(vocab, context)))
