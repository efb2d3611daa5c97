"""Golden games: a change of rules or of text is a visible difference."""

from pathlib import Path

import pytest

from nlrl.envs import make_from_spec
from nlrl.envs.playthrough import playthrough

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize(("spec", "seed"), [("tictactoe", 4), ("tictactoe", 5)])
def test_playthrough_is_the_golden_one(spec, seed):
    """To renew it on purpose: `python -m nlrl.envs.playthrough SPEC SEED > tests/golden/playthrough_SPEC_SEED.txt`."""
    golden = (GOLDEN / f"playthrough_{spec}_{seed}.txt").read_text()
    assert playthrough(make_from_spec(spec), seed) == golden
