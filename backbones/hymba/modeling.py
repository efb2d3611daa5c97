"""Hymba: the `transformers` model, and its first weights."""

from __future__ import annotations

import torch
from torch import nn
from transformers import initialization as init

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.hymba.configuration import HymbaConfig
from nlrl.backbones.hymba.network import HymbaNetwork, Mamba, Writer


class HymbaForCausalLM(HymbaNetwork, Backbone):
    """Hymba; see `Backbone` for its methods. `from_pretrained` reads NVIDIA's checkpoints too."""

    config_class = HymbaConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: HymbaConfig):
        super().__init__(config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """As Hugging Face's; a checkpoint of NVIDIA's layout goes through `official.from_official`, which checks every
        tensor."""
        from nlrl.backbones.hymba.official import from_hub, names_official

        if names_official(pretrained_model_name_or_path, kwargs):
            return from_hub(pretrained_model_name_or_path, kwargs)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def _init_weights(self, module: nn.Module) -> None:
        """Normal of `initializer_range`, smaller for the two matrices a layer whose outputs add up in the residual
        stream; Mamba's own parameters as Mamba-1 has them; meta tokens of unit variance."""
        std = self.config.initializer_range
        if isinstance(module, Writer):
            std /= (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, std=std)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, Mamba):
            init_mamba(module)
        elif isinstance(module, HymbaForCausalLM) and module.memory_tokens is not None:
            init.normal_(module.memory_tokens)


def init_mamba(mamba: Mamba) -> None:
    """Mamba-1's initial values: decays 1 .. N, step sizes between 0.001 and 0.1, evenly in their logarithm."""
    channels, states = mamba.A_log.shape
    init.uniform_(mamba.conv_weight, -(mamba.conv_weight.shape[1] ** -0.5), mamba.conv_weight.shape[1] ** -0.5)
    init.zeros_(mamba.conv_bias)
    init.ones_(mamba.D)
    init.copy_(mamba.A_log, torch.arange(1, states + 1, device=mamba.A_log.device).log().expand(channels, -1))
    step = torch.exp(torch.empty(channels, device=mamba.A_log.device).uniform_(-6.907755, -2.302585))
    init.copy_(mamba.dt_proj.bias, step + torch.log(-torch.expm1(-step)))  # the inverse of softplus
