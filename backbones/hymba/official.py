"""NVIDIA's Hymba checkpoints (`HymbaForCausalLM` with remote code, which is not needed here) and their chat format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file

from nlrl.backbones import checkpoint
from nlrl.backbones.hymba.configuration import HymbaConfig
from nlrl.backbones.hymba.modeling import HymbaForCausalLM
from nlrl.backbones.hymba.official_config import PAD, is_official
from nlrl.errors import NLRLError

OUTER = {
    "embed_tokens.weight": "model.embed_tokens.weight",
    "memory_tokens": "model.memory_tokens",
    "norm.weight": "model.final_layernorm.weight",
    "lm_head.weight": "lm_head.weight",
}
IN_LAYER = {
    "mixer_norm.weight": ("input_layernorm.weight",),
    "mixer.in_proj.weight": ("mamba.in_proj.weight",),
    "mixer.attention_norm.weight": ("mamba.pre_avg_layernorm1.weight",),
    "mixer.mamba_norm.weight": ("mamba.pre_avg_layernorm2.weight",),
    "mixer.out_proj.weight": ("mamba.out_proj.weight",),
    "mixer.mamba.conv_weight": ("mamba.conv1d.weight",),
    "mixer.mamba.conv_bias": ("mamba.conv1d.bias",),
    "mixer.mamba.x_proj.weight": ("mamba.x_proj.0.weight",),
    "mixer.mamba.dt_norm.weight": ("mamba.dt_layernorm.weight",),
    "mixer.mamba.B_norm.weight": ("mamba.B_layernorm.weight",),
    "mixer.mamba.C_norm.weight": ("mamba.C_layernorm.weight",),
    "mixer.mamba.dt_proj.weight": ("mamba.dt_proj.0.weight",),
    "mixer.mamba.dt_proj.bias": ("mamba.dt_proj.0.bias",),
    "mixer.mamba.A_log": ("mamba.A_log.0",),
    "mixer.mamba.D": ("mamba.D.0",),
    "mlp_norm.weight": ("pre_moe_layernorm.weight",),
    "mlp.up_gate.weight": ("moe.experts.0.up_proj.weight", "moe.experts.0.gate_proj.weight"),
    "mlp.down.weight": ("moe.experts.0.down_proj.weight",),
}
"""Our tensor: NVIDIA's, stacked row on row."""
LISTED = 20
"""Tensors of a kind that a refusal names; it counts the others."""
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
HARMLESS_OPTIONS = (
    "attn_implementation",
    "config",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "torch_dtype",
    "trust_remote_code",
    "use_safetensors",
)

CHAT_TEMPLATE = """\
{{- '<extra_id_0>System' -}}
{%- for message in messages if message.role == 'system' -%}
    {{- '\\n' + message.content -}}
{%- endfor -%}
{%- for tool in tools or [] -%}
    {{- '\\n<tool> ' + tool | tojson + ' </tool>' -}}
{%- endfor -%}
{%- for context in contexts or [] -%}
    {{- '\\n<context> ' + context + ' </context>' -}}
{%- endfor -%}
{{- '\\n\\n' -}}
{%- for message in messages if message.role != 'system' -%}
    {%- if message.role not in ('user', 'assistant', 'tool') -%}
        {{- raise_exception('Hymba knows the roles system, user, assistant and tool, not ' + message.role) -}}
    {%- endif -%}
    {{- '<extra_id_1>' + message.role | capitalize + '\\n' + message.content + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<extra_id_1>Assistant\\n' -}}
{%- endif -%}
"""
"""Renders without a beginning-of-sequence token, as their tokenizer does. The `<extra_id_k>` are ordinary text."""


def from_official(
    folder: str | os.PathLike, dtype: torch.dtype | None = torch.float32, config: PreTrainedConfig | None = None
) -> HymbaForCausalLM:
    """The model of a checkpoint folder in NVIDIA's layout, in evaluation mode.

    Args:
        dtype: what it is computed in; None: what it is stored in.
        config: instead of the folder's config.json (with another `window_semantics`, say).
    Raises:
        NLRLError: a file is missing or torn, the config asks for what no published checkpoint has, or tensors are
            missing, unknown or of another shape; all of them are listed.
    """
    folder = Path(folder)
    config = config or _config(folder)
    theirs, _ = checkpoint.read_tensors(folder)
    _check(official_shapes(config), theirs, folder)
    dtype = dtype or theirs["model.memory_tokens"].dtype
    model = checkpoint.build(HymbaForCausalLM, config, _ours(theirs, config), folder, dtype)
    config.dtype = dtype
    return model


