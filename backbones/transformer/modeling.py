"""The control: the `transformers` model, and its first weights."""

from __future__ import annotations

from torch import nn
from transformers import initialization as init

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.network import TransformerNetwork, Writer


class TransformerForCausalLM(TransformerNetwork, Backbone):
    """The control decoder; see `Backbone` for its methods."""

    config_class = TransformerConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: TransformerConfig):
        super().__init__(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Normal of `initializer_range`, smaller for the two matrices a layer whose outputs add up in the residual
        stream."""
        std = self.config.initializer_range
        if isinstance(module, Writer):
            std /= (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
