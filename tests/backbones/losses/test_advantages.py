"""Advantages are what their formulas say, and a seat's luck is not a decision's merit."""

import random

import numpy as np
import pytest

from nlrl.backbones.advantages import explained_variance, gae, group_advantages, normalised
from nlrl.errors import NLRLError


def written_out(rewards, values, gamma, lam):
    """The defining double sum."""
    later = [*values[1:], 0.0]
    errors = [r + gamma * after - v for r, v, after in zip(rewards, values, later, strict=True)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_gae_is_the_discounted_sum_of_one_step_errors(gamma, lam):
    rng = random.Random(0)
    rewards, values = [rng.uniform(-1, 1) for _ in range(7)], [rng.uniform(-1, 1) for _ in range(7)]
    assert gae(rewards, values, gamma, lam) == pytest.approx(written_out(rewards, values, gamma, lam))


def test_a_loss_on_the_opponents_move_reaches_every_decision_before_it():
    assert gae([0.0, 0.0, -1.0], [0.0, 0.0, 0.0], lam=1.0) == [-1.0, -1.0, -1.0]
    assert gae([0.0, 0.0, -1.0], [0.5, 0.5, 0.5], lam=1.0) == [-1.5, -1.5, -1.5]


def test_gae_without_lambda_is_the_one_step_error():
    assert gae([0.0, 1.0], [0.25, 0.5], lam=0.0) == [0.25, 0.5]


def test_a_value_short_is_refused():
    with pytest.raises(NLRLError, match="2 rewards and 1 values"):
        gae([0.0, 1.0], [0.5])


def test_what_a_seat_earns_on_average_is_nobodys_merit():
    """Seat 0 wins all, seat 1 loses all: nothing was done better than anything else in the same seat."""
    assert group_advantages([1, 1, -1, -1], [0, 0, 1, 1], [0, 0, 1, 1]) == [0, 0, 0, 0]
    without_roles = group_advantages([1, 1, -1, -1], "aaaa", "aaaa")
    assert without_roles == [1, 1, -1, -1]


def test_each_role_has_mean_0_and_spread_1():
    rng = random.Random(1)
    roles = [rng.randrange(2) for _ in range(200)]
    found = np.array(normalised([rng.gauss(3 * role, 1 + 4 * role) for role in roles], roles))
    for role in (0, 1):
        mine = found[np.array(roles) == role]
        assert mine.mean() == pytest.approx(0, abs=1e-9)
        assert mine.std() == pytest.approx(1)


def test_a_sample_competes_with_its_group_and_alone_with_its_role():
    returns, groups = [1.0, 0.0, 1.0, 1.0, -1.0], ["s", "s", "t", "t", "alone"]
    found = group_advantages(returns, groups, [0] * 5)
    assert found[0] > 0 > found[1]
    assert found[2] == found[3] == 0
    assert found[4] < 0


def test_a_weight_counts_like_repetition():
    repeated = group_advantages([1.0, 0.0, 0.0, 0.0], "ssss", "rrrr")
    weighted = group_advantages([1.0, 0.0], "ss", "rr", [1.0, 3.0])
    assert weighted == pytest.approx(repeated[:2])


def test_noise_is_not_blown_up():
    assert normalised([0.1, 0.1 + 1e-12], [0, 0]) == [0, 0]


def test_explained_variance_of_a_perfect_critic_is_1_and_of_the_mean_0():
    assert explained_variance([1.0, -1.0], [1.0, -1.0]) == 1
    assert explained_variance([0.0, 0.0], [1.0, -1.0]) == 0
    assert np.isnan(explained_variance([0.0, 0.0], [1.0, 1.0]))