def official_shapes(config: HymbaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint in NVIDIA's layout."""
    with torch.device("meta"):
        tensors = HymbaForCausalLM(config).state_dict()
    shapes = {}
    for ours, parts in _names(config).items():
        rows, *rest = tensors[ours].shape
        taps = [1] if ours.endswith("conv_weight") else []
        shapes.update({part: (rows // len(parts), *taps, *rest) for part in parts})
    return shapes


def official_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Their tokenizer, with the chat format and the padding token where it lacks them."""
    if not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = CHAT_TEMPLATE
    if tokenizer.pad_token is None and len(tokenizer) > PAD:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(PAD)
    return tokenizer


def names_official(name_or_dir: Any, options: Mapping[str, Any]) -> bool:
    """Whether `from_pretrained` was asked for a checkpoint in NVIDIA's layout, in a folder or on the hub."""
    if name_or_dir is None:
        return False
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    try:
        fields, _ = HymbaConfig.get_config_dict(name_or_dir, **hub)
    except OSError:
        return False  # Hugging Face says better what is wrong
    return is_official(fields)


def from_hub(name_or_dir: str | os.PathLike, options: Mapping[str, Any]) -> HymbaForCausalLM:
    """`from_pretrained` of a checkpoint in NVIDIA's layout. options: its keyword arguments.

    Raises:
        NLRLError: as `from_official`; or an option has no meaning here.
    """
    known = (*HUB_OPTIONS, *HARMLESS_OPTIONS)
    if unknown := [name for name, value in options.items() if name not in known and value is not None]:
        raise NLRLError(
            f"{name_or_dir}: {unknown[0]} does not work with a checkpoint in NVIDIA's layout; save it first"
        )
    hub = {name: options[name] for name in HUB_OPTIONS if name in options}
    folder = Path(name_or_dir)
    if not folder.is_dir():
        for file in (checkpoint.WEIGHTS, "config.json"):
            folder = Path(cached_file(name_or_dir, file, **hub) or "").parent
    dtype = options.get("dtype") or options.get("torch_dtype") or "auto"
    dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    model = from_official(folder, dtype, options.get("config"))
    return model.to(_device(options.get("device_map")))  # pyright: ignore[reportArgumentType]


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, dict):
        device_map = next(iter(device_map.values())) if len(device_map) == 1 else "auto"
    if device_map in (None, "auto", "balanced", "sequential"):
        return torch.device("cuda" if device_map is not None and torch.cuda.is_available() else "cpu")
    return torch.device(device_map)


def _config(folder: Path) -> HymbaConfig:
    path = folder / "config.json"
    fields = checkpoint.read_json(path)
    if not is_official(fields):
        raise NLRLError(f"{path} is not a Hymba config of NVIDIA's layout")
    try:
        return HymbaConfig.from_dict(fields)  # pyright: ignore[reportReturnType]
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{path}: {error}") from None


def _names(config: HymbaConfig) -> dict[str, tuple[str, ...]]:
    """Every tensor of ours and the ones of theirs it is stacked from."""
    tied = "lm_head.weight" if config.tie_word_embeddings else ""
    names: dict[str, tuple[str, ...]] = {ours: (theirs,) for ours, theirs in OUTER.items() if ours != tied}
    for i in range(config.num_hidden_layers):
        for ours, parts in IN_LAYER.items():
            names[f"layers.{i}.{ours}"] = tuple(f"model.layers.{i}.{part}" for part in parts)
    return names


def _ours(theirs: Mapping[str, Tensor], config: HymbaConfig) -> dict[str, Tensor]:
    tensors = {ours: torch.cat([theirs[part] for part in parts]) for ours, parts in _names(config).items()}
    return {name: t[:, 0] if name.endswith("conv_weight") else t for name, t in tensors.items()}


def _check(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], folder: Path) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = {
        "missing": [f"{name} {expected[name]}" for name in sorted(expected.keys() - shapes.keys())],
        "unknown": [f"{name} {shapes[name]}" for name in sorted(shapes.keys() - expected.keys())],
        "of another shape": [
            f"{name} {shapes[name]}, config.json asks for {expected[name]}"
            for name in sorted(expected.keys() & shapes.keys())
            if shapes[name] != expected[name]
        ],
    }
    if any(wrong.values()):
        parts = [f"{len(names)} {kind}: {_listed(names)}" for kind, names in wrong.items() if names]
        raise NLRLError(f"{folder} holds other tensors than a Hymba of its config.json; " + "; ".join(parts))


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
