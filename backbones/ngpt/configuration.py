"""Configuration of nGPT, for `transformers`."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nlrl.backbones.ngpt.fields import NGPTFields
from nlrl.backbones.registry import register


@register
@strict
class NGPTConfig(NGPTFields, PreTrainedConfig):
    """`NGPTFields`, and what Hugging Face adds."""

    model_type = "ngpt"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
