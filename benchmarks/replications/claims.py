"""Which claims there are, and how a command line changes them."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from types import ModuleType

from nlrl.benchmarks.replications.experiment import Arm, Claim
from nlrl.errors import NLRLError

CLAIMS = ("ngpt", "diff", "hymba", "bimamba")
"""Modules of this package; each has `claim() -> Claim`, and may have `sections(report) -> list[Section]`."""
QUICK_STEPS = 40


@dataclass(frozen=True)
class Choice:
    """A claim as a command line wants it; small and picklable."""

    name: str
    """One of `CLAIMS`, or the full name of another module."""
    steps: int | None = None
    """In place of the claim's own number."""
    quick: bool = False
    """A trial of everything: one context, two learning rates, one seed, few steps."""

    def claim(self) -> Claim:
        """Raises: NLRLError: there is no such claim."""
        claim = module(self.name).claim()
        if self.quick:
            arms = tuple(_few_rates(arm) for arm in claim.arms)
            claim = replace(claim, arms=arms, contexts=claim.contexts[:1], seeds=claim.seeds[:1], extensions=0)
        steps = self.steps or (QUICK_STEPS if self.quick else claim.steps)
        return replace(claim, tokens=steps * claim.batch_tokens)


def module(name: str) -> ModuleType:
    """Raises: NLRLError: there is no such claim."""
    try:
        return importlib.import_module(name if "." in name or name not in CLAIMS else f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        raise NLRLError(f"no claim {name!r} ({error}); there are {', '.join(CLAIMS)}") from None


def _few_rates(arm: Arm) -> Arm:
    middle = len(arm.lrs) // 2
    return replace(arm, lrs=arm.lrs[max(0, middle - 1) : middle + 1])
