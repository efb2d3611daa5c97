"""Properties of generated mazes and of texts, on mazes and walks that Hypothesis draws."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.envs import make_from_spec
from nlrl.envs.maze import Maze, MazeState
from nlrl.envs.maze.generator import generate

SIDES = st.integers(2, 9).map(lambda n: 2 * n + 1)
SHARES = st.floats(0, 1)
SEEDS = st.integers(-(2**40), 2**40)


def free_cells(rows) -> set[tuple[int, int]]:
    return {(r, c) for r, row in enumerate(rows) for c, symbol in enumerate(row) if symbol == "."}


def neighbours(cell, free) -> set[tuple[int, int]]:
    row, column = cell
    return {(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)} & free


def connected(free) -> bool:
    seen, waiting = set(), [min(free)]
    while waiting:
        cell = waiting.pop()
        if cell not in seen:
            seen.add(cell)
            waiting += neighbours(cell, free)
    return seen == free


@given(SIDES, SIDES, SHARES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_generated_mazes_are_connected_walled_in_and_reproducible(width, height, loops, seed):
    layout = generate(width, height, loops, seed)
    free = free_cells(layout.rows)
    assert layout == generate(width, height, loops, seed)
    assert (len(layout.rows), {len(row) for row in layout.rows}) == (height, {width})
    assert connected(free)
    assert all(0 < row < height - 1 and 0 < column < width - 1 for row, column in free)
    assert {(r, c) for r in range(1, height, 2) for c in range(1, width, 2)} <= free
    assert layout.goal in free


@given(SIDES, SIDES, SEEDS)
@settings(max_examples=60, deadline=None)
def test_loops_open_walls_from_a_tree_to_a_maze_without_dead_ends(width, height, seed):
    tree, some, braid = (free_cells(generate(width, height, loops, seed).rows) for loops in (0.0, 0.5, 1.0))
    passages = sum(len(neighbours(cell, tree)) for cell in tree) // 2
    assert passages == len(tree) - 1  # a tree: connected, one edge less than cells
    assert tree <= some <= braid
    assert all(len(neighbours(cell, braid)) > 1 for cell in braid)


def test_seeds_give_different_mazes_and_goals():
    layouts = {generate(9, 9, 0.3, seed) for seed in range(50)}
    assert len(layouts) == 50
    assert len({layout.goal for layout in layouts}) > 8


def test_a_seed_means_the_same_maze_for_ever():
    """Records name mazes by seed. If this fails, old records no longer show the mazes they were made on."""
    assert generate(9, 7, 0.5, 1).to_text() == "#########/#G......#/#.###.#.#/#...#...#/#.#####.#/#.......#/#########"


@st.composite
def walks(draw) -> tuple[Maze, MazeState]:
    game = Maze(
        layout="generated",
        width=draw(st.sampled_from([5, 7, 9])),
        height=draw(st.sampled_from([5, 7])),
        loops=draw(st.sampled_from([0.0, 0.4, 1.0])),
        seed=draw(st.integers(0, 99)),
        observed=draw(st.sampled_from(["full", "partial"])),
        history=draw(st.integers(0, 6)),
    )
    state = draw(st.sampled_from(game.initial_states()))
    for action in draw(st.lists(st.integers(-1, 3), max_size=12)):
        if not game.is_terminal(state):
            state = (game.invalid_step(state) if action == -1 else game.apply(state, action)).state
    return game, state


@given(walks())
@settings(max_examples=150, deadline=None)
def test_every_state_can_be_read_back_from_its_text(walked):
    game, state = walked
    assert game.parse_text(game.to_text(state)) == state
    again = make_from_spec(game.spec)
    assert again.spec == game.spec
    assert again.parse_text(game.to_text(state)) == state


@given(walks(), st.integers(0, 200), st.sampled_from("#.G@*x \n"))
@settings(max_examples=150, deadline=None)
def test_a_changed_map_is_refused_or_shows_another_state(walked, place, symbol):
    game, state = walked
    text = game.to_text(state)
    place %= len(text)
    changed = text[:place] + symbol + text[place + 1 :]
    try:
        read = game.parse_text(changed)
    except ValueError:
        return
    assert game.to_text(read) == changed.strip("\n")


@given(walks())
@settings(max_examples=100, deadline=None)
def test_a_partially_observed_walker_is_told_no_place(walked):
    game, state = walked
    told = game.observation_text(state, 0)
    assert ("goal: row" in told) == ("you: row" in told) == (game.observed == "full")
    assert len(told.splitlines()) <= 4 + game.history
