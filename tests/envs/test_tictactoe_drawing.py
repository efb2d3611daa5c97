"""Pictures of Tic-Tac-Toe. `python tests/envs/test_tictactoe_drawing.py` writes the golden ones anew."""

from pathlib import Path

import pytest

from nlrl.envs import make

GOLDEN = Path(__file__).parents[1] / "golden" / "svg"
GAME = make("tictactoe")


def after(*cells: int):
    state = GAME.initial_states()[0]
    for cell in cells:
        state = GAME.apply(state, cell).state
    return state


def start() -> str:
    return GAME.render_svg(after())


def middle() -> str:
    return GAME.render_svg(after(4, 0, 8), 8, {1: 0.2, 2: 0.7, 5: 0.1}, {2: "+0.31", 5: "lost"})


def won() -> str:
    return GAME.render_svg(after(0, 3, 1, 4, 2), 2)


CASES = {f"tictactoe_{case.__name__}": case for case in (start, middle, won)}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_golden_ones(case):
    assert CASES[case]() + "\n" == (GOLDEN / f"{case}.svg").read_text()


if __name__ == "__main__":
    for name, draw in CASES.items():
        (GOLDEN / f"{name}.svg").write_text(draw() + "\n")
