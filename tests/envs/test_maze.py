"""Maze: layouts, rules and what is refused."""

import pytest

from nlrl.envs import make, make_from_spec
from nlrl.envs.maze import Maze, MazeState, Seen
from nlrl.envs.testing import check_game
from nlrl.envs.tictactoe import TicTacToeState
from nlrl.errors import GameError

LEFT, RIGHT, UP, DOWN = range(4)
NO_MOVE = -1
SPECS = [
    "maze(layout=double_t)",
    "maze(layout=double_t,observed=partial)",
    "maze(layout=medium)",
    "maze(layout=medium,observed=partial,history=3)",
    "maze(layout=umaze)",
    "maze(layout=umaze,observed=partial,history=0)",
    "maze(layout=large)",
    "maze(layout=large,observed=partial)",
    "maze(layout=generated)",
    "maze(layout=generated,observed=partial,width=7,height=9,loops=0.5,seed=4)",
    "maze(layout=#####/#..G#/#.#.#/#...#,max_steps=7,history=2)",
    "maze(layout=..../.##G,observed=partial)",
    "maze(layout=double_t,goal=(1, 1),starts=((8, 6), (1, 11)))",
]
D4RL_MEDIUM = ["########", "#OO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OG#", "########"]
D4RL_LARGE = [
    "############",
    "#OOOO#OOOOO#",
    "#O##O#O#O#O#",
    "#OOOOOO#OOO#",
    "#O####O###O#",
    "#OO#O#OOOOO#",
    "##O#O#O#O###",
    "#OO#OOO#OGO#",
    "############",
]


def umaze(**params) -> Maze:
    return Maze(layout="umaze", **params)


def walk(game: Maze, state: MazeState, *actions: int) -> MazeState:
    for action in actions:
        step = game.invalid_step(state) if action == NO_MOVE else game.apply(state, action)
        state = step.state
    return state


# -- the game as a whole -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", SPECS)
def test_conformance(spec):
    check_game(lambda: make_from_spec(spec), games=2)


def test_a_spec_names_what_differs_and_is_the_same_for_equal_games():
    assert Maze().spec == "maze(layout=double_t,observed=full)"
    assert Maze(goal=(8, 6), history=0, max_steps=100).spec == Maze().spec
    assert (
        Maze(layout="umaze", starts=((1, 2), (1, 1), (1, 1))).spec
        == make_from_spec("maze(layout=umaze,starts=((1, 1), (1, 2)))").spec
    )
    drawn = Maze(layout="####\n#.G#\n####")
    assert drawn.spec == "maze(layout=####/#.G#/####,observed=full)"
    assert Maze(layout="####/#..#/####", goal=(1, 2)).spec == drawn.spec
    assert Maze(layout="..", goal=(0, 1)).spec == make_from_spec("maze(layout=.G)").spec


# -- layouts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("layout", "rows", "columns", "free", "goal"),
    [
        ("double_t", 10, 13, 26, (8, 6)),
        ("medium", 8, 8, 26, (1, 6)),
        ("umaze", 5, 5, 7, (3, 3)),
        ("large", 12, 9, 46, (2, 7)),
    ],
)
def test_layouts_are_those_of_lmrl_gym(layout, rows, columns, free, goal):
    game = Maze(layout=layout)
    lines = game.to_text(game.initial_states()[0]).splitlines()
    assert (len(lines), {len(line) for line in lines}) == (rows, {columns})
    assert sum(line.count(symbol) for line in lines for symbol in ".@G") == free
    assert lines[goal[0]][goal[1]] == "G"
    assert len(game.initial_states()) == free - 1  # every cell but the goal
    assert goal not in {state.cell for state in game.initial_states()}


@pytest.mark.parametrize(("layout", "d4rl"), [("medium", D4RL_MEDIUM), ("large", D4RL_LARGE)])
def test_goals_that_lmrl_gym_leaves_open_are_those_of_d4rl_turned_by_a_quarter(layout, d4rl):
    turned = ["".join(column).replace("O", ".") for column in zip(*d4rl, strict=True)][::-1]
    game = Maze(layout=layout)
    shown = game.to_text(game.initial_states()[0]).replace("@", ".")
    assert shown.splitlines() == turned


def test_a_goal_can_be_chosen():
    game = Maze(layout="medium", goal=(6, 6))
    assert game.apply(MazeState(6, 5), RIGHT).rewards == (0.0,)
    assert "goal: row 6, column 6" in game.observation_text(MazeState(6, 5), 0)
    assert MazeState(1, 6) in game.initial_states()


def test_cells_without_a_way_to_the_goal_are_no_starts():
    game = Maze(layout="######/#.#.G#/######")
    assert game.initial_states() == (MazeState(1, 3),)
    with pytest.raises(ValueError, match="row 1, column 1, from where no way leads to the goal"):
        game.parse_text("######\n#@#.G#\n######")


def test_outside_the_map_there_is_wall():
    game = Maze(layout=".G")
    assert game.apply(MazeState(0, 0), UP) == (1.0, MazeState(0, 0), (-1.0,))
    assert game.observation_text(MazeState(0, 0), 0).endswith("walls: left, up, down")


# -- rules -------------------------------------------------------------------------------------------------------------
def test_moves_walls_and_rewards():
    game, state = umaze(), MazeState(1, 1)
    assert [game.action_text(state, action) for action in game.legal_actions(state)] == [
        "move left",
        "move right",
        "move up",
        "move down",
    ]
    assert game.apply(state, LEFT) == (1.0, state, (-1.0,))  # a bump is legal and costs a step
    assert game.apply(state, RIGHT) == (1.0, MazeState(1, 2), (-1.0,))
    assert game.apply(state, DOWN) == (1.0, MazeState(2, 1), (-1.0,))
    assert game.apply(MazeState(2, 3), DOWN) == (1.0, MazeState(3, 3), (0.0,))
    assert game.is_terminal(MazeState(3, 3))
    assert game.legal_actions(MazeState(3, 3)) == ()


