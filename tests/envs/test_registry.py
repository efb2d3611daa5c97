"""Making games by name."""

import subprocess
import sys

import pytest

from nlrl import envs
from nlrl.envs.spec import parse_call
from nlrl.envs.tictactoe import TicTacToe
from nlrl.errors import NLRLError


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(envs, "_factories", dict(envs._factories))
    return envs


class Sized(TicTacToe):
    name = "sized"

    def __init__(self, rows: int, layout: str = "plain"):
        self.rows, self.layout = rows, layout

    @property
    def params(self):
        return {"rows": self.rows, "layout": self.layout}


def test_tictactoe_by_name_and_spec():
    assert isinstance(envs.make("tictactoe"), TicTacToe)
    assert envs.make_from_spec("tictactoe").spec == "tictactoe" == envs.make_from_spec("tictactoe()").spec
    assert "tictactoe" in envs.names()


def test_unknown_game_names_the_known_ones():
    with pytest.raises(NLRLError, match=r"unknown game 'chess'; known: .*tictactoe"):
        envs.make("chess")


def test_unknown_and_missing_parameters_name_the_known_ones(registry):
    registry.register("sized", Sized)
    with pytest.raises(NLRLError, match="no parameter 'columns'; it has: rows, layout"):
        registry.make("sized", rows=3, columns=4)
    with pytest.raises(NLRLError, match="needs the parameter 'rows'"):
        registry.make("sized")
    with pytest.raises(NLRLError, match="it has: none"):
        registry.make("tictactoe", rows=3)


@pytest.mark.parametrize(("key", "value"), [("rows", "five"), ("rows", 5.5), ("rows", True), ("layout", 3)])
def test_parameters_of_another_type_are_refused_by_name(registry, key, value):
    registry.register("sized", Sized)
    with pytest.raises(ValueError, match=rf"game 'sized': {key} cannot be {value!r}"):
        registry.make("sized", **{"rows": 3, key: value})


def test_a_value_that_the_game_refuses_is_both_errors(registry):
    def factory(rows: int):
        raise ValueError(f"rows is {rows}; it must be 3 to 8")

    registry.register("refusing", factory)
    for kind in (ValueError, NLRLError):
        with pytest.raises(kind, match="refusing: rows is 9; it must be 3 to 8"):
            registry.make("refusing", rows=9)


def test_specs_remake_games_with_their_parameters(registry):
    registry.register("sized", Sized)
    game = registry.make_from_spec(" sized( layout=double_t, rows=5 ) ")
    assert (game.rows, game.layout) == (5, "double_t")
    assert registry.make_from_spec(game.spec).params == game.params


def test_a_factory_may_be_named_and_is_then_imported_late(registry):
    registry.register("late", "nlrl.envs.tictactoe:TicTacToe")
    assert isinstance(registry.make("late"), TicTacToe)


def test_names_are_not_taken_twice(registry):
    with pytest.raises(NLRLError, match="already registered"):
        registry.register("tictactoe", Sized)
    with pytest.raises(NLRLError, match="identifier"):
        registry.register("tic tac", Sized)


@pytest.mark.parametrize(
    "spec", ["", "tictactoe(", "tictactoe)", "(rows=3)", "sized(3)", "sized(rows=3,rows=4)", "sized(rows=3,)", "a(b(c)"]
)
def test_malformed_specs_are_refused(spec, registry):
    registry.register("sized", Sized)
    with pytest.raises(NLRLError):
        registry.make_from_spec(spec)


def test_arguments_may_be_literals_words_or_calls():
    call = parse_call("f(1, -0.5, word, g(2,h(3)), 'a,b', key=True, other=(1, 2))")
    assert call.args == (1, -0.5, "word", "g(2,h(3))", "a,b")
    assert call.kwargs == {"key": True, "other": (1, 2)}
    with pytest.raises(NLRLError, match="keyed argument came before"):
        parse_call("f(key=1, 2)")


def test_rules_cost_neither_numpy_nor_torch():
    code = (
        "import sys, nlrl.envs as e, nlrl.envs.opponents as o; g = e.make('tictactoe');"
        "o.make_opponent('epsilon(0.5,first-move)', g); g.render_svg(g.initial_states()[0]);"
        "print([m for m in ('numpy', 'torch', 'ray', 'numba') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "[]"
