"""Language models: definitions, checkpoints, and the interface to any model that answers.

    import nlrl.backbones                                   # Auto classes of transformers now know our model types
    model, tokenizer = nlrl.backbones.load("ngpt-base")
    network, tokenizer = nlrl.backbones.load_network("ngpt-base")   # for the engine: without transformers

Importing this package imports neither torch nor transformers; the names below are fetched when they are used.
"""

import importlib

from nlrl.backbones.registry import register_with_transformers

_HOMES = {
    "Backbone": "nlrl.backbones.backbone",
    "BiMambaConfig": "nlrl.backbones.bimamba.configuration",
    "BiMambaForCausalLM": "nlrl.backbones.bimamba.modeling",
    "DecodeState": "nlrl.backbones.decode_state",
    "DiffTransformerConfig": "nlrl.backbones.diff_transformer.configuration",
    "DiffTransformerForCausalLM": "nlrl.backbones.diff_transformer.modeling",
    "HymbaConfig": "nlrl.backbones.hymba.configuration",
    "HymbaForCausalLM": "nlrl.backbones.hymba.modeling",
    "KVCache": "nlrl.backbones.kv_cache",
    "NGPTConfig": "nlrl.backbones.ngpt.configuration",
    "NGPTForCausalLM": "nlrl.backbones.ngpt.modeling",
    "Network": "nlrl.backbones.network",
    "StateCache": "nlrl.backbones.state_cache",
    "TransformerConfig": "nlrl.backbones.transformer.configuration",
    "TransformerForCausalLM": "nlrl.backbones.transformer.modeling",
    "attach_renormalisation": "nlrl.backbones.ngpt.modeling",
    "bundled_names": "nlrl.backbones.loading",
    "convert": "nlrl.backbones.loading",
    "from_hf_diff_llama": "nlrl.backbones.diff_transformer.diff_llama",
    "from_hf_llama": "nlrl.backbones.transformer.llama",
    "from_hf_mamba2": "nlrl.backbones.bimamba.huggingface",
    "from_mamba_ssm": "nlrl.backbones.bimamba.huggingface",
    "from_nvidia": "nlrl.backbones.ngpt.nvidia",
    "load": "nlrl.backbones.loading",
    "load_network": "nlrl.backbones.loading",
    "load_trainable": "nlrl.backbones.loading",
    "save": "nlrl.backbones.loading",
    "save_hf_llama": "nlrl.backbones.transformer.llama",
    "save_packed": "nlrl.backbones.bimamba.packed",
    "to_hf_mamba2": "nlrl.backbones.bimamba.huggingface",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


register_with_transformers()
