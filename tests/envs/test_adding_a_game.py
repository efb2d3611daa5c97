"""docs/adding_a_game.md: its example is a sound game, and its code is that example's or runs."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from nlrl import envs
from nlrl.envs.random import Rng
from nlrl.errors import GameError, NLRLError

TESTS = Path(__file__).resolve().parents[1]
EXAMPLE = (TESTS / "examples" / "connect_four.py").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", (TESTS.parent / "docs" / "adding_a_game.md").read_text(), re.DOTALL)
QUOTES = [block for block in BLOCKS if block.startswith(("class ", "    "))]
RUNS = [block for block in BLOCKS if block not in QUOTES]


@pytest.fixture
def connect_four(monkeypatch):
    monkeypatch.syspath_prepend(str(TESTS / "examples"))
    monkeypatch.setattr(envs, "_factories", dict(envs._factories))
    import connect_four  # type: ignore[import-not-found]

    return connect_four


@pytest.mark.parametrize("block", QUOTES, ids=lambda block: block.strip().split("\n")[0])
def test_quoted_code_is_the_example_s(block):
    assert block in EXAMPLE


def test_all_other_code_runs_in_the_order_of_the_page(connect_four):
    page: dict[str, object] = {}
    assert (len(QUOTES), len(RUNS)) == (7, 11)
    for block in RUNS:
        exec(compile(block, "docs/adding_a_game.md", "exec"), page)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 4 rows and then the line '1 2 3 4'"),
        (". . . .\n. . . .\n. . . .\nO . .\n1 2 3 4", "has 4 cells of 'O', 'X' or '.', not 'O . .'"),
        (". . . .\n. . . .\n. . . .\nO . Z .\n1 2 3 4", "not 'O . Z .'"),
        (". . . .\n. . . .\nO . . .\n. . . .\n1 2 3 4", "hangs in the air in column 1"),
        (". . . .\n. . . .\nO . . .\nO . . .\n1 2 3 4", "not [+]2"),
        (". . . .\n. . . .\n. . . .\nX . . .\n1 2 3 4", "not -1"),
        (". . . .\nX X . .\nX X X O\nO O O O\n1 2 3 4", "a move was made after"),
        (". . . .\nO O O .\nO O O X\nX X X X\n1 2 3 4", "a move was made after"),
    ],
)
def test_impossible_boards_are_refused(connect_four, text, message):
    game = connect_four.ConnectFour(rows=4, columns=4)
    with pytest.raises(ValueError, match=message):
        game.parse_text(text)


@pytest.mark.parametrize(
    "moves", ["1 2 1 2 1 2 1", "1 1 2 2 3 3 4", "1 2 2 3 3 4 3 4 4 6 4", "4 3 3 2 2 1 2 1 1 6 1"], ids=str.split
)
def test_four_in_a_line_wins_up_along_and_across(connect_four, moves):
    game = connect_four.ConnectFour()
    state = game.initial_states()[0]
    for move in moves.split():
        assert not game.is_terminal(state)
        state = game.apply(state, game.parse_action(state, move)).state
    assert game.returns(state) == (1.0, -1.0)


def test_lines_do_not_run_over_the_edge(connect_four):
    """Four bits in a row of the integer that lie in two columns are no line."""
    game = connect_four.ConnectFour(rows=4, columns=4)
    state = game.parse_text("O . . .\nO . . .\nX X . .\nX O O X\n1 2 3 4")
    assert not game.is_terminal(state)


def test_random_games_agree_with_openspiel(connect_four):
    pyspiel = pytest.importorskip("pyspiel")
    game, other = connect_four.ConnectFour(), pyspiel.load_game("connect_four")
    for number in range(30):
        rng, state, theirs = Rng("connect four", number), game.initial_states()[0], other.new_initial_state()
        while not theirs.is_terminal():
            assert list(game.legal_actions(state)) == theirs.legal_actions()
            action = rng.choice(game.legal_actions(state))
            state = game.apply(state, action).state
            theirs.apply_action(action)
        assert game.is_terminal(state)
        assert list(game.returns(state)) == theirs.returns()


def test_sizes_that_cannot_be_are_refused(connect_four):
    envs.register("connect_four", "connect_four:ConnectFour")
    for size in ({"rows": 2}, {"columns": 10}, {"rows": 3, "columns": 3}):
        with pytest.raises(GameError, match="must be 3 to 9, one of them at least 4"):
            envs.make("connect_four", **size)
    with pytest.raises(NLRLError, match="too many states"):
        envs.make("connect_four").make_oracle()


def test_the_page_names_files_that_exist():
    text = (TESTS.parent / "docs" / "adding_a_game.md").read_text()
    for path in re.findall(r"`((?:envs|agents|tests)/[\w/.]+)`", text):
        if "connect_four" not in path or path.startswith("tests"):
            assert (TESTS.parent / path).exists(), textwrap.shorten(path, 80)
