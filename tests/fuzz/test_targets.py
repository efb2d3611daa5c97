"""Every parser and loader, with damaged inputs: a value that fits or the error that it names, in time, never another.

`python -m nlrl.testing.fuzz --minutes 10` tries the same targets for longer (docs/security.md).
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nlrl.testing.fuzz import targets
from nlrl.testing.fuzz.damage import damaged

TARGETS = targets()


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_are_read_or_refused(name):
    target = TARGETS[name]
    target.warm()

    @settings(
        max_examples=10 if target.slow else 60,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False), st.sampled_from(target.seeds), st.integers(0, 6))
    def tried(random, seed, times):
        target.check(damaged(seed, times, random))

    tried()


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_reads_one_of_its_seeds(name):
    """A target that refuses everything would find nothing."""
    if name in ("pickles", "indices of shards", "safetensors"):
        pytest.skip("the seeds are what must be refused, or the readers differ in what they want")
    assert any(TARGETS[name].check(seed) for seed in TARGETS[name].seeds)
