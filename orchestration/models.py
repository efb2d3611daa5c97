"""Opens the language model that a config, or an agent's name, describes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from nlrl.backbones.language_model import LanguageModel
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig, load_config, validated
from nlrl.orchestration.store import is_url
from nlrl.orchestration.weight_sets import PARTS

AGENT_FOLDER = "agent"
"""What a finished run leaves of its agent."""


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


def inference_dtype(name: str, device: str) -> str:
    """What `auto` means for a native model on a device."""
    return name if name != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")


def set_threads(threads: int) -> None:
    """CPU threads of torch in this process; 0 leaves torch's choice."""
    import torch

    if threads:
        torch.set_num_threads(threads)


def agent_config(agent: str, base_url: str = "") -> ModelConfig:
    """The model config of an agent named on the command line.

    Raises:
        NLRLError: a run's folder without a finished agent.
    """
    if base_url:
        return validated(ModelConfig, {"kind": "openai", "name": agent, "base_url": base_url}, "--base-url")
    folder = place_of(agent)
    if is_run(folder):
        if not (folder / AGENT_FOLDER).exists():
            raise NLRLError(
                f"{agent}: this run has no finished agent yet; finish it with `nlrl run {folder}/config.toml`"
            )
        model, trained = load_config(folder / "config.toml").model, str(folder / AGENT_FOLDER)
        scripted = model.kind == "scripted"  # such a model is a module, told where its weights are
        place = {"options": model.options | {"agent": trained}} if scripted else {"name": trained, "tuning": None}
        return model.model_copy(update=place)
    return ModelConfig(name=agent)


def place_of(agent: str, iteration: int | None = None) -> Path:
    """The folder of an agent that is named by one, or by a run's URL: of that it is a local copy, fetched once in a
    process, with the networks of an iteration or, without one, of the finished agent.

    Raises:
        NLRLError: no run is at the URL.
    """
    return _fetched(agent, iteration) if is_url(agent) else Path(agent)


@cache
def _fetched(url: str, iteration: int | None) -> Path:
    from nlrl.orchestration.fetching import but_weights, fetch  # fsspec

    within = f"{AGENT_FOLDER}/" if iteration is None else f"iterations/{iteration:03d}/"
    return fetch(url, lambda name: but_weights(name) or name.startswith(within))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's."""
    return (folder / "config.toml").exists()


def open_model(config: ModelConfig, threads: int = 0, gpu_share: float = 0, more_sets: int = 0) -> LanguageModel:
    """A model ready to answer.

    Args:
        threads: CPU threads of torch; 0 leaves torch's choice.
        gpu_share: of a GPU's memory, for a native model, or one in vLLM, that has others beside it; 0: it may take
            what is free.
        more_sets: weight sets that a native model will hold besides base, actor and critic.

    Raises:
        NLRLError: it cannot be opened; the message names the field.
    """
    if config.kind == "openai":
        from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings

        place = {"model": config.name, "base_url": config.base_url, "api_key_env": config.api_key_env}
        return OpenAIModel(validated(OpenAISettings, config.options | place, f"model '{config.name}'"))
    if config.kind == "vllm":
        from nlrl.backbones.vllm_model import VLLMModel, VLLMSettings

        place: dict[str, Any] = {"model": config.name, "dtype": config.dtype}
        if config.tuning is not None and config.tuning.kind == "lora":
            place["max_lora_rank"] = config.tuning.rank
        memory = {"gpu_memory_utilization": round(0.9 * gpu_share, 3)} if 0 < gpu_share < 1 else {}
        return VLLMModel(validated(VLLMSettings, memory | config.options | place, f"model '{config.name}'"))
    if config.kind == "scripted":
        make_model = scripted_module(config.name).make_model
        check_options(config, make_model)
        return make_model(**config.options)
    set_threads(threads)
    return _open_native(config, gpu_share, more_sets)


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


def _open_native(config: ModelConfig, gpu_share: float, more_sets: int) -> LanguageModel:
    import torch

    from nlrl.backbones.engine import Engine
    from nlrl.backbones.loading import load_network

    device = resolve_device(config.device)
    name = inference_dtype(config.dtype, device)
    model, tokenizer = load_network(config.name, device=device, dtype=torch.float32)
    check_options(config, Engine)
    options: dict[str, Any] = {"weight_version": f"{config.name}@0"} | config.options
    if gpu_share and device.startswith("cuda"):
        total = torch.cuda.get_device_properties(device).total_memory
        options.setdefault("memory_bytes", state_bytes(total, gpu_share, more_sets))
    return Engine(model, tokenizer, name=config.name, dtype=getattr(torch, name), **options)


def state_bytes(total: int, share: float, more_sets: int = 0) -> int:
    """Bytes for keys, values and states of each weight set of an engine that has a share of a device with `total`
    bytes: base, actor, critic and what sets there are more get equal parts of one half, and weights and activations the
    other."""
    return int(total * share / 2 / (1 + len(PARTS) + more_sets))
