"""What a replication is: claims, arms, runs and their results.

1. A claim compares arms. The first arm is the control; the others have as many parameters, within 2 %, unless an arm
   says why not. A claim module has a function `claim() -> Claim`.
2. A run trains one arm at one context length with one learning rate and one seed, on the tokens of the corpus. All arms
   of a seed and a context read the same rows in the same order. `mix` writes rows of its own kind into the batches.
3. The learning rate is searched on seed 0, at full length; a best one at the edge of the grid is followed by a further
   step of a factor 2, at most twice. Then come seeds 1 and 2 at the best (`plan`).
4. A trained model is asked `measures`. What they return goes into the result as it is, so it must be JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nlrl.errors import NLRLError

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from nlrl.backbones.backbone import Backbone

MATCHED = 0.02
"""Arms may differ in parameters by this share."""


@dataclass(frozen=True)
class Data:
    """The corpus on a device, for one context length."""

    train: torch.Tensor
    """`(tokens,)` int16."""
    held_out: torch.Tensor
    """`(tokens,)` int16, of documents that `train` has nothing of."""
    vocab: int
    tokenizer: Tokenizer
    context: int

    def validation_rows(self, tokens: int = 1 << 18) -> torch.Tensor:
        """The first of the held-out tokens, `(rows, context)` int16; the same ones at every context length."""
        rows = min(tokens, len(self.held_out)) // self.context
        return self.held_out[: rows * self.context].view(rows, self.context)


Mix = Callable[[Data, int, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""(data, rows, generator) -> in the order of training: tokens `(rows, data.context)` of any integer type, and weights,
as many floats: how much a token counts *as a target* (the first of a row never does)."""
Measure = Callable[[Any, Data, "torch.device"], dict]
"""(trained `Backbone` in evaluation mode, data, its device) -> figures. Called without gradients."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    label: str
    """For tables and figures."""
    build: Callable[[int, int], Backbone]
    """(vocabulary, context) -> an untrained model on the CPU; its weights follow torch's generator."""
    lrs: tuple[float, ...]
    """Ascending, a factor 2 between neighbours."""
    optimizer: Literal["adamw", "normalised"] = "adamw"
    """"adamw": warm-up and weight decay. "normalised": neither, for models that renormalise their weights."""
    teacher: str | None = None
    """An arm of the claim whose best model of seed 0 at the context is learned from; its distributions are the targets
    in place of the tokens."""
    extra: dict[str, Any] = field(default_factory=dict)
    """`unmatched`: why the arm may differ in parameters. `compiled`: False if its steps are not to be timed under
    `torch.compile`. Anything else is the claim's own."""


@dataclass(frozen=True)
class Claim:
    """A comparison. All lengths are in tokens."""

    name: str
    arms: tuple[Arm, ...]
    contexts: tuple[int, ...]
    tokens: int
    """Of a run."""
    batch_tokens: int
    mix: Mix | None = None
    measures: dict[str, Measure] = field(default_factory=dict)
    mix_share: float = 0.2
    """Share of the rows that `mix` makes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    extensions: int = 2
    """How often a grid may be extended."""

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    @property
    def steps(self) -> int:
        return self.tokens // self.batch_tokens


@dataclass(frozen=True, order=True)
class Run:
    """What identifies a run within a claim."""

    arm: str
    context: int
    seed: int
    lr: float


@dataclass
class Result:
    """A finished run."""

    run: Run
    params: int
    curve: list[list[float | None]]
    """Rows of (step, tokens, training loss since the row before, validation loss), nats a token; None is not a
    number."""
    measures: dict[str, Any]
    seconds: float
    device: str
    session: int = 0
    """Which of the file's `sessions` made it."""

    @property
    def loss(self) -> float:
        """The last validation loss; infinite where the run diverged."""
        last = self.curve[-1][3] if self.curve else None
        return math.inf if last is None else last

    def to_json(self) -> dict[str, Any]:
        fields = asdict(self)
        return fields.pop("run") | fields

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Result:
        fields = dict(fields)
        return cls(run=Run(*(fields.pop(name) for name in ("arm", "context", "seed", "lr"))), **fields)


@dataclass
class Timing:
    """How long a training step of an arm takes, alone on the device: medians, seconds."""

    arm: str
    context: int
    eager: float
    graph: float | None
    """The same kernels, replayed as a CUDA graph; what the runs used."""
    compiled: float | None
    """`torch.compile`, and a graph around it on CUDA. None: not measured, or it failed."""
    session: int = 0


@dataclass
class Report:
    """The file of a claim."""

    claim: str
    settings: dict[str, Any]
    """Contexts, tokens, batch_tokens, steps, arms (label, lrs, optimizer, teacher), and the corpus."""
    sessions: list[dict[str, Any]]
    """Command, device, versions, jobs and seconds of every call that added results."""
    results: list[Result]
    timings: list[Timing]
    missing: list[Run] = field(default_factory=list)
    """Known runs that were not made; empty where the protocol is complete."""

    def write(self, path: Path) -> None:
        fields = vars(self) | {
            "results": [result.to_json() for result in self.results],
            "timings": [asdict(timing) for timing in self.timings],
            "missing": [asdict(run) for run in self.missing],
        }
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(fields, separators=(",", ":"), allow_nan=False) + "\n")
        fresh.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        """Raises: NLRLError: the file is missing or none of ours."""
        try:
            fields = json.loads(path.read_text())
            fields["results"] = [Result.from_json(result) for result in fields["results"]]
            fields["timings"] = [Timing(**timing) for timing in fields["timings"]]
            fields["missing"] = [Run(**run) for run in fields["missing"]]
            return cls(**fields)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NLRLError(f"{path} is no file of `python -m nlrl.benchmarks.replications`: {error}") from None


def check_matched(claim: Claim, context: int, params: dict[str, int]) -> None:
    """Args: params: parameters by arm. Raises: NLRLError: an arm differs from the control by more than `MATCHED`."""
    control = claim.arms[0].name
    for arm in claim.arms:
        off = params[arm.name] / params[control] - 1
        if abs(off) > MATCHED and "unmatched" not in arm.extra:
            raise NLRLError(
                f"{claim.name}, context {context}: {arm.name} has {params[arm.name]:,} parameters, {off:+.1%} of "
                f"{control}'s {params[control]:,}; at most {MATCHED:.0%} are allowed"
            )
