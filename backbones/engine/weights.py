"""Weights that are about to replace others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nlrl.errors import NLRLError


def read(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        NLRLError: it is not there, or not one.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise NLRLError(f"load_weights: {path}: {error}") from None


def checked(model, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights, if they are all of the model's.

    Raises:
        NLRLError: a tensor is missing, unknown or of another shape.
    """
    own = model.state_dict(keep_vars=True)
    given = {id(own[key]) for key in weights if key in own}  # a tied tensor needs to come under one of its names only
    if missing := [key for key in own if id(own[key]) not in given]:
        raise NLRLError(f"load_weights: tensor {missing[0]!r} is missing ({len(missing)} of {len(own)} are)")
    for key, tensor in weights.items():
        if key not in own:
            raise NLRLError(f"load_weights: tensor {key!r} does not belong to {type(model).__name__}")
        if tensor.shape != own[key].shape:
            raise NLRLError(
                f"load_weights: tensor {key!r} has shape {tuple(tensor.shape)}, not {tuple(own[key].shape)}"
            )
    return dict(weights)
