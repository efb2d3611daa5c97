"""Settings of the methods that follow the paper's first two algorithms (arXiv 2411.14251)."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from nlrl.orchestration.section import Section
from nlrl.orchestration.state_sets import StateSetConfig


class GPIConfig(Section):
    """Method `gpi`, language generalised policy iteration by prompting (Algorithm 1). An iteration is a sweep over all
    states; the texts of one sweep evaluate the ends of the next one's look-aheads, in the first the model does. One
    iteration is the paper's algorithm."""

    lookahead: int = Field(default=3, gt=0)
    """N: moves of a look-ahead, the candidate's included."""
    variations: int = Field(default=8, ge=1, le=9)
    """K: look-aheads from each candidate."""
    policy: str = "random"
    """Who moves in look-aheads after the candidate's move; named as opponents are."""
    plans: int = Field(default=4, gt=0)
    """Choices made for each state, each from look-aheads of its own: a walk that comes back to a state goes on with the
    next, so that it does not go round in circles."""
    repeats: int = Field(default=3, gt=0)
    """Times that all of it is done, with other look-aheads; the evaluation walks from every start in each."""


class ValueTDConfig(Section):
    """Method `value_td`, iterated language TD of a fixed policy (Algorithm 2): look-aheads are made once; every
    iteration labels them with the current critic and trains it. `critic` says how it is trained."""

    policy: str = "mcts(100,10)"
    """The fixed policy, for both sides; named as opponents are. The paper's: mcts(1000,100)."""
    lookahead: int = Field(default=4, gt=0)
    """l: moves of a look-ahead."""
    variations: int = Field(default=2, ge=1, le=9)
    """K: different look-aheads that a label merges."""
    collected: int = Field(default=4, gt=0)
    """Look-aheads played for each state, of which the first K different ones are kept."""
    measured: int = Field(default=0, ge=0)
    """Held-out positions whose values are compared with exact ones after every iteration; 0 for all."""
    states: StateSetConfig = StateSetConfig()
    """The positions: how they are made, how many are trained on and how many held out."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.collected < self.variations:
            raise ValueError(f"collected ({self.collected}) must be at least variations ({self.variations})")
        return self
