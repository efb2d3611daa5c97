"""Promises about when, where and beside what a game is played: one broken game each."""

from __future__ import annotations

import random
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from nlrl import envs
from nlrl.envs.game import Step
from nlrl.envs.testing import check_game, report_game
from nlrl.envs.tictactoe import TicTacToe


class Broken(TicTacToe):
    name = "broken_replay"


class Memory:
    """What a class remembers of all games, outside its instances and their pickles."""

    games = 0
    last = None


class CountsGames(Broken):
    """Numbers its games in what it shows: an earlier game is seen in a later one."""

    def initial_state(self, rng):
        Memory.games += 1
        return super().initial_state(rng)

    def observation_text(self, state, player):
        return f"game {Memory.games}\n{self.to_text(state)}"


class SharesABoard(Broken):
    """Tells the end of the game from the last board it saw, not from the one it is asked about."""

    def apply(self, state, action, rng=None):
        followed, Memory.last = Memory.last in (None, state), super().apply(state, action, rng)
        step, Memory.last = Memory.last, Memory.last.state
        return step if followed or not any(step.rewards) else step._replace(rewards=(0.0, 0.0))

    def initial_state(self, rng):
        Memory.last = None
        return super().initial_state(rng)

    def transitions(self, state, action):
        return (super().apply(state, action),)


class Scratch(Broken):
    """Keeps the board it is working on where every thread finds it."""

    scratch = None

    def to_text(self, state):
        Scratch.scratch = state
        time.sleep(1e-5)
        return super().to_text(Scratch.scratch)


class KnowsItsThread(Broken):
    def observation_text(self, state, player):
        return f"{self.to_text(state)}\n{threading.current_thread() is threading.main_thread()}"


class UsesGlobalRandom(Broken):
    def apply(self, state, action, rng=None):
        random.random()
        return super().apply(state, action, rng)


class SeedsNumpy(Broken):
    def to_text(self, state):
        np.random.seed(0)
        return super().to_text(state)


class DrawsFromTheGlobalGenerator(Broken):
    def initial_state(self, rng):
        return random.choice(self.initial_states())

    def initial_states(self):
        start = super().initial_states()[0]
        return tuple(self.apply(start, action).state for action in range(9))


class Board:
    """A mutable state."""

    def __init__(self, o=0, x=0):
        self.cells = [o, x]

    o = property(lambda self: self.cells[0])
    x = property(lambda self: self.cells[1])

    def __eq__(self, other):
        return isinstance(other, Board) and self.cells == other.cells

    def __hash__(self):
        return hash(tuple(self.cells))

    def __iter__(self):
        return iter(self.cells)

    def __getitem__(self, player):
        return self.cells[player]


class MutableStates(Broken):
    """Plays on a copy of the state object that shares its list of cells."""

    def initial_states(self):
        return (Board(),)

    def apply(self, state, action, rng=None):
        from nlrl.envs.tictactoe import TicTacToeState, to_move

        mover = to_move(TicTacToeState(*state))
        step = super().apply(TicTacToeState(*state), action)
        state.cells[mover] = step.state[mover]
        return Step(1.0, state, step.rewards)


@pytest.mark.parametrize(
    ("make", "promise", "message"),
    [
        (CountsGames, "reset leaves nothing behind", "must not depend on the games before it: a view at step 0"),
        (SharesABoard, "equal seeds give equal games in any interleaving", "must not change one another"),
        (Scratch, "equal seeds give equal games with any number of workers", "with 2 worker threads"),
        (KnowsItsThread, "equal seeds give equal games with any number of workers", "with 1 worker threads"),
        (UsesGlobalRandom, "global random generators are untouched", "used or seeded"),
        (SeedsNumpy, "global random generators are untouched", "used or seeded"),
        (DrawsFromTheGlobalGenerator, "equal seeds give equal games in any interleaving", "must not change one"),
        (MutableStates, "a clone is independent", "must not change the state"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_found_under_its_name(make, promise, message):
    found = report_game(make, games=6, workers=2 if "workers" in promise else 0)[promise]
    assert found.ok is False
    assert message in found.message


@pytest.mark.parametrize("make", [CountsGames, SharesABoard, UsesGlobalRandom, MutableStates])
def test_the_suite_as_a_whole_refuses_them(make):
    with pytest.raises(AssertionError):
        check_game(make, games=6, workers=0)


def test_a_game_that_another_process_plays_otherwise_is_caught(tmp_path, monkeypatch):
    """The order of a set of strings differs between interpreters."""
    (tmp_path / "hashing_game.py").write_text(
        textwrap.dedent(
            """
            from nlrl.envs.tictactoe import TicTacToe

            class Hashing(TicTacToe):
                name = "hashing"

                def observation_text(self, state, player):
                    return self.to_text(state) + str(hash("a board"))
            """
        )
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from hashing_game import Hashing  # type: ignore[import-not-found]

    found = report_game(Hashing, games=2)["equal seeds give equal games with any number of workers"]
    assert found.ok is False
    assert "in another process" in found.message
    assert report_game(Hashing, games=2, workers=0).ok
    monkeypatch.delitem(sys.modules, "hashing_game")


def test_a_class_that_no_process_can_import_is_said_to_be_untried():
    class Local(TicTacToe):
        name = "local"

    Local.__qualname__ = "Local"
    setattr(sys.modules[__name__], "Local", Local)  # noqa: B010 - importable here, and in no other process
    try:
        found = report_game(Local, games=2)["equal seeds give equal games with any number of workers"]
    finally:
        delattr(sys.modules[__name__], "Local")
    assert found.ok is None
    assert "cannot import" in found.message


def test_a_report_lists_every_promise_and_counts_them():
    report = report_game("tictactoe", games=3)
    assert report.ok
    assert str(report).splitlines()[0] == "tictactoe"
    assert str(report).splitlines()[-1] == f"{len(report) - 1} kept, 0 broken, 1 not applicable"
    assert all(check.promise in str(report) for check in report)


def test_a_report_takes_a_game_and_refuses_an_unknown_spec():
    assert report_game(envs.make("tictactoe"), games=2, workers=0).name == "tictactoe"
    with pytest.raises(ValueError, match="unknown game 'chess'"):
        report_game("chess")
    with pytest.raises(KeyError, match="reset leaves nothing behind"):
        report_game("tictactoe", games=1, workers=0)["no such promise"]


def test_check_game_is_also_a_name_of_the_testing_room():
    import nlrl.testing

    assert nlrl.testing.check_game is check_game
    assert nlrl.testing.report_game is report_game
