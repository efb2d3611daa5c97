"""Whether a foreign checkpoint holds the tensors that its config asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from nlrl.errors import NLRLError

NAMED = 8
"""Tensors named of each kind of fault; the rest are counted."""


def check_layout(expected: Mapping[str, tuple], tensors: Mapping[str, Tensor], source: Path, kind: str) -> None:
    """Args: expected: name -> shape. kind: the model's name in the message.

    Raises: NLRLError: tensors are missing, unknown or of another shape; all that is wrong, in one message.
    """
    missing = sorted(expected.keys() - tensors.keys())
    foreign = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    faults = [("lacks", missing), ("holds unknown", foreign), ("has in another shape", misshapen)]
    said = [f"{verb} {_listed(names)}" for verb, names in faults if names]
    if said:
        raise NLRLError(f"{source} is no {kind} checkpoint of its config: it " + "; it ".join(said))


def _listed(names: list[str]) -> str:
    rest = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {rest} more" if rest > 0 else "")
