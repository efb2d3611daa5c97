"""Language models: definitions, checkpoints, and the interface to any model that answers.

    import nlrl.backbones                                   # Auto classes of transformers now know our model types
    model, tokenizer = nlrl.backbones.load("ngpt-base")

Importing this package imports neither torch nor transformers; the names below are fetched when they are used.
"""

import importlib

from nlrl.backbones.registry import register_with_transformers

_HOMES = {
    "Backbone": "nlrl.backbones.backbone",
    "DecodeState": "nlrl.backbones.decode_state",
    "KVCache": "nlrl.backbones.kv_cache",
    "NGPTConfig": "nlrl.backbones.ngpt.configuration",
    "NGPTForCausalLM": "nlrl.backbones.ngpt.modeling",
    "TransformerConfig": "nlrl.backbones.transformer.configuration",
    "TransformerForCausalLM": "nlrl.backbones.transformer.modeling",
    "attach_renormalisation": "nlrl.backbones.ngpt.modeling",
    "bundled_names": "nlrl.backbones.loading",
    "from_hf_llama": "nlrl.backbones.transformer.llama",
    "load": "nlrl.backbones.loading",
    "save": "nlrl.backbones.loading",
    "save_hf_llama": "nlrl.backbones.transformer.llama",
}

__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


register_with_transformers()
