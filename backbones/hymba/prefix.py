"""What the meta tokens leave for every text, and how decoding keeps it up to date."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nlrl.backbones.hymba.fields import HymbaFields

if TYPE_CHECKING:
    from nlrl.backbones.hymba.network import HymbaNetwork


@dataclass
class Prefix:
    """What the meta tokens leave for the text; every field None where there is nothing (of that kind)."""

    keys: Tensor | None = None
    """`(layers with keys, kv_heads, meta, head_dim)`, turned by their positions 0 .. meta-1."""
    values: Tensor | None = None
    """`(layers with keys, kv_heads, meta, v_head_dim)`."""
    conv: Tensor | None = None
    """`(Mamba layers, d_conv - 1, d_inner)`, the convolution's last inputs."""
    ssm: Tensor | None = None
    """`(Mamba layers, d_inner, d_state)`, float32 at least."""

    def of(self, layer: int) -> tuple[Tensor | None, Tensor | None]:
        """Keys and values of one of the layers that keep any, `(kv_heads, meta, width)`."""
        return (None, None) if self.keys is None or self.values is None else (self.keys[layer], self.values[layer])

    def take(self, source: Prefix) -> None:
        """Takes over another's numbers, in place."""
        for field in fields(self):
            part, new = getattr(self, field.name), getattr(source, field.name)
            if part is not None:
                part.copy_(new)

    @classmethod
    def zeros(cls, config: HymbaFields, device, dtype: torch.dtype) -> Prefix:
        """One of the right shapes."""
        if not config.num_memory_tokens:
            return cls()
        kv = (len(config.kv_layers), config.num_key_value_heads, config.num_memory_tokens)
        ssm, wide = len(config.ssm_layers), torch.promote_types(dtype, torch.float32)

        def zeros(*shape, dtype=dtype):
            return torch.zeros(shape, device=device, dtype=dtype) if shape[0] else None

        return cls(
            zeros(*kv, config.head_dim),
            zeros(*kv, config.v_head_dim),
            zeros(ssm, config.mamba_d_conv - 1, config.d_inner),
            zeros(ssm, config.d_inner, config.mamba_d_state, dtype=wide),
        )


class MetaTokens:
    """The prefix of a model for decoding: computed again, in the same memory, when a weight has changed.

    Changes are seen by PyTorch's version counters and addresses. Two kinds leave no mark there: writes through
    `weight.data`, and the replay of a CUDA graph of training steps. `model.after_step()`, `model.train()` and
    `model.eval()` therefore forget too.
    """

    def __init__(self):
        self._copies: dict[tuple[torch.device, torch.dtype], Prefix] = {}
        self._version: object = None

    def forget(self) -> None:
        self._version = None

    def prefix(self, model: HymbaNetwork, device: torch.device, dtype: torch.dtype) -> Prefix:
        """The model's prefix, on the device and in the type of a state; the same tensors at every call."""
        if device.type == "meta":
            return Prefix.zeros(model.config, device, dtype)
        if (device, dtype) not in self._copies:
            with torch.inference_mode(False), torch.no_grad():
                self._copies[device, dtype] = Prefix.zeros(model.config, device, dtype)
            self.forget()
        self.refresh(model)
        return self._copies[device, dtype]

    def refresh(self, model: HymbaNetwork) -> None:
        """Computes it again if a weight has changed. A compiled step leaves that to the calls before it."""
        if torch.compiler.is_compiling() or not model.config.num_memory_tokens:
            return
        version = _version(model)
        if version is not None and version == self._version:
            return
        with torch.inference_mode(False), torch.no_grad():
            fresh = model.read_meta()
            for copy in self._copies.values():
                copy.take(fresh)
        self._version = version


def _version(model: nn.Module) -> object:
    """Changes when a weight does; None: cannot be told."""
    weights = list(model.parameters())
    if any(weight.is_inference() for weight in weights):
        return None
    return [(weight.data_ptr(), weight._version) for weight in weights]
