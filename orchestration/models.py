"""Opens the language model that a config describes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from nlrl.backbones.language_model import LanguageModel
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig, validated


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where there is a GPU, cpu otherwise.

    Raises:
        NLRLError: a device that this machine does not have.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise NLRLError(f"model.device is '{device}', but this machine shows no CUDA device; use 'auto' or 'cpu'")
    return device


def set_threads(threads: int) -> None:
    """CPU threads of torch in this process; 0 leaves torch's choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def open_model(config: ModelConfig, threads: int = 0) -> LanguageModel:
    """A model ready to answer.

    Raises:
        NLRLError: it cannot be opened; the message names the field.
    """
    if config.kind == "openai":
        from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings

        place = {"model": config.name, "base_url": config.base_url, "api_key_env": config.api_key_env}
        return OpenAIModel(validated(OpenAISettings, config.options | place, f"model '{config.name}'"))
    if config.kind == "vllm":
        from nlrl.backbones.vllm_model import VLLMModel, VLLMSettings

        place = {"model": config.name, "dtype": config.dtype}
        return VLLMModel(validated(VLLMSettings, config.options | place, f"model '{config.name}'"))
    if config.kind == "scripted":
        make_model = scripted_module(config.name).make_model
        check_options(config, make_model)
        return make_model(**config.options)
    set_threads(threads)
    return _open_native(config)


def check_options(config: ModelConfig, client: Callable[..., Any]) -> None:
    """Refuses options that a client does not take.

    Raises:
        NLRLError: names the first of them, and those it takes.
    """
    parameters = inspect.signature(client).parameters.values()
    known = [p.name for p in parameters if p.default is not p.empty and p.kind is not p.VAR_KEYWORD]
    unknown = [key for key in config.options if key not in known]
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise NLRLError(
            f"model.options: {config.kind} models have no option '{unknown[0]}', but {', '.join(known) or 'none'}"
        )


def scripted_module(name: str) -> Any:
    """The module of a scripted model.

    Raises:
        NLRLError: it cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NLRLError(
            f"model.name: scripted models are modules, and '{name}' cannot be imported ({error})"
        ) from error


def _open_native(config: ModelConfig) -> LanguageModel:
    import torch

    from nlrl.backbones.loading import load
    from nlrl.backbones.native import NativeLanguageModel

    device = resolve_device(config.device)
    name = config.dtype if config.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    model, tokenizer = load(config.name, device=device, dtype=torch.float32)
    check_options(config, NativeLanguageModel)
    options: dict[str, Any] = {"weight_version": f"{config.name}@0"} | config.options
    return NativeLanguageModel(model, tokenizer, name=config.name, dtype=getattr(torch, name), **options)
