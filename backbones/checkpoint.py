"""Reading and writing the files of a checkpoint folder: config.json, model.safetensors, and the tokenizer's.

Every way in which a folder can be wrong is an `NLRLError` that names the file, the tensor and what was expected.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nlrl.backbones.int8 import dequantised, quantised
from nlrl.backbones.network import Network
from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones.plain_tokenizer import PlainTokenizer

Model = TypeVar("Model", bound=Network)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PLAIN_NAME = re.compile(r"[\w-][\w.-]*\.safetensors", re.ASCII)
VOCABULARY_KEY = "vocabulary"
"""Of the weights' metadata: the fingerprint of the tokenizer they were saved with."""


def refuse_pickle(path: Path) -> NoReturn:
    """Raises: NLRLError: pickles are read by those who ask for them."""
    raise NLRLError(
        f"{path} is a pickle; weights are read from safetensors files only. If you trust it, make a folder of it once: "
        f"`model, tokenizer = nlrl.backbones.load(FOLDER, pickles=True)`, then `nlrl.backbones.save(model, tokenizer, "
        "NEW_FOLDER)`"
    )


def read_json(path: Path) -> dict:
    """Raises: NLRLError: the file is missing or no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NLRLError(f"{path} is missing: a checkpoint folder has a {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise NLRLError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(value, dict):
        raise NLRLError(f"{path} should hold a JSON object, not a {type(value).__name__}")
    return value


def read_tensors(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a folder, in one file or in the shards that an index names, and the (first) file's metadata.

    Raises: NLRLError: a file is missing or torn.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return _read_safetensors(folder / WEIGHTS)
    tensors: dict[str, Tensor] = {}
    for path in _shards(folder):
        tensors.update(_read_safetensors(path)[0])
    return tensors, {}


def _shards(folder: Path) -> list[Path]:
    """The files that the index names; they stand beside it, whatever it says."""
    index = folder / INDEX
    named = read_json(index).get("weight_map")
    names: list[Any] = list(named.values()) if isinstance(named, dict) else [None]
    wrong = [name for name in names if not (isinstance(name, str) and _PLAIN_NAME.fullmatch(name))]
    if wrong or not names:
        raise NLRLError(
            f"{index}: weight_map must name files such as model-00001-of-00002.safetensors beside it, "
            f"not {wrong[0] if wrong else 'nothing'!r}"
        )
    return [folder / name for name in sorted(set(names))]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if not path.exists():
        raise NLRLError(f"{path} is missing: weights are read from safetensors files only")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise NLRLError(f"{path} is torn or no safetensors file ({error}): copy or save it again") from None


def dequantised_files(paths: list[Path]) -> dict[str, Tensor] | None:
    """All tensors of safetensors files with int8 matrices made floats; None if no file has any.

    Raises: NLRLError: a file is torn, or scales are missing or wrong.
    """
    if not any(path.suffix == ".safetensors" and _holds_int8(path) for path in paths):
        return None
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors.update(_read_safetensors(path)[0])
    return dequantised(tensors, paths[0])


def _holds_int8(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return any(file.get_slice(name).get_dtype() == "I8" for name in file.keys())  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise NLRLError(f"{path} is torn or no safetensors file ({error}): copy or save it again") from None


def build(model_class: type[Model], config, tensors: dict[str, Tensor], source: Path, dtype: torch.dtype) -> Model:
    """A model in evaluation mode that holds the given tensors; draws no random number and fills no weight twice.

    Raises: NLRLError: a tensor is missing, unknown or of another shape. source only serves the message.
    """
    with torch.device("meta"), _NoFirstWeights():
        model = model_class(config)
    tied: dict[str, str] = (model._tied_weights_keys or {}) if config.tie_word_embeddings else {}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in tied}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
    _check_tensors(expected, tensors, source, config.model_type)
    model.load_state_dict(
        {name: _as_float(tensor, dtype) for name, tensor in tensors.items()}, strict=False, assign=True
    )
    for name, other in tied.items():
        owner, _, own_name = name.rpartition(".")
        setattr(model.get_submodule(owner), own_name, model.get_parameter(other))
    return model.eval()


class _NoFirstWeights(TorchFunctionMode):
    """Modules are made without first weights. There is nothing to draw on the meta device, but PyTorch would import its
    compiler to find that out."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else named["tensor"]
        return func(*args, **named)


def _as_float(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In another floating type; integers (weights as bits) stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _check_tensors(expected: dict[str, tuple], tensors: dict[str, Tensor], source: Path, model_type: str) -> None:
    for name, shape in expected.items():
        if name in tensors and tuple(tensors[name].shape) != shape:
            found = tuple(tensors[name].shape)
            raise NLRLError(f"{source}: tensor {name} has shape {found}, but config.json asks for {shape}")
    kind = f"part of a {model_type!r} model of this config"
    if missing := expected.keys() - tensors.keys():
        raise NLRLError(f"{source} lacks tensor {min(missing)} ({len(missing)} such in all), a {kind}")
    if foreign := tensors.keys() - expected.keys():
        raise NLRLError(f"{source} holds tensor {min(foreign)} ({len(foreign)} such in all), which is no {kind}")


def write_weights(
    path: Path,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    metadata: dict[str, str],
    int8: Set[str] = frozenset(),
) -> None:
    """Writes the tensors named in `int8` as integers with scales, the others in dtype.

    Raises: NLRLError: a weight is not finite in the dtype asked for.
    """
    floats = {name: tensor for name, tensor in tensors.items() if name not in int8}
    rounded = {name: _as_float(tensor.detach().cpu(), dtype).contiguous() for name, tensor in floats.items()}
    for name, tensor in rounded.items():
        if not tensor.isfinite().all():
            raise NLRLError(
                f"tensor {name} has values that {dtype} cannot hold (or NaN): save with dtype=torch.float32"
            )
    rounded.update(quantised({name: tensors[name] for name in sorted(int8 & tensors.keys())}))
    save_file(rounded, path, metadata={"format": "pt", **metadata})
    _sort_metadata(path)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read


def _sort_metadata(path: Path) -> None:
    """safetensors writes the entries of the metadata in any order; equal weights are to be equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size, "the header has grown"
        file.seek(8)
        file.write(text.ljust(size))


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that takes the name `folder`, in place of an older one, when the block ends well.

    A process that dies in the block leaves the old folder as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fresh = work / "new"
        fresh.mkdir()
        yield fresh
        if folder.exists():
            folder.rename(work / "old")
        fresh.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """Raises: NLRLError: there is none, or it cannot be read."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "tokenizer.json").exists():
            return PreTrainedTokenizerFast.from_pretrained(folder)
        if (folder / "tokenizer.model").exists():
            return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise NLRLError(f"the tokenizer of {folder} cannot be read: {error}") from None
    raise NLRLError(f"{folder / 'tokenizer.json'} is missing: a model is loaded with the tokenizer it was trained with")


def fingerprint(tokenizer: PlainTokenizer | PreTrainedTokenizerFast) -> str:
    """Equal for tokenizers that give every token the same number."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()
