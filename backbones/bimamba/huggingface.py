"""Mamba-2 and Bi-Mamba checkpoints of others: Hugging Face Mamba2 in and out, mamba-ssm and its Bi-Mamba form in.

The layouts hold the same numbers under other names, so logits are equal. A Bi-Mamba leaves as a plain Mamba-2 whose
matrices are W~ = alpha sign(W) + beta: transformers reads it, and so does whatever serves Hugging Face Mamba2 (vLLM).

Sources: the layout of mamba-ssm (`MambaLMHeadModel`) and of the public Bi-Mamba repository, whose `BinaryLinearWscales`
adds `wscale` and `wbias` `(1, inputs)` to each matrix. Names and shapes follow the code that writes such folders; the
published Bi-Mamba weights themselves were not at hand.
"""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GenerationConfig, Mamba2Config, PreTrainedTokenizerFast

from nlrl.backbones import checkpoint
from nlrl.backbones.bimamba.configuration import BiMambaConfig
from nlrl.backbones.bimamba.fbi_linear import FBILinear
from nlrl.backbones.bimamba.modeling import BiMambaForCausalLM
from nlrl.backbones.bimamba.packed import unpack
from nlrl.backbones.layout import check_layout
from nlrl.errors import NLRLError

log = logging.getLogger(__name__)
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "expand", "head_dim", "state_size", "n_groups", "conv_kernel",
    "use_conv_bias", "layer_norm_epsilon", "chunk_size", "tie_word_embeddings", "pad_token_id", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
RENAMED = {
    "mixer.conv_weight": "mixer.conv1d.weight",
    "mixer.conv_bias": "mixer.conv1d.bias",
    "mixer.in_proj.alpha": "mixer.in_proj.wscale",
    "mixer.in_proj.beta": "mixer.in_proj.wbias",
    "mixer.out_proj.alpha": "mixer.out_proj.wscale",
    "mixer.out_proj.beta": "mixer.out_proj.wbias",
}
"""Tensors of a layer: ours, theirs. The others have one name."""
SSM_CFG = {"d_state": "state_size", "d_conv": "conv_kernel", "expand": "expand", "headdim": "head_dim",
           "ngroups": "n_groups", "conv_bias": "use_conv_bias"}  # fmt: skip
"""Fields of mamba-ssm's `ssm_cfg`: theirs, ours."""
SSM_FIXED = {"layer": "Mamba2", "bias": False, "rmsnorm": True, "norm_before_gate": False, "D_has_hdim": False,
             "d_ssm": None}  # fmt: skip
FIXED = {"d_intermediate": 0, "attn_layer_idx": [], "rms_norm": True}
"""What a mamba-ssm config must say, if it says anything, as our model has nothing else."""


def from_hf_mamba2(folder: str | os.PathLike, dtype: torch.dtype = torch.float32) -> BiMambaForCausalLM:
    """The model of a Hugging Face Mamba2 folder, in evaluation mode.

    Raises:
        NLRLError: a file is missing or torn, tensors are missing, foreign or misshapen (each is listed), or the model
            has a part that ours lacks (biases of projections, limits of dt, other activations).
    """
    folder = Path(folder)
    config = _config_of_hf(folder)
    return _model(config, checkpoint.read_tensors(folder)[0], "embeddings", folder, dtype)


def from_mamba_ssm(
    folder: str | os.PathLike, dtype: torch.dtype = torch.float32, pickles: bool = False
) -> BiMambaForCausalLM:
    """The model of a mamba-ssm folder (config.json with `d_model` and `ssm_cfg`, weights as safetensors or .bin), in
    evaluation mode. It is a Bi-Mamba if its matrices have scales.

    Args:
        pickles: read .bin files, which are pickles, too; as tensors only.
    Raises:
        NLRLError: as `from_hf_mamba2`; or the weights are pickles that nobody asked for.
    """
    folder = Path(folder)
    tensors = _files(folder, pickles)
    binary = any(name.endswith(".wscale") for name in tensors)
    model = _model(_config_of_mamba_ssm(folder, binary), tensors, "embedding", folder, dtype)
    latent = [module.weight for module in model.modules() if isinstance(module, FBILinear)]
    if zeros := sum(int((weight == 0).sum()) for weight in latent):
        log.warning("%s: %d latent weights are exactly 0; their sign is +1 here, 0 in the authors' code", folder, zeros)
    return model


