"""Shapes of models, for estimates where their folders are not at hand: fields of a Hugging Face config.json, by the
folder's name."""

from __future__ import annotations

from typing import Any

_LLAMA_3_1 = {"model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8, "tie_word_embeddings": False}

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B-Instruct": _LLAMA_3_1
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "Llama-3.1-70B-Instruct": _LLAMA_3_1
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}
