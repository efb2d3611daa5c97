"""One door to every checkpoint: bundled models, folders that `save` wrote, and layouts of others (`FOREIGN`)."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from nlrl.backbones import checkpoint
from nlrl.backbones.hymba.official_config import is_official
from nlrl.backbones.int8 import dequantised, matrix_names
from nlrl.backbones.network import Network
from nlrl.backbones.plain_tokenizer import PlainTokenizer, read_plain_tokenizer
from nlrl.backbones.registry import BUNDLED, MODELS, imported, model_class, network_class
from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones.backbone import Backbone

Model = TypeVar("Model", bound=Network)

NVIDIA_FILE = "ckpt.pt"
STORED = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
BITS = "bits"
"""The other way to store weights: the signs of a Bi-Mamba as bits, the rest in float16."""
FOREIGN = {
    "diffllama": "nlrl.backbones.diff_transformer.diff_llama:from_hf_diff_llama",
    "llama": "nlrl.backbones.transformer.llama:from_hf_llama",
    "mamba2": "nlrl.backbones.bimamba.huggingface:from_hf_mamba2",
    "mamba_ssm": "nlrl.backbones.bimamba.huggingface:from_mamba_ssm",
    "nvidia_hymba": "nlrl.backbones.hymba.official:from_official",
    "nvidia_ngpt": "nlrl.backbones.ngpt.nvidia:from_nvidia",
}
"""`model_type` of a layout that is not ours: its importer, a function of (folder, dtype). mamba-ssm and NVIDIA/ngpt
write no type, and NVIDIA's Hymba says "hymba", as ours does."""
PICKLED = ("mamba_ssm", "nvidia_ngpt")
"""Those whose weights may be pickles."""
FOREIGN_TOKENIZERS = {"nvidia_hymba": "nlrl.backbones.hymba.official:official_tokenizer"}
"""A function that completes the tokenizer of such a folder."""


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def load(
    name_or_dir: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    pickles: bool = False,
) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """A model in evaluation mode, and its tokenizer.

    Args:
        name_or_dir: a bundled name (which goes before a folder of that name; write "./name" for the folder), a folder
            that `save` wrote, or one in a layout of `FOREIGN` (of NVIDIA/ngpt also the file, its tokenizer beside it).
        device: where the weights go.
        dtype: what they are computed in, whatever they are stored in.
        pickles: read weights of foreign layouts that are pickles (`ckpt.pt`, `.bin`), too. Even then they are read as
            tensors and numbers only: no code in them runs.
    Raises:
        NLRLError: there is no such folder, its layout is unknown, a file is missing or torn, a tensor is missing or
            has another shape than config.json says, the tokenizer does not belong to the weights, or these are pickles
            that nobody asked for.
    """
    source = _source(name_or_dir)
    model_type = _model_type(source)
    folder = source.parent if source.is_file() else source
    tokenizer = checkpoint.read_tokenizer(folder)
    if model_type in FOREIGN:
        asked = {"pickles": pickles} if model_type in PICKLED else {}
        model = imported(FOREIGN[model_type])(source, dtype, **asked)
        if model_type in FOREIGN_TOKENIZERS:
            tokenizer = imported(FOREIGN_TOKENIZERS[model_type])(tokenizer)
    elif model_type in MODELS:
        model = _load_own(folder, model_type, tokenizer, dtype)
    else:
        known = ", ".join([*sorted(MODELS), *FOREIGN])
        raise NLRLError(f"{folder / 'config.json'}: model_type is {model_type!r}; known are {known}")
    _check_size(folder, model, tokenizer)
    return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]


def save(
    model: Backbone, tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike, dtype: torch.dtype = torch.float16
) -> None:
    """Writes a folder that `load` and the Auto classes read; an older folder of that name is replaced, at once and
    whole.

    Args:
        dtype: what the weights are stored in. int8: matrices as integers with a scale a row (`int8.py`), the rest in
            float16.
    Raises:
        NLRLError: a weight is not finite in dtype, or the tokenizer has more tokens than the model.
    """
    from transformers import GenerationConfig

    folder = Path(folder)
    _check_size(folder, model, tokenizer)
    integers = matrix_names(model) if dtype == torch.int8 else set()
    dtype = torch.float16 if dtype == torch.int8 else dtype
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], dtype
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config.update(ends)
    tensors = model.state_dict()
    for name in (model._tied_weights_keys or ()) if config.tie_word_embeddings else ():
        tensors.pop(name)
    with checkpoint.new_folder(folder) as fresh:
        config.save_pretrained(fresh)
        GenerationConfig(**ends).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        vocabulary = {checkpoint.VOCABULARY_KEY: checkpoint.fingerprint(tokenizer)}
        checkpoint.write_weights(fresh / checkpoint.WEIGHTS, tensors, dtype, vocabulary, integers)


