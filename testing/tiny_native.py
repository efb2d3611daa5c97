"""A tiny native model with a bundled base's tokenizer, and small runs of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nlrl.backbones import loading
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM


def make_tiny(folder: Path) -> Path:
    """Random weights, so it speaks nonsense, but one answer is not as likely as another."""
    tokenizer = loading.load("transformer-base")[1]
    torch.manual_seed(0)
    config = TransformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    )
    loading.save(TransformerForCausalLM(config), tokenizer, folder, torch.float32)
    return folder


def tiny_model(folder: Path, **more: Any) -> dict[str, Any]:
    """The model's section of a config."""
    return {"kind": "native", "name": str(folder), "device": "cpu", "max_tokens": 12} | more
