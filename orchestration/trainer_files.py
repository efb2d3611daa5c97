"""The files of a trainer's networks: safetensors, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nlrl.errors import NLRLError


def write_tensors(path: str | Path, tensors: Mapping[str, Any], told: Mapping[str, str] | None = None) -> None:
    """Args: told: the file's metadata; one entry at most where bytes must be equal, since safetensors writes several in
    any order."""
    from safetensors.torch import save

    from nlrl.orchestration.atomic import write_atomic

    contiguous = {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}
    write_atomic(Path(path), save(contiguous, dict(told) if told else None))


def read_weights(path: str, module: Any, base: str) -> None:
    """Reads weights into a module.

    Raises:
        NLRLError: the file is missing or torn, or holds the weights of another model than what `base` made.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as error:
        first = str(error).split("\n\t")[:2][-1].rstrip(".")
        raise NLRLError(
            f"{path} does not hold weights of '{base}': {first}. Give the run the model it began with "
            "(model.name), or delete the folder of this stage and rerun: it is trained again"
        ) from None


def read_tensors(path: str) -> dict[str, Any]:
    """The tensors of a file.

    Raises:
        NLRLError: it is missing or torn.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise NLRLError(
            f"{path} cannot be read: {error}. Delete the folder of this stage and rerun: it is trained again"
        ) from None
