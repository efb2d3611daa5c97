"""Mamba-2 and Bi-Mamba: the `transformers` model, and its first weights."""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import initialization as init

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.bimamba.configuration import BiMambaConfig
from nlrl.backbones.bimamba.fbi_linear import FBILinear, PackedFBILinear
from nlrl.backbones.bimamba.network import BiMambaNetwork, Mixer, RMSNorm

FIRST_A = (1.0, 16.0)
"""-A at the start, uniform."""
FIRST_DT = (1e-3, 0.1)
"""dt at the start, uniform in its logarithm."""


class BiMambaForCausalLM(BiMambaNetwork, Backbone):
    """Mamba-2, binary or not; see `Backbone` for its methods."""

    config_class = BiMambaConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012

    def __init__(self, config: BiMambaConfig):
        super().__init__(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, Mixer):
            first_mixer(module)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module is self.lm_head):
            init.normal_(module.weight, std=self.config.initializer_range)


@torch.no_grad()
def first_mixer(mixer: Mixer) -> None:
    """The published initialisation. `out_proj` is smaller by the root of the number of layers, whose outputs add up."""
    heads, layers = mixer.dt_bias, mixer.config.num_hidden_layers
    for linear, scale in ((mixer.in_proj, 1.0), (mixer.out_proj, layers**-0.5)):
        if isinstance(linear, PackedFBILinear):
            init.ones_(linear.alpha)
            init.zeros_(linear.beta)
            continue
        bound = scale * float(linear.weight.shape[1]) ** -0.5
        init.uniform_(linear.weight, -bound, bound)
        if isinstance(linear, FBILinear):
            linear.fit_scales()
    bound = mixer.conv_weight.shape[1] ** -0.5
    for weight in (mixer.conv_weight, mixer.conv_bias):
        if weight is not None:
            init.uniform_(weight, -bound, bound)
    lowest, highest = map(math.log, FIRST_DT)
    dt = torch.empty_like(heads, dtype=torch.float32).uniform_(lowest, highest).exp()
    init.copy_(mixer.dt_bias, dt + torch.log(-torch.expm1(-dt)))
    init.copy_(mixer.A_log, torch.empty_like(heads, dtype=torch.float32).uniform_(*FIRST_A).log())
    init.ones_(mixer.D)
