"""Bi-Mamba models whose binary matrices are bits, in memory and on disk.

`pack` keeps the function and loses the latent weights; `unpack` makes latent weights anew, so that signs can be trained
on. A folder written with `packed` in its config.json is read like any other (`nlrl.backbones.load`, Auto classes).
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from nlrl.backbones import checkpoint
from nlrl.backbones.bimamba.fbi_linear import FBILinear, PackedFBILinear
from nlrl.backbones.bimamba.network import BiMambaNetwork
from nlrl.errors import NLRLError
from nlrl.kernels.bit_linear.reference import pack_signs, unpack_signs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones.bimamba.modeling import BiMambaForCausalLM

Model = TypeVar("Model", bound=BiMambaNetwork)


class PackedSize(NamedTuple):
    """What `save_packed` wrote."""

    binary_weights: int
    binary_bytes: int
    """Of their bits."""
    file_bytes: int
    """Of all weights, embedding and scales included."""
    zeros: int
    """Latent weights that were exactly zero; they became +1 or -1 by their sign bit."""


def pack(model: Model) -> Model:
    """A copy for inference with equal logits, its signs as bits.

    Raises:
        NLRLError: the model is not binary, or packed already.
    """
    if not model.config.binary or model.config.packed:
        raise NLRLError("only a Bi-Mamba model (binary, not packed) can be packed")
    return _rebuilt(model, True, FBILinear, lambda linear: {"bits": pack_signs(linear.weight)})


def unpack(model: Model) -> Model:
    """A copy with equal logits whose signs can be trained: latent weights are as far from zero as their column's alpha.

    Raises:
        NLRLError: the model is not packed.
    """
    if not model.config.packed:
        raise NLRLError("only a packed Bi-Mamba model can be unpacked")
    return _rebuilt(model, False, PackedFBILinear, lambda linear: {"weight": _latent(linear)})


def save_packed(
    model: BiMambaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: str | os.PathLike,
    dtype: torch.dtype = torch.float16,
) -> PackedSize:
    """Writes a folder with 1 bit for each binary weight that `nlrl.backbones.load` reads.

    Args:
        dtype: what all other weights are stored in, as for `nlrl.backbones.save`.
    Raises:
        NLRLError: as `pack` and `nlrl.backbones.save`.
    """
    from nlrl.backbones.loading import save

    packed = pack(model)
    save(packed, tokenizer, folder, dtype)
    latent = [module.weight for module in model.modules() if isinstance(module, FBILinear)]
    bits = [module.bits for module in packed.modules() if isinstance(module, PackedFBILinear)]
    return PackedSize(
        binary_weights=sum(weight.numel() for weight in latent),
        binary_bytes=sum(part.nbytes for part in bits),
        file_bytes=(Path(folder) / checkpoint.WEIGHTS).stat().st_size,
        zeros=sum(int((weight == 0).sum()) for weight in latent),
    )


@torch.no_grad()
def _rebuilt(model: Model, packed: bool, kind: type[nn.Module], replace: Callable[..., dict[str, Tensor]]) -> Model:
    """The model with what `replace` gives in place of the signs of every module of the kind."""
    config = copy.deepcopy(model.config)
    config.packed = packed
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for prefix, module in model.named_modules():
        if isinstance(module, kind):
            tensors.pop(f"{prefix}.{'weight' if packed else 'bits'}")
            tensors.update({f"{prefix}.{name}": tensor for name, tensor in replace(module).items()})
    return checkpoint.build(type(model), config, tensors, Path("the model"), model.dtype)


def _latent(linear: PackedFBILinear) -> Tensor:
    signs = unpack_signs(linear.bits, linear.inputs, linear.alpha.dtype)
    return linear.alpha.abs().expand_as(signs).copysign(signs)
