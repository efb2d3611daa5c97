"""Settings of the methods that follow the paper's first two algorithms (arXiv 2411.14251) and of its successor, NLAC
(arXiv 2512.04601)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from nlrl.orchestration.replay import ReplayConfig
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
    following: int = Field(default=0, ge=0)
    """How many of the K go on by the plans of the sweep before instead, from the second sweep on; the paper's: none."""
    plans: int = Field(default=4, gt=0)
    """Choices made for each state, each from look-aheads of its own: a walk leaves a state as most of them would, and
    if it comes back, by one after the other, so that it does not go round in circles."""
    repeats: int = Field(default=3, gt=0)
    """Times that all of it is done, with other look-aheads; the evaluation walks from every start in each."""

    @model_validator(mode="after")
    def _following_some(self) -> Self:
        if self.following > self.variations:
            raise ValueError(f"following ({self.following}) counts among the variations ({self.variations})")
        return self


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
    imported: Path | None = None
    """A folder that `nlrl import-nlrl` wrote: its look-aheads are labelled and none are played, so policy, lookahead
    and collected say nothing, and states.train counts its positions."""
    imported_held_out: Path | None = None
    """Another such folder, whose positions are held out instead of some of `states`. None of them is trained on."""
    measured: int = Field(default=0, ge=0)
    """Held-out positions whose values are compared with exact ones after every iteration; 0 for all."""
    states: StateSetConfig = StateSetConfig()
    """The positions: how they are made, how many are trained on and how many held out."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.collected < self.variations:
            raise ValueError(f"collected ({self.collected}) must be at least variations ({self.variations})")
        return self


class TransitionReplayConfig(ReplayConfig):
    """Which transitions are backed up; equal ones are one that counts as often."""

    kind: Literal["recent", "prioritised"] = "prioritised"
    """recent: those of the iteration's own games. prioritised: a choice among those of all iterations."""
    size: int = Field(default=0, ge=0)
    """Transitions chosen in an iteration; 0 for all there are."""
    disagreement: float = Field(default=0.0, ge=0, le=0)
    """Nothing is measured that a transition could disagree with."""
    staleness: float = Field(default=0.0, ge=0, le=8)
    """Transitions that are n iterations old get (1 + n) ** staleness times fewer places."""
    novelty: float = Field(default=0.0, ge=0, le=8)
    """A transition that is one of n different ones from the same state by the same move is drawn n ** novelty times
    less."""
    newest_share: float = Field(default=0.0, ge=0, le=1)
    """Least share of the chosen ones that are of the newest iteration, while it has so many."""


class NLACConfig(Section):
    """Method `nlac`, the natural-language actor-critic with a language successor model, off-policy: `critic` says how
    the successor model is trained, `actor` how the policy is."""

    replay: TransitionReplayConfig = TransitionReplayConfig()
    """The transitions that are backed up in an iteration."""
    decay: float = Field(default=0.5, ge=0, lt=1)
    """Of the target weights, whose texts are backed up: decay x what they were + (1 - decay) x the successor model's,
    once an iteration; 0 is a frozen copy of the last iteration's."""
    draws: int = Field(default=4, gt=0)
    """Next actions drawn from the current policy for a transition, one target text for each; at most as many as the
    transition was seen."""
    summaries: int = Field(default=1, ge=0)
    """k: sampled summaries of the future of a move that the evaluator turns into one critique. 0 reads the successor
    model as `improvement.verdict` says, without an evaluator. Bundled models have seen no more than 2."""
    proposals: int = Field(default=4, gt=0)
    """Moves that the policy proposes, each to be refined, in a state of the replay; at most as many as it was met."""
    rounds: int = Field(default=1, gt=0)
    """m: times that a proposal is critiqued and may be revised."""
