"""Pictures of mazes. `python tests/envs/test_maze_drawing.py` writes the golden ones anew."""

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from nlrl.envs import svg
from nlrl.envs.maze import Maze, MazeState

GOLDEN = Path(__file__).parents[1] / "golden" / "svg"
LEFT, RIGHT, UP, DOWN = range(4)
ARROWS = {LEFT: 0.1, RIGHT: 0.65, UP: 0.2, DOWN: 0.05}


def walked(game: Maze, state: MazeState, *actions: int) -> list[MazeState]:
    states = [state]
    for action in actions:
        states.append(game.apply(states[-1], action).state)
    return states


def double_t_walk() -> str:
    """A walk with two bumps, candidates with their weights, and the way that is left."""
    game = Maze()
    path = walked(game, MazeState(1, 1), RIGHT, UP, RIGHT, DOWN, DOWN, DOWN, LEFT, DOWN, RIGHT)
    return game.render_svg(path[-1], RIGHT, ARROWS, {RIGHT: "best"}, path=path, shortest=True)


def medium_start() -> str:
    game = Maze(layout="medium")
    return game.render_svg(MazeState(6, 1), shortest=True)


def umaze_goal() -> str:
    game = Maze(layout="umaze")
    path = walked(game, MazeState(3, 1), UP, UP, RIGHT, RIGHT, DOWN, DOWN)
    return game.render_svg(path[-1], DOWN, path=[state.cell for state in path])


def generated_arrows() -> str:
    game = Maze(layout="generated", width=9, height=7, loops=0.5, seed=1)
    return game.render_svg(MazeState(3, 3), None, ARROWS, {UP: "bump"})


CASES = {
    "maze_double_t_walk": double_t_walk,
    "maze_generated_arrows": generated_arrows,
    "maze_medium_start": medium_start,
    "maze_umaze_goal": umaze_goal,
}


@pytest.mark.parametrize("case", CASES)
def test_pictures_are_the_golden_ones(case):
    assert CASES[case]() + "\n" == (GOLDEN / f"{case}.svg").read_text()


def elements(picture: str, tag: str) -> list[ET.Element]:
    return [element for element in ET.fromstring(picture).iter() if element.tag.endswith("}" + tag)]


def strokes(picture: str) -> list[str | None]:
    return [element.get("stroke") for element in elements(picture, "path")]


def test_titles_say_where_the_walker_is():
    assert elements(umaze_goal(), "title")[0].text == "Maze: the walker has reached the goal at row 3, column 3"
    assert "walker at row 6, column 1; the goal at row 1, column 6" in str(elements(medium_start(), "title")[0].text)


def test_every_row_and_column_is_numbered():
    texts = [element.text for element in elements(Maze().render_svg(MazeState(1, 1)), "text")]
    assert texts == [*map(str, range(13)), *map(str, range(10)), "G"]


def test_path_and_shortest_path_are_drawn_beside_each_other():
    game, path = Maze(layout="umaze"), [(1, 1), (1, 2)]
    plain = game.render_svg(MazeState(1, 2))
    both = game.render_svg(MazeState(1, 2), path=path, shortest=True)
    assert strokes(both).count(svg.FIRST) == strokes(plain).count(svg.FIRST) + 1
    dashed = [element for element in elements(both, "path") if element.get("stroke-dasharray")]
    solid = [element for element in elements(both, "path") if element.get("stroke") == svg.FIRST]
    assert [element.get("stroke") for element in dashed] == [svg.SECOND]
    assert str(dashed[0].get("d")).count("L") == 3
    assert {str(e.get("d")).split("L")[0] for e in dashed}.isdisjoint(str(e.get("d")).split("L")[-1] for e in solid)


def test_arrows_are_as_wide_as_their_weights_and_none_is_drawn_for_zero():
    game = Maze(layout="umaze")

    def shaft(weight: float) -> float:
        picture = game.render_svg(MazeState(1, 2), arrows={RIGHT: weight})
        arrow = [element for element in elements(picture, "path") if element.get("fill") == svg.CANDIDATE]
        heights = [float(point.split(" ")[1].rstrip("Z")) for point in str(arrow[0].get("d"))[1:].split("L")]
        return heights[0] - heights[-1]

    assert shaft(0.5) == pytest.approx(2 * shaft(0.25), abs=0.03)
    assert shaft(2.0) == shaft(1.0)
    nothing = game.render_svg(MazeState(1, 2), arrows={RIGHT: 0.0})
    assert [element.text for element in elements(nothing, "text")][-1] == "0%"
    assert svg.CANDIDATE not in nothing


def test_pictures_have_no_background_and_only_the_palette():
    picture = double_t_walk()
    root = ET.fromstring(picture)
    assert elements(picture, "rect")[0].get("fill-opacity") == "0.25"  # the frame of the last move, nothing larger
    colours = {value for element in root.iter() for key, value in element.attrib.items() if key in ("fill", "stroke")}
    assert colours <= {"none", svg.FIRST, svg.SECOND, svg.GRID, svg.CANDIDATE, svg.LAST_MOVE}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"last_move": 4}, "action 4 is no move of a maze; moves: 0 left, 1 right, 2 up, 3 down"),
        ({"arrows": {-1: 1.0}}, "action -1"),
        ({"marks": {9: "x"}}, "action 9"),
        ({"path": [(1, 1), (0, 1)]}, r"goes through \(0, 1\)"),
        ({"path": [(1, 1), (1, 3)]}, r"jumps from \(1, 1\) to \(1, 3\)"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Maze().render_svg(MazeState(1, 1), **arguments)


if __name__ == "__main__":
    for case, draw in CASES.items():
        (GOLDEN / f"{case}.svg").write_text(draw() + "\n")