def load_trainable(
    name_or_dir: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """As `load`; a model whose signs are bits gets latent weights, which can be trained and give equal logits."""
    model, tokenizer = load(name_or_dir, device, dtype)
    return _unpacked(model).to(device), tokenizer  # pyright: ignore[reportArgumentType]


def load_network(
    name_or_dir: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Network, PlainTokenizer | PreTrainedTokenizerFast]:
    """As `load_trainable`, for the engine: the same weights and tokens, without what only `transformers` can do.

    It is not even imported, which would take longer than all the rest, for folders that `save` or `save_hf_llama` wrote
    with a tokenizer of `train_tokenizer`, the bundled ones among them. For others this is `load_trainable`.
    """
    source = _source(name_or_dir)
    tokenizer = read_plain_tokenizer(source)
    network = None if tokenizer is None else _network(source, tokenizer, dtype)
    if tokenizer is None or network is None:
        return load_trainable(name_or_dir, device, dtype)
    _check_size(source, network, tokenizer)
    return _unpacked(network).to(device), tokenizer


def store(model: Backbone, tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike, stored: str) -> None:
    """`save` by the name of a type, one of `STORED`, or as `BITS`.

    Raises:
        NLRLError: an unknown type, bits of a model that is no Bi-Mamba, or what `save` refuses.
    """
    if stored == BITS:
        from nlrl.backbones.bimamba.packed import pack

        if not getattr(model.config, "binary", False):
            raise NLRLError(f"only a Bi-Mamba model can be stored as bits, not a {model.config.model_type!r} model")
        packed = model if model.config.packed else pack(model)  # pyright: ignore[reportArgumentType]
        save(packed, tokenizer, folder)
    elif stored in STORED:
        save(model, tokenizer, folder, STORED[stored])
    else:
        raise NLRLError(f"weights cannot be stored as {stored!r}; known are {', '.join([*STORED, BITS])}")


def convert(source: str | os.PathLike, out: str | os.PathLike, dtype: str = "int8") -> Path:
    """Writes a model that `load` reads, whatever its layout, in our layout and another type.

    Args:
        source: as in `load`.
        out: the new folder; a model folder that is there already is replaced.
        dtype: one of `STORED`, or `BITS`.
    Returns: the new weights' file.
    Raises:
        NLRLError: an unknown dtype, an `out` that holds something else than a model, or what `load` and `save` refuse.
    """
    out = Path(out)
    if out.exists() and not (out / "config.json").exists():
        raise NLRLError(f"{out} is there and is no model folder (no config.json in it): name another")
    store(*load(source), out, dtype)
    return out / checkpoint.WEIGHTS


def _source(name_or_dir: str | os.PathLike) -> Path:
    """The folder of a checkpoint, or its file where the layout is one file."""
    if str(name_or_dir) in bundled_names():
        return BUNDLED / str(name_or_dir)
    folder = Path(name_or_dir)
    if not folder.is_dir() and not (folder.is_file() and folder.suffix == ".pt"):
        names = ", ".join(bundled_names()) or "none"
        raise NLRLError(f"no model {str(name_or_dir)!r}: it is no folder, and the bundled models are: {names}")
    return folder


def _model_type(source: Path) -> str | None:
    if source.is_file() or (not (source / "config.json").exists() and (source / NVIDIA_FILE).exists()):
        return "nvidia_ngpt"
    fields = checkpoint.read_json(source / "config.json")
    if "model_type" not in fields and {"d_model", "ssm_cfg"} <= fields.keys():
        return "mamba_ssm"
    if is_official(fields):
        return "nvidia_hymba"
    return fields.get("model_type")


def _network(folder: Path, tokenizer: PlainTokenizer, dtype: torch.dtype) -> Network | None:
    """None where `transformers` must translate config.json."""
    written = checkpoint.read_json(folder / "config.json")
    if written.get("model_type") == "llama":
        from nlrl.backbones.transformer.llama import network_of_llama

        return network_of_llama(folder, written, dtype)
    if written.get("model_type") not in MODELS:
        return None
    made_by = network_class(written["model_type"])
    try:
        config = made_by.fields_class.of(written)
    except Exception as error:
        raise NLRLError(f"{folder / 'config.json'}: {error}") from None
    return None if config is None else _built(made_by, config, folder, tokenizer, dtype)


def _load_own(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> Backbone:
    made_by = model_class(model_type)
    try:
        config = made_by.config_class.from_pretrained(folder)
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{folder / 'config.json'}: {error}") from None
    return _built(made_by, config, folder, tokenizer, dtype)


def _built(
    made_by: type[Model],
    config: Any,
    folder: Path,
    tokenizer: PlainTokenizer | PreTrainedTokenizerFast,
    dtype: torch.dtype,
) -> Model:
    tensors, metadata = checkpoint.read_tensors(folder)
    trained_with = metadata.get(checkpoint.VOCABULARY_KEY)
    if trained_with and trained_with != checkpoint.fingerprint(tokenizer):
        raise NLRLError(
            f"{folder}: the weights were saved with another vocabulary than that of {folder / 'tokenizer.json'}"
        )
    model = checkpoint.build(made_by, config, dequantised(tensors, folder), folder, dtype)
    if any(tensor.dtype != dtype for tensor in tensors.values()):
        model.after_step()
    return model


def _unpacked(model: Model) -> Model:
    """With latent weights in place of signs that are bits."""
    if not getattr(model.config, "packed", False):
        return model
    from nlrl.backbones.bimamba.packed import unpack

    return unpack(model)  # pyright: ignore[reportArgumentType, reportReturnType]


def _check_size(folder: Path, model: Network, tokenizer: PlainTokenizer | PreTrainedTokenizerFast) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise NLRLError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the model knows {model.config.vocab_size}"
        )
