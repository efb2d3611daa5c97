"""One door to every checkpoint: bundled models, folders that `save` wrote, and Hugging Face Llama folders."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast

from nlrl.backbones import checkpoint
from nlrl.backbones.backbone import Backbone
from nlrl.backbones.registry import MODELS, model_class
from nlrl.backbones.transformer.llama import from_hf_llama
from nlrl.errors import NLRLError

BUNDLED = Path(__file__).parent / "bundled"


def bundled_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob("*/config.json"))


def load(
    name_or_dir: str | os.PathLike, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Backbone, PreTrainedTokenizerFast]:
    """A model in evaluation mode, and its tokenizer.

    Args:
        name_or_dir: a bundled name (which goes before a folder of that name; write "./name" for the folder), a folder
            that `save` wrote, or a Hugging Face Llama folder.
        device: where the weights go.
        dtype: what they are computed in, whatever they are stored in.
    Raises:
        NLRLError: there is no such folder, its layout is unknown, a file is missing or torn, a tensor is missing or
            has another shape than config.json says, or the tokenizer does not belong to the weights.
    """
    folder = _folder(name_or_dir)
    model_type = checkpoint.read_json(folder / "config.json").get("model_type")
    tokenizer = checkpoint.read_tokenizer(folder)
    if model_type == "llama":
        model = from_hf_llama(folder, dtype)
    elif model_type in MODELS:
        model = _load_own(folder, model_type, tokenizer, dtype)
    else:
        known = ", ".join([*sorted(MODELS), "llama"])
        raise NLRLError(f"{folder / 'config.json'}: model_type is {model_type!r}; known are {known}")
    _check_size(folder, model, tokenizer)
    return model.to(device), tokenizer  # pyright: ignore[reportArgumentType]


def save(
    model: Backbone, tokenizer: PreTrainedTokenizerFast, folder: str | os.PathLike, dtype: torch.dtype = torch.float16
) -> None:
    """Writes a folder that `load` and the Auto classes read; an older folder of that name is replaced, at once and
    whole.

    Raises:
        NLRLError: a weight is not finite in dtype, or the tokenizer has more tokens than the model.
    """
    folder = Path(folder)
    _check_size(folder, model, tokenizer)
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
        checkpoint.write_weights(fresh / checkpoint.WEIGHTS, tensors, dtype, vocabulary)


def _folder(name_or_dir: str | os.PathLike) -> Path:
    if str(name_or_dir) in bundled_names():
        return BUNDLED / str(name_or_dir)
    folder = Path(name_or_dir)
    if not folder.is_dir():
        names = ", ".join(bundled_names()) or "none"
        raise NLRLError(f"no model {str(name_or_dir)!r}: it is no folder, and the bundled models are: {names}")
    return folder


def _load_own(folder: Path, model_type: str, tokenizer: PreTrainedTokenizerFast, dtype: torch.dtype) -> Backbone:
    made_by = model_class(model_type)
    try:
        config = made_by.config_class.from_pretrained(folder)
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{folder / 'config.json'}: {error}") from None
    tensors, metadata = checkpoint.read_tensors(folder)
    trained_with = metadata.get(checkpoint.VOCABULARY_KEY)
    if trained_with and trained_with != checkpoint.fingerprint(tokenizer):
        raise NLRLError(
            f"{folder}: the weights were saved with another vocabulary than that of {folder / 'tokenizer.json'}"
        )
    model = checkpoint.build(made_by, config, tensors, folder, dtype)
    if any(tensor.dtype != dtype for tensor in tensors.values()):
        model.after_step()
    return model


def _check_size(folder: Path, model: Backbone, tokenizer: PreTrainedTokenizerFast) -> None:
    if len(tokenizer) > model.config.vocab_size:
        raise NLRLError(
            f"{folder}: the tokenizer has {len(tokenizer)} tokens, but the model knows {model.config.vocab_size}"
        )
