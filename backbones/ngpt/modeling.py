"""nGPT: the `transformers` model, and its first weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.network import Network
from nlrl.backbones.ngpt.configuration import NGPTConfig
from nlrl.backbones.ngpt.network import NGPTNetwork, Scale


class NGPTForCausalLM(NGPTNetwork, Backbone):
    """nGPT; see `Backbone` for its methods. Train it with weight decay 0 and no warm-up."""

    config_class = NGPTConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: NGPTConfig):
        super().__init__(config)
        self.post_init()
        self.after_step()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, Scale):
            init.constant_(module.weight, module.stored)

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """As Hugging Face's; the logit scales follow, and new rows are put onto the sphere."""
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        old, size = self.logit_scale.weight, embeddings.num_embeddings
        new = old.new_full((size,), self.logit_scale.stored)
        new[: len(old)] = old[:size]
        self.logit_scale.weight = nn.Parameter(new)
        self.after_step()
        return embeddings


def attach_renormalisation(optimizer: torch.optim.Optimizer, model: Network):
    """Makes every `optimizer.step()` end with `model.after_step()`. Returns the hook's handle; `remove()` undoes it."""
    return optimizer.register_step_post_hook(lambda *_: model.after_step())
