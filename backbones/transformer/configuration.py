"""Configuration of the control, for `transformers`."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nlrl.backbones.registry import register
from nlrl.backbones.transformer.fields import TransformerFields


@register
@strict
class TransformerConfig(TransformerFields, PreTrainedConfig):
    """`TransformerFields`, and what Hugging Face adds."""

    model_type = "transformer"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
