"""Settings of the baselines; see docs/baselines.md. Their supervised fine-tuning, where they have any, is set under
[actor] and [critic], as everywhere."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nlrl.orchestration.section import Section


class RejectionConfig(Section):
    """Rejection sampling: the actor is fine-tuned on its own answers of games that went well."""

    draw_weight: float = Field(default=0.0, ge=0, le=1)
    """What an answer of a drawn game counts beside one of a won game, which counts 1. Lost games count nothing."""


class _PolicyGradientConfig(Section):
    """What GRPO and PPO share."""

    learning_rate: float = Field(default=3e-4, gt=0)
    """Constant; AdamW without weight decay."""
    batch_size: int = Field(default=256, gt=0)
    """Answers a step. Equal answers to one prompt are one, as heavy as they are many."""
    epochs: int = Field(default=4, gt=0)
    """Passes over an iteration's answers."""
    keep_optimizer: bool = False
    """As in [actor]."""
    clip: float = Field(default=0.2, gt=0)
    """A token's probability ratio earns no more beyond 1 +/- clip."""
    entropy: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, per token."""
    max_kl: float = Field(default=0.05, gt=0)
    """No further epoch once the policy is this far, in nats a token, from the one that played."""


class GRPOConfig(_PolicyGradientConfig):
    """Group-relative policy optimisation with advantages in units of the seat's spread."""

    group: Literal["state", "seat"] = "state"
    """What an answer competes with: the other answers in its position, or all answers of its seat."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the KL term that holds on to the base model; 0 keeps no second model."""


class PPOConfig(_PolicyGradientConfig):
    """Proximal policy optimisation, with a value head on the actor's hidden states."""

    entropy: float = Field(default=0.003, ge=0)
    """Weight of the entropy bonus, per token."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount, per decision of the agent."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation, per decision of the agent."""
    value: float = Field(default=0.1, ge=0)
    """Weight of the value loss, which is a mean over answers, beside the policy's, a mean over tokens. Much of it moves
    the policy as well: they share the network."""
    value_clip: float = Field(default=0.2, gt=0)
    """The value moves no further from what it was."""


class DPOConfig(Section):
    """Direct preference optimisation on I's choice against what the actor played."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Constant; AdamW without weight decay."""
    batch_size: int = Field(default=128, gt=0)
    """Pairs a step."""
    epochs: int = Field(default=4, gt=0)
    """Passes over an iteration's pairs."""
    keep_optimizer: bool = False
    """As in [actor]."""
    beta: float = Field(default=0.1, gt=0)
    """Larger holds on more to the actor as it was before the iteration."""
    likelihood: float = Field(default=0.2, ge=0)
    """Weight of the chosen answer's own cross-entropy, per token. 0 is plain DPO, which may make both answers rare."""


class TabularConfig(Section):
    """A table of values in place of a model: how much of the task needs no language at all."""

    kind: Literal["monte_carlo", "q_learning"] = "q_learning"
    """monte_carlo: Q moves towards the result of each game. q_learning: towards the best value of the next decision."""
    step_size: float = Field(default=0.0, ge=0, le=1)
    """How far Q moves at each visit; 0 is 1 / visits, the mean of all."""
    epsilon: float = Field(default=1.0, ge=0, le=1)
    """Share of uniformly random moves in the first iteration's games; every iteration has `epsilon_decay` of it."""
    epsilon_decay: float = Field(default=0.8, gt=0, le=1)
    """See `epsilon`."""
