"""Configuration of Hymba, for `transformers`."""

from __future__ import annotations

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from nlrl.backbones.hymba.fields import HymbaFields
from nlrl.backbones.hymba.official_config import is_official, translated
from nlrl.backbones.registry import register


@register
@strict
class HymbaConfig(HymbaFields, PreTrainedConfig):
    """`HymbaFields`, and what Hugging Face adds."""

    model_type = "hymba"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As Hugging Face's; understands NVIDIA's config.json.

        Raises:
            ValueError: it asks for a part that no published checkpoint has.
        """
        return super().from_dict(translated(config_dict) if is_official(config_dict) else config_dict, **kwargs)