@torch.no_grad()
def to_hf_mamba2(
    model: BiMambaForCausalLM,
    folder: str | os.PathLike,
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder that `transformers.Mamba2ForCausalLM`, vLLM and others read; dtype defaults to the model's.

    Raises:
        NLRLError: the model normalises parts of a mixer's output apart, which Hugging Face Mamba2 cannot.
    """
    if model.config.norm_groups != 1:
        raise NLRLError(
            f"Hugging Face Mamba2 has one norm for a whole mixer, not norm_groups={model.config.norm_groups}"
        )
    model, dtype = (unpack(model) if model.config.packed else model), dtype or model.dtype
    shared = {name: getattr(model.config, name) for name in SHARED_FIELDS}
    config = Mamba2Config(**shared, num_heads=model.config.num_heads, architectures=["Mamba2ForCausalLM"], dtype=dtype)
    with checkpoint.new_folder(Path(folder)) as fresh:
        config.save_pretrained(fresh)
        GenerationConfig(**{name: shared[name] for name in shared if name.endswith("token_id")}).save_pretrained(fresh)
        if tokenizer is not None:
            tokenizer.save_pretrained(fresh)
        checkpoint.write_weights(fresh / checkpoint.WEIGHTS, _dense(model), dtype, {})


def _dense(model: BiMambaForCausalLM) -> dict[str, Tensor]:
    """The tensors of a plain Mamba-2 under Hugging Face's names."""
    dense = {
        f"{name}.weight": module.dense() for name, module in model.named_modules() if isinstance(module, FBILinear)
    }
    theirs = {}
    for name, tensor in (model.state_dict() | dense).items():
        if name.endswith((".alpha", ".beta")) or (name == "lm_head.weight" and model.config.tie_word_embeddings):
            continue
        theirs[_their_name(name, "embeddings")] = tensor[:, None] if name.endswith("conv_weight") else tensor
    return theirs


def _their_name(ours: str, embedding: str) -> str:
    if ours == "lm_head.weight":
        return ours
    if not ours.startswith("layers."):
        return {"embed_tokens.weight": f"backbone.{embedding}.weight", "norm.weight": "backbone.norm_f.weight"}[ours]
    _, layer, rest = ours.split(".", 2)
    return f"backbone.layers.{layer}.{RENAMED.get(rest, rest)}"


def _model(
    config: BiMambaConfig, theirs: dict[str, Tensor], embedding: str, folder: Path, dtype: torch.dtype
) -> BiMambaForCausalLM:
    with torch.device("meta"):
        ours = BiMambaForCausalLM(config).state_dict()
    if config.tie_word_embeddings:
        ours.pop("lm_head.weight")
        theirs.pop("lm_head.weight", None)
    names = {name: _their_name(name, embedding) for name in ours}
    shapes = {names[name]: _their_shape(name, tuple(tensor.shape)) for name, tensor in ours.items()}
    check_layout(shapes, theirs, folder, "Mamba-2")
    tensors = {name: theirs[names[name]].reshape(tensor.shape) for name, tensor in ours.items()}
    return checkpoint.build(BiMambaForCausalLM, config, tensors, folder, dtype)


def _their_shape(ours: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if ours.endswith("conv_weight"):
        return (shape[0], 1, shape[1])
    return (1, *shape) if ours.endswith((".alpha", ".beta")) else shape


def _config_of_hf(folder: Path) -> BiMambaConfig:
    path = folder / "config.json"
    fields = checkpoint.read_json(path)
    if fields.get("model_type") != "mamba2":
        raise NLRLError(f"{path}: model_type is {fields.get('model_type')!r}, not 'mamba2'")
    try:
        theirs = Mamba2Config.from_pretrained(folder)
        if theirs.use_bias or theirs.hidden_act not in ("silu", "swish") or _limited(theirs.time_step_limit):
            raise ValueError("use_bias must be false, hidden_act 'silu' and time_step_limit 0 to infinity")
        return BiMambaConfig(binary=False, **{name: getattr(theirs, name) for name in SHARED_FIELDS})
    except Exception as error:  # each of its validators has its own type
        raise NLRLError(f"{path}: {error}") from None


def _limited(limit) -> bool:
    return tuple(map(float, limit)) != (0.0, math.inf)


def _config_of_mamba_ssm(folder: Path, binary: bool) -> BiMambaConfig:
    path = folder / "config.json"
    fields = checkpoint.read_json(path)
    ssm = {"layer": "Mamba1"} | fields.get("ssm_cfg", {})
    for given, fixed in ((fields, FIXED), (ssm, SSM_FIXED)):
        for name, value in fixed.items():
            if given.get(name, value) != value:
                raise NLRLError(f"{path}: {name} is {given[name]!r}; only {value!r} can be loaded")
    if _limited(ssm.get("dt_limit", (0.0, math.inf))):
        raise NLRLError(f"{path}: dt_limit is {ssm['dt_limit']!r}; only 0 to infinity can be loaded")
    shape = {ours: ssm[theirs] for theirs, ours in SSM_CFG.items() if theirs in ssm}
    multiple = fields.get("pad_vocab_size_multiple", 8)
    try:
        return BiMambaConfig(
            vocab_size=-(-fields["vocab_size"] // multiple) * multiple, hidden_size=fields["d_model"],
            num_hidden_layers=fields["n_layer"], tie_word_embeddings=fields.get("tie_embeddings", True), binary=binary,
            norm_groups=ssm.get("ngroups", 1), **shape,
        )  # fmt: skip
    except Exception as error:  # a missing key, or a validator, each of which has its own type
        raise NLRLError(f"{path}: {type(error).__name__}: {error}") from None


def _files(folder: Path, pickles: bool) -> dict[str, Tensor]:
    """All weights of a folder; .bin files are read as tensors only, they cannot run code."""
    tensors: dict[str, Tensor] = {}
    paths = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not paths:
        raise NLRLError(f"{folder} holds neither *.safetensors nor *.bin")
    if paths[0].suffix == ".bin" and not pickles:
        checkpoint.refuse_pickle(paths[0])
    for path in paths:
        try:
            tensors |= load_file(path) if path.suffix != ".bin" else torch.load(path, "cpu", weights_only=True)
        except Exception as error:  # each reader has its own types
            raise NLRLError(f"{path} is torn or holds no tensors ({error}): copy it again") from None
    return tensors
