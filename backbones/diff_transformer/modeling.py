"""The Differential Transformer: the `transformers` model, and its first weights."""

from __future__ import annotations

from torch import nn
from transformers import initialization as init

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.diff_transformer.configuration import DiffTransformerConfig
from nlrl.backbones.diff_transformer.network import DiffTransformerNetwork, Lambda, Writer


class DiffTransformerForCausalLM(DiffTransformerNetwork, Backbone):
    """The Differential Transformer; see `Backbone` for its methods."""

    config_class = DiffTransformerConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: DiffTransformerConfig):
        super().__init__(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As the control's, so that a comparison starts equal; lambda vectors as in the paper."""
        std = self.config.initializer_range
        if isinstance(module, Writer):
            std /= (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Lambda):
            for vector in module.parameters(recurse=False):
                init.normal_(vector, std=module.std)
