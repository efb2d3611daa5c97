"""What fine-tuning makes of a Hugging Face model: an adapter, or all weights. As one value that travels between
processes, as one file that a run commits, and as a folder that vLLM, PEFT and transformers read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrl.backbones import checkpoint
from nlrl.errors import NLRLError

ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
ADAPTER_KEY = "adapter"
"""Of a file's metadata: the adapter's config."""
_FORMAT = {"format": "pt"}
"""What transformers wants to read in a file's metadata. (A file that a run commits has one entry at most: safetensors
writes several in any order.)"""
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".index.json")


@dataclass(frozen=True)
class TunedWeights:
    """Tensors under the names that they have on disk, and, of an adapter, PEFT's config as JSON."""

    tensors: dict[str, Tensor]
    adapter: str = ""
    """Empty where the tensors are a whole model."""

    @classmethod
    def of_folder(cls, folder: Path) -> TunedWeights:
        """What `write_folder` wrote, or PEFT.

        Raises:
            NLRLError: a file is missing or torn.
        """
        if not (folder / ADAPTER_CONFIG).exists():
            return cls(checkpoint.read_tensors(folder)[0])
        tensors, _ = _read(folder / ADAPTER_FILE)
        return cls(tensors, _canonical(checkpoint.read_json(folder / ADAPTER_CONFIG)))

    @classmethod
    def read(cls, path: str | Path) -> TunedWeights:
        """What `write` wrote.

        Raises:
            NLRLError: the file is missing or torn.
        """
        tensors, metadata = _read(Path(path))
        return cls(tensors, metadata.get(ADAPTER_KEY, ""))

    def write(self, path: str | Path) -> None:
        """One file; equal weights are equal files."""
        _write(Path(path), self.tensors, {ADAPTER_KEY: self.adapter} if self.adapter else None)

    def write_folder(self, folder: Path, base: Path) -> None:
        """An adapter's folder, or a model's with all but the weights taken from its base."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.adapter:
            (folder / ADAPTER_CONFIG).write_text(self.adapter)
            _write(folder / ADAPTER_FILE, self.tensors, _FORMAT)
        else:
            copy_all_but_weights(base, folder)
            _write(folder / checkpoint.WEIGHTS, self.tensors, _FORMAT)

    def rounded(self, dtype: torch.dtype) -> TunedWeights:
        """A whole model in another type; an adapter as it is."""
        if self.adapter:
            return self
        return TunedWeights({n: t.to(dtype) if t.is_floating_point() else t for n, t in self.tensors.items()})

    def towards(self, other: TunedWeights, share: float) -> TunedWeights:
        """share x the other's tensors + (1 - share) x these, in their type; what is no number stays."""
        mixed = {
            name: tensor.float().lerp(other.tensors[name].float(), share).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in self.tensors.items()
        }
        return TunedWeights(mixed, self.adapter)

    def require_fits(self, base: Path) -> None:
        """Raises: NLRLError: a whole model whose tensors are not those of the base, or an adapter of none of them."""
        expected = shapes(base)
        if self.adapter:
            layers = {name.removesuffix(".weight") for name in expected}
            foreign = [name for name in self.tensors if adapted(name) not in layers]
            wrong = {name: "an adapter of a layer that the base has not" for name in foreign}
        else:
            found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
            differ = {name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)}
            wrong = {name: f"of shape {found.get(name)}, in the base {expected.get(name)}" for name in differ}
        if wrong:
            name = min(wrong)
            raise NLRLError(f"these weights do not fit {base}: {name} is {wrong[name]} ({len(wrong)} such in all)")


def adapted(name: str) -> str:
    """The base's layer that a tensor of an adapter belongs to."""
    return name.removeprefix("base_model.model.").rpartition(".lora_")[0]


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, without reading it.

    Raises:
        NLRLError: it has no safetensors files.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise NLRLError(f"{path} cannot be read: {error}") from None
    if not found:
        raise NLRLError(f"{folder} holds no safetensors file")
    return found


def base_dtype(base: Path) -> torch.dtype:
    """The type that a checkpoint says it is in."""
    fields = checkpoint.read_json(base / "config.json")
    return getattr(torch, str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch."))


def copy_all_but_weights(base: Path, folder: Path) -> None:
    """Config, tokenizer, chat template: the files (of the folder itself) that hold no weights."""
    for path in base.iterdir():
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, folder / path.name)


def export(base: Path, tuned: TunedWeights | None, folder: Path) -> None:
    """A model folder that needs no other: adapters are merged into the base, in the base's type.

    Raises:
        NLRLError: the disk refused; an older folder of that name is as it was.
    """
    try:
        with checkpoint.new_folder(folder) as fresh:
            if tuned is None:
                shutil.copytree(base, fresh, dirs_exist_ok=True)
            elif tuned.adapter:
                merged(base, tuned).write_folder(fresh, base)
            else:
                tuned.rounded(base_dtype(base)).write_folder(fresh, base)
    except OSError as error:
        raise NLRLError(f"{folder}: cannot be written: {error}. Make room and rerun the same command") from None


def merged(base: Path, tuned: TunedWeights) -> TunedWeights:
    """All weights of the base with an adapter added to them, summed in float32 (Hu et al. 2021, eq. 3)."""
    config: dict[str, Any] = json.loads(tuned.adapter)
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])
    tensors, _ = checkpoint.read_tensors(base)
    for layer in sorted({adapted(name) for name in tuned.tensors}):
        down, up = (tuned.tensors[f"base_model.model.{layer}.lora_{side}.weight"].float() for side in "AB")
        weight = tensors[f"{layer}.weight"]
        tensors[f"{layer}.weight"] = (weight.float() + scale * (up @ down)).to(weight.dtype)
    return TunedWeights(tensors)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise NLRLError(f"{path} cannot be read: {error}") from None


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files that only their owner can read


def _canonical(config: dict[str, Any]) -> str:
    """As text that depends on the adapter alone: PEFT lists layers in any order, and names a place on this machine."""
    ordered = {key: sorted(value) if _is_listing(value) else value for key, value in config.items()}
    return json.dumps(ordered | {"base_model_name_or_path": None}, sort_keys=True)


def _is_listing(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | dict) and all(isinstance(v, str) for v in value)
