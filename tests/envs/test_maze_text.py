"""Maze: the map, what the walker is told, and texts that are refused."""

import pytest

from nlrl.envs.maze import Maze, MazeState, Seen

LEFT, RIGHT, UP, DOWN = range(4)
NO_MOVE = -1
U_MAZE = """\
#####
#...#
#@#.#
#.#G#
#####"""


def umaze(**params) -> Maze:
    return Maze(layout="umaze", **params)


def walk(game: Maze, state: MazeState, *actions: int) -> MazeState:
    for action in actions:
        step = game.invalid_step(state) if action == NO_MOVE else game.apply(state, action)
        state = step.state
    return state


def test_the_map_reads_as_documented():
    game = umaze()
    assert game.to_text(MazeState(2, 1)) == U_MAZE
    assert game.parse_text(U_MAZE) == MazeState(2, 1)
    assert game.to_text(MazeState(3, 3)).splitlines()[3] == "#.#*#"


def test_what_a_fully_observed_walker_is_told():
    game = Maze()
    told = "goal: row 8, column 6\nyou: row 1, column 3\nwalls: up"
    assert game.observation_text(MazeState(1, 3), 0) == told
    assert umaze().observation_text(MazeState(2, 1), 0).endswith("walls: left, right")
    assert Maze(layout=".../.../..G").observation_text(MazeState(1, 1), 0).endswith("walls: none")


def test_what_a_partially_observed_walker_is_told():
    game = umaze(observed="partial")
    state = walk(game, MazeState(1, 1), RIGHT, NO_MOVE)
    told = "walls: up, down\nbefore, oldest first:\nwalls left, up; move right\nwalls up, down; no legal move"
    assert game.observation_text(state, 0) == told
    assert game.observation_text(MazeState(3, 3), 0).startswith("you: at the goal\n")


def test_partial_observation_depends_on_walls_and_history_alone():
    """Both ends of the Double-T's left bar look alike, and so do the walks into them from the middle."""
    game = Maze(observed="partial")
    one, other = walk(game, MazeState(1, 2), LEFT), walk(game, MazeState(1, 8), LEFT)
    assert game.observation_text(MazeState(1, 1), 0) == game.observation_text(MazeState(1, 7), 0)
    assert one != walk(game, MazeState(1, 2), LEFT, LEFT)
    assert game.observation_text(one, 0) == game.observation_text(other, 0)
    assert "row" not in game.observation_text(one, 0)


def test_history_is_part_of_the_text():
    game = umaze(observed="partial", history=3)
    state = walk(game, MazeState(1, 1), DOWN, NO_MOVE, DOWN, UP)
    assert game.to_text(state) == U_MAZE + (
        "\nbefore, oldest first:\nwalls left, right; no legal move\nwalls left, right; move down"
        "\nwalls left, right, down; move up"
    )
    assert game.parse_text(game.to_text(state)) == state


HISTORY = "\nbefore, oldest first:\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (U_MAZE.replace("@", "."), "once, not 0 times"),
        (U_MAZE.replace("#...#", "#@..#"), "once, not 2 times"),
        (U_MAZE.replace("G", "."), r"line 4, column 3: '\.' where this maze has 'G'"),
        (U_MAZE.replace("G", "@"), "line 4, column 3: '@'"),
        (U_MAZE.replace("#@#", "#*#"), r"line 3, column 1: '\*'"),
        (U_MAZE.replace("#...#", "#.@.#").replace("#@#", "###"), "line 3, column 1: '#'"),
        (U_MAZE.replace("#...#", "#...##"), "line 2: expected 5 cells"),
        ("#####\n#@..#", "5 rows, not 2"),
        (U_MAZE + "\nmore", "line 6: .*expected the end"),
        (U_MAZE + "\nbefore, oldest first:", "line 6"),
        (U_MAZE + HISTORY + "walls left, right; move down", None),
        (
            U_MAZE + HISTORY + "walls right, left; move down",
            "line 7: expected such as .*'walls right, left; move down'",
        ),
        (U_MAZE + HISTORY + "walls left, right; jump", "line 7"),
        (U_MAZE + HISTORY + "left, right; move down", "line 7"),
        (U_MAZE + HISTORY + "\n".join(["walls left, right; no legal move"] * 3), "keeps 2 items of history, not 3"),
        (U_MAZE + HISTORY + "walls up, down; move left", "no walk that ends at row 2, column 1"),
    ],
)
def test_texts_that_show_no_state_are_refused(text, message):
    game = umaze(history=2)
    if message is None:
        message = "no walk"  # from row 1, column 1, the walker saw walls left and up
    with pytest.raises(ValueError, match=message):
        game.parse_text(text)


def test_a_game_without_history_reads_none():
    with pytest.raises(ValueError, match="keeps 0 items"):
        umaze().parse_text(U_MAZE + HISTORY + "walls left, up; move down")


def test_no_walk_goes_on_from_the_goal():
    text = U_MAZE.replace("#@#.#", "#.#@#") + HISTORY + "walls left, right, down; move up"
    with pytest.raises(ValueError, match="no walk that ends at row 2, column 3"):
        umaze(history=2).parse_text(text)


def test_a_short_history_began_at_a_start():
    item = HISTORY + "walls left, right; move up"
    text = U_MAZE.replace("#...#", "#@..#").replace("#@#", "#.#") + item
    assert umaze(history=2).parse_text(text) == MazeState(1, 1, (Seen(0b0011, UP),))
    with pytest.raises(ValueError, match="no walk"):
        umaze(history=2, starts=((1, 2),)).parse_text(text)
