"""What an optimizer remembers, as named tensors: kept over rounds of training, and saved in the middle of one.

The names are those of the model's weights, so a file says whose moments it holds, and one of another model is refused.
Everything is read back exactly: on a CPU, a round that was cut off and goes on ends with the bytes of one that was not.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from nlrl.backbones.training import Trainer

log = logging.getLogger(__name__)
PARTS = ("exp_avg", "exp_avg_sq", "step")
"""Of AdamW's state of each weight."""
_WEIGHT, _LOSS, _STEP, _KEY = "weight/", "loss_sum", "step", "key"


def moments(trainer: Trainer) -> dict[str, Tensor]:
    """The state of a trainer's optimizer, on the CPU, as `exp_avg/NAME` and so on. Weights that were never moved have
    none."""
    state = trainer.optimizer.state
    return {
        f"{part}/{name}": state[weight][part].detach().cpu().clone()
        for name, weight in trainer.model.named_parameters()
        if weight in state
        for part in PARTS
    }


def restore_moments(trainer: Trainer, found: Mapping[str, Tensor]) -> None:
    """Puts back what `moments` gave.

    Raises:
        NLRLError: it is of another model.
    """
    names = {id(weight): name for name, weight in trainer.model.named_parameters()}
    order = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    known = {f"{part}/{name}" for name in order for part in PARTS}
    if strangers := sorted(found.keys() - known):
        raise NLRLError(f"optimizer state {strangers[0]!r} belongs to another model ({len(strangers)} such)")
    state = {
        i: {part: found[f"{part}/{name}"] for part in PARTS}
        for i, name in enumerate(order)
        if all(f"{part}/{name}" in found for part in PARTS)
    }
    trainer.load_state_dict({"state": state})


class KeptMoments:
    """What one network's optimizer remembers between rounds.

    Args:
        tensors: as `moments` gives them; none for a network that was not trained yet.
    """

    def __init__(self, tensors: Mapping[str, Tensor] | None = None):
        self._tensors = dict(tensors or {})
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Has a new trainer go on from here. Raises NLRLError: they are of another model."""
        if self._tensors:
            restore_moments(trainer, self._tensors)
        self._trainer = trainer

    def take(self) -> dict[str, Tensor]:
        """What is remembered now."""
        if self._trainer is not None:
            self._tensors, self._trainer = moments(self._trainer), None
        return self._tensors


@dataclass
class FitCheckpoint:
    """A round of training on disk: weights, optimizer and steps done. A file of another round is passed over."""

    path: Path
    every: int
    """Steps between two of them."""
    key: str
    """Of the round: the same for the same examples and settings only; see `key_of`."""
    write: Callable[[Path, Mapping[str, Tensor], Mapping[str, str]], None]
    """(path, tensors, metadata): writes a safetensors file, atomically."""

    def resume(self, trainer: Trainer) -> int:
        """Puts a trainer where the file says; returns the steps that are done, 0 without a file.

        Raises:
            NLRLError: not all of the processes that train together see the same file.
        """
        tensors, told = self._read()
        done = int(told.get(_STEP, 0)) if told.get(_KEY) == self.key else 0
        if not trainer.ranks.same(done):
            raise NLRLError(
                f"{self.path}: not every training process reads the same checkpoint there; put the run's folder where "
                "all machines see it, or delete the file and rerun the same command"
            )
        if done:
            log.info("%s: the round goes on after step %d", self.path, done)
            weights = {n.removeprefix(_WEIGHT): t for n, t in tensors.items() if n.startswith(_WEIGHT)}
            trainer.model.load_state_dict(weights)
            restore_moments(trainer, {n: t for n, t in tensors.items() if n.partition("/")[0] in PARTS})
            trainer.loss_sum.copy_(tensors[_LOSS])
        return done

    def note(self, trainer: Trainer, done: int) -> None:
        """Writes the file, if it is time to; the first process does."""
        if done % self.every or trainer.ranks.rank:
            return
        weights = {_WEIGHT + name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
        tensors = weights | moments(trainer) | {_LOSS: trainer.loss_sum.detach().cpu()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write(self.path, tensors, {_STEP: str(done), _KEY: self.key})

    def _read(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return {}, {}
        try:
            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s); the round begins anew", self.path, error)
            return {}, {}


def key_of(examples: Sequence[Any], settings: Any) -> str:
    """Equal for equal rounds: of what is trained on, in order, and how."""
    digest = hashlib.sha256(repr(settings).encode())
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()
