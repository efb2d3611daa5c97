"""Tokenised examples on disk, so that several models can be trained on the very same ones.

A file is a NumPy `.npz` archive without compression: all tokens behind each other and, for each example, the length of
its prompt and of its completion.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from nlrl.backbones.packing import TokenExample
from nlrl.errors import NLRLError

_FIELDS = ("tokens", "prompts", "completions")


def write_examples(path: Path, parts: Iterable[Path]) -> int:
    """Joins part files into one; returns how many examples it holds.

    Raises:
        NLRLError: there are no parts.
    """
    loaded = [_load(part) for part in parts]
    if not loaded:
        raise NLRLError(f"{path}: nothing to write")
    _save(path, *(np.concatenate([part[name] for part in loaded]) for name in _FIELDS))
    return sum(len(part["prompts"]) for part in loaded)


def write_part(path: Path, examples: Iterable[TokenExample]) -> None:
    """Writes the examples of one process. Weights are not kept: corpus examples all weigh 1.

    Raises:
        NLRLError: a token does not fit into 16 bits, or a part is longer than 65,535 tokens.
    """
    tokens: list[int] = []
    prompts, completions = [], []
    for example in examples:
        tokens.extend(example.prompt + example.completion)
        prompts.append(len(example.prompt))
        completions.append(len(example.completion))
    if max(tokens, default=0) >= 1 << 16 or max(prompts + completions, default=0) >= 1 << 16:
        raise NLRLError(f"{path}: token ids and lengths must be below 65,536")
    _save(path, *(np.array(values, np.uint16) for values in (tokens, prompts, completions)))


def read_examples(path: Path, worker: int = 0, workers: int = 1) -> Iterator[TokenExample]:
    """Every `workers`-th example from the `worker`-th on, in the file's order, once.

    Raises:
        NLRLError: no such file, or it is not one of ours.
    """
    arrays = _load(path)
    lengths = arrays["prompts"].astype(np.int64) + arrays["completions"]
    ends = np.cumsum(lengths)
    for i in range(worker, len(ends), workers):
        start, middle = int(ends[i] - lengths[i]), int(ends[i]) - int(arrays["completions"][i])
        row = arrays["tokens"]
        yield TokenExample(tuple(row[start:middle].tolist()), tuple(row[middle : int(ends[i])].tolist()))


def _save(path: Path, *arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **dict(zip(_FIELDS, arrays, strict=True)))  # pyright: ignore[reportArgumentType]


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        _refuse_compressed(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in _FIELDS}
    except FileNotFoundError:
        raise NLRLError(f"corpus file {path} does not exist; `nlrl corpus` writes one") from None
    except Exception as error:  # zipfile and numpy have many kinds
        raise NLRLError(f"{path} is not a corpus file of `nlrl corpus`: {error}") from None
    if any(array.ndim != 1 or array.dtype != np.uint16 for array in arrays.values()):
        raise NLRLError(f"{path} is not a corpus file of `nlrl corpus`: its arrays must be rows of 16-bit numbers")
    lengths = arrays["prompts"].sum(dtype=np.int64) + arrays["completions"].sum(dtype=np.int64)
    if len(arrays["prompts"]) != len(arrays["completions"]) or lengths != len(arrays["tokens"]):
        raise NLRLError(
            f"{path} is damaged: its lengths do not add up to its tokens; write it again with `nlrl corpus`"
        )
    return arrays


def _refuse_compressed(path: Path) -> None:
    """We write none, and one may be a thousand times larger than its file."""
    with ZipFile(path) as archive:
        if any(entry.compress_type != ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed")
