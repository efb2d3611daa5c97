"""Golden games: a change of rules or of text is a visible difference."""

from pathlib import Path

import pytest

from nlrl.envs import make_from_spec, names
from nlrl.envs.playthrough import playthrough

GOLDEN = Path(__file__).parents[1] / "golden"


def head(path: Path) -> dict[str, str]:
    """The facts that a stored playthrough begins with."""
    lines = path.read_text().split("\n\n", 1)[0].splitlines()
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("playthrough_*.txt")), ids=lambda path: path.stem)
def test_playthrough_is_the_golden_one(path):
    """To renew it on purpose: `python -m nlrl.envs.playthrough SPEC SEED > tests/golden/playthrough_NAME_SEED.txt`."""
    facts = head(path)
    assert playthrough(make_from_spec(facts["game"]), int(facts["seed"])) == path.read_text()


@pytest.mark.parametrize("name", names())
def test_every_game_has_a_golden_playthrough(name):
    assert any(head(path)["game"].partition("(")[0] == name for path in GOLDEN.glob("playthrough_*.txt"))