def test_a_reply_that_names_no_move_costs_four_and_moves_nothing():
    game, state = umaze(), MazeState(1, 2)
    assert game.invalid_step(state) == (1.0, state, (-4.0,))
    assert umaze(history=1).invalid_step(state).state == MazeState(1, 2, (Seen(0b1100, NO_MOVE),))
    with pytest.raises(ValueError, match="ended"):
        game.invalid_step(MazeState(3, 3))


def test_the_cap_costs_one_more():
    game = Maze()
    assert (game.max_length, game.truncation_reward, game.value_range) == (100, -1.0, (-101.0, 0.0))
    assert umaze(max_steps=7).max_length == 7


@pytest.mark.parametrize("text", ["left", "move  left", "Move left", "move left\n", "move", "0", "move diagonally"])
def test_only_the_four_texts_are_moves(text):
    assert Maze().parse_action(MazeState(1, 1), text) is None


def test_the_last_items_of_history_are_kept():
    game = umaze(observed="partial", history=2)
    state = walk(game, MazeState(1, 1), DOWN, NO_MOVE, UP)
    assert state == MazeState(1, 1, (Seen(0b0011, NO_MOVE), Seen(0b0011, UP)))
    assert walk(umaze(), MazeState(1, 1), DOWN, UP) == MazeState(1, 1)


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "state", [MazeState(0, 0), MazeState(99, 1), MazeState(-1, 1), TicTacToeState(1, 1), (1, 1), None]
)
def test_states_of_another_game_are_refused(state):
    game = Maze()
    calls = [game.is_terminal, game.legal_actions, game.current_player, game.returns, game.to_text, game.invalid_step]
    calls += [lambda s: game.apply(s, LEFT), lambda s: game.observation_text(s, 0), game.render_svg]
    calls += [lambda s: game.parse_action(s, "move left"), game.make_oracle().value, game.make_oracle().q_values]
    for call in calls:
        with pytest.raises(ValueError, match="is not a MazeState on one of the 26 cells"):
            call(state)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layout": "labyrinth"}, "unknown layout 'labyrinth'; known: double_t, large, medium, umaze, generated"),
        ({"layout": "#####/#..x#/#####"}, "row 1, column 3 of the layout: .*not 'x'"),
        ({"layout": "#####/#.G#/#####"}, "row 1 of the layout has 4 cells, the rows above it have 5"),
        ({"layout": "#..G#/#G..#"}, r"at most one goal 'G', not 2: \(0, 3\), \(1, 1\)"),
        ({"layout": "#...#"}, "no goal"),
        ({"layout": "/".join(["." * 41] * 41)}, "1 to 40 rows and columns; this one has 41 and 41"),
        ({"layout": "\n"}, "this one has 1 and 0|unknown"),
        ({"layout": "#G#/.#."}, r"no legal start: .*goal \(0, 1\)"),
        ({"layout": "#..G#", "goal": (0, 1)}, r"marks its goal 'G' at \(0, 3\), but goal is \(0, 1\)"),
        ({"layout": "#...#", "goal": (0, 0)}, r"goal \(0, 0\) is in a wall"),
        ({"goal": (0, 0)}, r"goal \(0, 0\) is in a wall"),
        ({"goal": (10, 3)}, r"goal \(10, 3\) is outside the 10x13 map"),
        ({"goal": (-2, 6)}, "outside"),
        ({"goal": (1, 2, 3)}, "goal must be a cell|goal cannot be"),
        ({"goal": "1,2"}, "goal must be a cell|goal cannot be"),
        ({"starts": ()}, "at least one cell"),
        ({"starts": ((1, 1), (8, 6))}, r"start \(8, 6\) is the goal"),
        ({"starts": ((0, 0),)}, r"start \(0, 0\) is the goal, in a wall"),
        ({"observed": "none"}, "observed must be 'full' or 'partial'|observed cannot be"),
        ({"history": -1}, "history must be from 0"),
        ({"history": 2.5}, "history must be a whole number|history cannot be"),
        ({"max_steps": 0}, "max_steps must be from 1"),
        ({"max_steps": True}, "max_steps must be a whole number|max_steps cannot be"),
        ({"width": 9}, "width belongs to layout 'generated', not to 'double_t'"),
        ({"layout": "#.G", "seed": 1}, "seed belongs to layout 'generated'"),
        ({"layout": "generated", "width": 8}, "width must be an odd number from 5 to 39, not 8"),
        ({"layout": "generated", "height": 41}, "height must be an odd number"),
        ({"layout": "generated", "loops": 1.5}, "loops must be from 0 to 1"),
        ({"layout": "generated", "seed": 0.5}, "seed must be a whole number|seed cannot be"),
        ({"layout": "generated", "width": 5, "height": 5, "goal": (2, 2)}, r"goal \(2, 2\) is in a wall"),
    ],
)
def test_bad_parameters_are_refused_by_name(params, message):
    with pytest.raises(ValueError, match=message):
        Maze(**params)
    with pytest.raises(GameError, match=message):
        make("maze", **params)


@pytest.mark.parametrize("action", [-1, 4, "move left"])
def test_illegal_actions_are_refused_by_name(action):
    with pytest.raises(ValueError, match=f"action {action!r} is illegal"):
        Maze().apply(MazeState(1, 1), action)
