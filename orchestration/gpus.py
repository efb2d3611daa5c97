"""How many GPUs a model's server takes from Ray."""

from __future__ import annotations

from nlrl.orchestration.config import ModelConfig


def gpus_of(model: ModelConfig, native: float) -> float:
    """GPUs of one server: shares of one for native models, whole ones for vLLM, none for endpoints and scripts.

    Args:
        native: the share of a native model.
    """
    if model.kind == "native":
        return native
    if model.kind != "vllm":
        return 0
    if model.gpus is not None:
        return model.gpus
    if not _has_gpus():
        return 0
    count = int(model.options.get("tensor_parallel_size", 1))
    if count > 1 or model.tuning is None:
        return count
    return round(1 - model.tuning.gpu_share % 1, 4)  # a whole one, where the workers take whole ones


def _has_gpus() -> bool:
    import torch

    return torch.cuda.is_available()
