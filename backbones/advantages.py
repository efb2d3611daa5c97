"""How much better than expected: advantages of an agent's decisions, from returns and values alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from nlrl.errors import NLRLError

Floats = NDArray[np.float64]
LEAST_SPREAD = 1e-6
"""Advantages of a role that vary less than this are noise, and are not blown up to unit size."""


def gae(rewards: Sequence[float], values: Sequence[float], gamma: float = 1.0, lam: float = 0.95) -> list[float]:
    """Generalised advantage estimates of one episode (Schulman et al. 2016, eq. 16).

    Args:
        rewards: `(decisions,)` what each decision earned up to the agent's next one. The last holds the outcome of the
            episode, whoever made the move that ended it.
        values: `(decisions,)` the value of the state at each decision; beyond the last it is 0.
        gamma, lam: discount and lambda, per decision. lam 1 is return minus value, lam 0 is the one-step error.
    Raises:
        NLRLError: there are not as many values as rewards.
    """
    if len(rewards) != len(values):
        raise NLRLError(f"gae: {len(rewards)} rewards and {len(values)} values; there must be one of each a decision")
    advantages, following, later = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        error = rewards[t] + gamma * later - values[t]
        following = error + gamma * lam * following
        advantages[t], later = following, values[t]
    return advantages


def group_advantages(
    returns: Sequence[float],
    groups: Sequence[Hashable],
    roles: Sequence[Hashable],
    weights: Sequence[float] | None = None,
) -> list[float]:
    """Returns relative to those of their group, in units of their role's spread (GRPO's, Shao et al. 2024, with the
    roles of SPIRAL: moving first and moving second are different tasks with different expectations).

    Args:
        returns: `(samples,)`.
        groups: `(samples,)` what a sample competes with, such as the other answers to its prompt. A sample alone in its
            group competes with its role.
        roles: `(samples,)` whose mean is the fallback and whose spread is the unit.
        weights: `(samples,)` how often each sample counts; by default once.
    """
    values, counts = np.asarray(returns, np.float64), _counts(returns, weights)
    group, role = _numbered(groups), _numbered(roles)
    alone = np.bincount(group)[group] < 2
    baseline = np.where(alone, _means(values, role, counts)[role], _means(values, group, counts)[group])
    return _unit_spread(values - baseline, role, counts).tolist()


def normalised(
    advantages: Sequence[float], roles: Sequence[Hashable], weights: Sequence[float] | None = None
) -> list[float]:
    """Advantages with mean 0 and spread 1 in each role.

    Args:
        advantages, roles, weights: `(samples,)`, as in `group_advantages`.
    """
    return group_advantages(advantages, roles, roles, weights)


def explained_variance(values: Sequence[float], returns: Sequence[float]) -> float:
    """1 - Var(return - value) / Var(return): 1 is a perfect critic, 0 one that knows the mean; nan without variance."""
    truth = np.asarray(returns, np.float64)
    spread = truth.var()
    return float(1 - (truth - np.asarray(values)).var() / spread) if spread > 0 else float("nan")


def _unit_spread(centred: Floats, role: NDArray[np.int64], counts: Floats) -> Floats:
    spread = np.sqrt(_means(centred**2, role, counts))[role]
    return np.where(spread > LEAST_SPREAD, centred / np.maximum(spread, LEAST_SPREAD), 0.0)


def _means(values: Floats, group: NDArray[np.int64], counts: Floats) -> Floats:
    return np.bincount(group, values * counts) / np.bincount(group, counts)


def _counts(like: Sequence[float], weights: Sequence[float] | None) -> Floats:
    return np.ones(len(like)) if weights is None else np.asarray(weights, np.float64)


def _numbered(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
