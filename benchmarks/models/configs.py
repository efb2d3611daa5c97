"""Which models are measured. Data, and what makes a model of it."""

from __future__ import annotations

from typing import Any

from nlrl.benchmarks.cache import HYMBA, LLAMA, PUBLISHED

Fields = dict[str, Any]
CONTROL, NGPT = "transformer", "ngpt"
BIMAMBA = "Bi-Mamba-2.7B"
_SIZE = {"vocab_size": 32000, "hidden_size": 768}
_UNTIED = _SIZE | {"tie_word_embeddings": False}
_HEADS = {"num_hidden_layers": 12, "num_attention_heads": 12}

TRAINED: dict[str, Fields] = {
    CONTROL: _UNTIED | _HEADS | {"model_type": "transformer", "intermediate_size": 1792},
    NGPT: _SIZE | _HEADS | {"model_type": "ngpt", "intermediate_size": 1792},
    "diff_transformer v1": _UNTIED
    | {"model_type": "diff_transformer", "version": 1, "intermediate_size": 1792}
    | {"num_hidden_layers": 12, "num_attention_heads": 6},
    "diff_transformer v2": _UNTIED
    | _HEADS
    | {"model_type": "diff_transformer", "version": 2, "intermediate_size": 1536},
    "hymba": _UNTIED
    | {"model_type": "hymba", "num_hidden_layers": 10, "num_attention_heads": 12, "num_key_value_heads": 4}
    | {"intermediate_size": 1280, "sliding_window": 1024, "num_memory_tokens": 128},
    "mamba2": _UNTIED | {"model_type": "bimamba", "binary": False, "num_hidden_layers": 21},
    "bimamba": _UNTIED | {"model_type": "bimamba", "num_hidden_layers": 21},
}
"""All of 126 to 128 million parameters, with a head of its own (nGPT's always is). nGPT has the control's matrices."""

SERVED: dict[str, Fields] = {
    HYMBA: PUBLISHED[HYMBA],
    BIMAMBA: PUBLISHED["Bi-Mamba 2.7B"] | {"packed": True},
    LLAMA: PUBLISHED[LLAMA],
}

_TOY: dict[str, Fields] = {
    "transformer": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48},
    "ngpt": {"num_attention_heads": 4, "intermediate_size": 48},
    "diff_transformer": {"num_attention_heads": 2, "intermediate_size": 48},
    "bimamba": {"head_dim": 16, "state_size": 8},
    "hymba": {
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": 6,
        "num_memory_tokens": 3, "num_hidden_layers": 4, "global_attn_idx": None, "kv_reuse_group": None,
    },
}  # fmt: skip


def tiny(fields: Fields) -> Fields:
    """The same architecture as a toy."""
    return fields | {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2} | _TOY[fields["model_type"]]


def random_model(fields: Fields, device: str):
    """A `Backbone` with random float32 weights, initialised on the device."""
    import torch
    from transformers import AutoConfig

    from nlrl.backbones.registry import model_class

    fields = dict(fields)
    model_type = fields.pop("model_type")
    torch.manual_seed(0)
    with torch.device(device):
        model = model_class(model_type)(AutoConfig.for_model(model_type, **fields))
        for name, buffer in model.named_buffers():
            if name.endswith("bits"):
                buffer.random_(0, 256)
    return model
