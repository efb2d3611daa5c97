"""Configuration of the Differential Transformer, for `transformers`."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nlrl.backbones.diff_transformer.fields import DiffTransformerFields
from nlrl.backbones.registry import register


@register
@strict
class DiffTransformerConfig(DiffTransformerFields, PreTrainedConfig):
    """`DiffTransformerFields`, and what Hugging Face adds."""

    model_type = "diff_transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
