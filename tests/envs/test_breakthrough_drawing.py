"""Pictures of Breakthrough. `python tests/envs/test_breakthrough_drawing.py` writes the golden ones anew."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nlrl.envs import svg
from nlrl.envs.breakthrough import Breakthrough, BreakthroughState

GOLDEN = Path(__file__).parents[1] / "golden" / "svg"
GAME = Breakthrough()


def played(game: Breakthrough, moves: str) -> tuple[BreakthroughState, int | None]:
    """The position after `moves`, and the last one."""
    (state,), action = game.initial_states(), None
    for move in moves.split():
        action = game.parse_action(state, move)
        assert action is not None, move
        state = game.apply(state, action).state
    return state, action


def start() -> str:
    return GAME.render_svg(GAME.initial_states()[0])


def middle() -> str:
    """Candidates that cross, share a start or a target, and capture; labels of three moves to one cell."""
    state, last = played(GAME, "c4d3 c2d3* d4c3 b2a3 b4a3*")
    named = {text: action for action, text in GAME.legal_moves(state).items()}
    weights = {"a2b3": 0.05, "d3c4": 0.1, "d3d4": 0.6, "d2c3*": 0.15, "c1b2": 0.02, "c1c2": 0.03, "d1c2": 0.05}
    labels = {"d3d4": "+0.80", "b1c2": "b", "c1c2": "c", "d1c2": "d", "d2c3*": "lost"}
    return GAME.render_svg(
        state, last, {named[m]: w for m, w in weights.items()}, {named[m]: t for m, t in labels.items()}
    )


def wide_won() -> str:
    game = Breakthrough(3, 8)
    return game.render_svg(*played(game, "a3a2 h1h2 a2b1*"))


def tall_black() -> str:
    game = Breakthrough(8, 3)
    (state,) = game.initial_states()
    legal = game.legal_actions(state)
    return game.render_svg(state, arrows=dict.fromkeys(legal, 1 / len(legal)), marks={legal[0]: "first"})


CASES = {f"breakthrough_{case.__name__}": case for case in (start, middle, wide_won, tall_black)}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_golden_ones(case):
    assert CASES[case]() + "\n" == (GOLDEN / f"{case}.svg").read_text()


def elements(picture: str, tag: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(picture).iter() if element.tag.endswith("}" + tag)]


def texts(picture: str) -> list[str | None]:
    return [element.text for element in elements(picture, "text")]


def test_the_sides_differ_in_shape_and_in_colour():
    black, white = (
        [e for e in elements(start(), "polygon") if e.attrib["stroke"] == colour] for colour in (svg.FIRST, svg.SECOND)
    )
    assert len(black) == len(white) == 10 + 1  # and one in the legend
    assert {e.attrib["fill"] for e in black} == {svg.FIRST}
    assert {e.attrib["fill"] for e in white} == {"none"}
    assert tip(black[0]) > 0 > tip(white[0])


def tip(triangle: ET.Element) -> float:
    """How far below its base a triangle ends."""
    base, _, end = (float(point.split(",")[1]) for point in triangle.attrib["points"].split())
    return end - base


def test_coordinates_and_legend_are_written_once_each():
    assert texts(start()) == ["5", "4", "3", "2", "1", "a", "b", "c", "d", "e", "black", "white"]


@pytest.mark.parametrize(
    ("picture", "title"),
    [
        (start, "Breakthrough: black to move"),
        (middle, "Breakthrough: white to move"),
        (wide_won, "Breakthrough: black has won"),
    ],
)
def test_the_title_says_whose_turn_it_is(picture, title):
    assert elements(picture(), "title")[0].text == title


def test_the_last_move_is_framed_where_it_began_and_ended():
    frames = [e for e in elements(middle(), "rect") if e.attrib["stroke"] == svg.LAST_MOVE]
    assert len(frames) == 2
    assert not elements(start(), "rect")


def test_heavier_arrows_are_wider_and_darker_and_say_their_weight():
    (state,) = GAME.initial_states()
    picture = GAME.render_svg(state, arrows={16: 0.75, 28: 0.25})
    heavy, light = (e for e in elements(picture, "polygon") if e.attrib["fill"] == svg.CANDIDATE)
    assert float(heavy.attrib["fill-opacity"]) > float(light.attrib["fill-opacity"])
    assert width(heavy) > width(light) > 0
    assert {"75%", "25%"} <= set(texts(picture))


def width(arrow: ET.Element) -> float:
    """Of a straight arrow's shaft."""
    xs = [float(point.split(",")[0]) for point in arrow.attrib["points"].split()]
    return abs(xs[0] - xs[-1])


def test_weights_out_of_range_are_drawn_like_the_nearest_in_range():
    (state,) = GAME.initial_states()
    shapes = [elements(GAME.render_svg(state, arrows={16: weight}), "polygon")[-1].attrib for weight in (1.0, 7.0)]
    assert shapes[0] == shapes[1]


def test_marks_stand_at_the_target():
    (state,) = GAME.initial_states()
    (mark,) = (e for e in elements(GAME.render_svg(state, marks={16: "a < b\x00"}), "text") if e.text == "a < b")
    (column,) = (e for e in elements(start(), "text") if e.text == "a")
    (rank,) = (e for e in elements(start(), "text") if e.text == "3")
    assert mark.attrib["x"] == column.attrib["x"]
    assert abs(float(mark.attrib["y"]) - float(rank.attrib["y"])) < 38  # half a cell


@pytest.mark.parametrize("action", [-1, 15, 75, 61])
def test_moves_off_the_board_are_refused(action):
    (state,) = GAME.initial_states()
    for arguments in ({"arrows": {action: 0.5}}, {"marks": {action: "?"}}):
        with pytest.raises(ValueError, match=f"action {action} is no move of black on 5 rows and 5 columns"):
            GAME.render_svg(state, **arguments)


def test_a_last_move_that_the_other_side_cannot_have_made_is_refused():
    with pytest.raises(ValueError, match="action 1 is no move of white"):
        GAME.render_svg(GAME.initial_states()[0], last_move=1)


if __name__ == "__main__":
    for name, case in CASES.items():
        (GOLDEN / f"{name}.svg").write_text(case() + "\n")
