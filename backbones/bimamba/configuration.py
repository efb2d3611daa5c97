"""Configuration of Mamba-2 and Bi-Mamba, for `transformers`."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nlrl.backbones.bimamba.fields import BiMambaFields
from nlrl.backbones.registry import register


@register
@strict
class BiMambaConfig(BiMambaFields, PreTrainedConfig):
    """`BiMambaFields`, and what Hugging Face adds."""

    model_type = "bimamba"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]
