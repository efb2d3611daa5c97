"""The conformance suite accepts the games of the platform and catches each kind of broken one."""

import random

import numpy as np
import pytest

from nlrl import envs
from nlrl.envs.game import Step
from nlrl.envs.testing import check_game
from nlrl.envs.tictactoe import TicTacToe, TicTacToeState


@pytest.mark.parametrize("name", envs.names())
def test_registered_games_keep_every_promise(name):
    check_game(lambda: envs.make(name), games=10)


class Broken(TicTacToe):
    name = "broken"


class AcceptsTakenCells(Broken):
    def apply(self, state, action, rng=None):
        return (
            super().apply(state, action, rng) if action in self.legal_actions(state) else Step(1.0, state, (0.0, 0.0))
        )


class RaisesKeyError(Broken):
    def apply(self, state, action, rng=None):
        if action not in self.legal_actions(state):
            raise KeyError(action)
        return super().apply(state, action, rng)


class Unsorted(Broken):
    def legal_actions(self, state):
        return super().legal_actions(state)[::-1]


class ForgetsTheEnd(Broken):
    def is_terminal(self, state):
        return False


class PaysBoth(Broken):
    def apply(self, state, action, rng=None):
        step = super().apply(state, action, rng)
        return step._replace(rewards=tuple(abs(reward) for reward in step.rewards))


class PaysAgain(Broken):
    def apply(self, state, action, rng=None):
        step = super().apply(state, action, rng)
        return step._replace(rewards=tuple(reward / 2 for reward in step.rewards))


class LosesProbability(Broken):
    def transitions(self, state, action):
        return (super().apply(state, action)._replace(probability=0.9),)


class LosesAPiece(Broken):
    def to_text(self, state):
        return super().to_text(TicTacToeState(state.o & ~1, state.x))


class ReadsAnything(Broken):
    def parse_text(self, text):
        try:
            return super().parse_text(text)
        except ValueError:
            return TicTacToeState()


class ReadsPrefixes(Broken):
    def parse_action(self, state, text):
        return super().parse_action(state, text[:1])


class ReadsTakenCells(Broken):
    def parse_action(self, state, text):
        return int(text) - 1 if text in "123456789" and text else None


class NoLossless(Broken):
    def action_text(self, state, action):
        return "5"


class UsesGlobalRandom(Broken):
    def apply(self, state, action, rng=None):
        random.random()
        return super().apply(state, action, rng)


class SeedsNumpy(Broken):
    def legal_actions(self, state):
        np.random.rand()
        return super().legal_actions(state)


class DiceWithoutRng(Broken):
    dice = random.Random(0)

    def apply(self, state, action, rng=None):
        return super().apply(state, self.dice.choice(self.legal_actions(state)) if action >= 0 else action, rng)


class Remembers(Broken):
    def __init__(self):
        self.moves = []

    def apply(self, state, action, rng=None):
        step = super().apply(state, action, rng)
        self.moves.append(action)
        return step


class Unpicklable(Broken):
    def __init__(self):
        self.file = lambda: None


class TooLong(Broken):
    max_length = 4


class WrongRange(Broken):
    value_range = (0.0, 1.0)


class WrongSymmetry(Broken):
    def symmetries(self, state):
        return (state, TicTacToeState(state.x, state.o))


class WrongRotation(Broken):
    """Moves the pieces in a way that does not keep lines."""

    def symmetries(self, state):
        def swap(board):
            return board & ~3 | (board & 1) << 1 | (board & 2) >> 1

        return (state, TicTacToeState(swap(state.o), swap(state.x)))


class BadPicture(Broken):
    def render_svg(self, state, last_move=None, arrows=None, marks=None):
        return f"<svg xmlns='http://www.w3.org/2000/svg'>{(marks or {}).get(8, '')}</svg>"


class ForeignPicture(Broken):
    def render_svg(self, state, last_move=None, arrows=None, marks=None):
        return "<svg xmlns='http://www.w3.org/2000/svg'><image href='https://example.org/o.png'/></svg>"


class ForgetsItsParameter(Broken):
    def __init__(self, rows=3):
        self.rows = rows

    @property
    def params(self):
        return {}

    @property
    def spec(self):
        return f"broken(rows={self.rows})"


@pytest.mark.parametrize(
    ("make", "promise"),
    [
        (AcceptsTakenCells, "apply must refuse the illegal action"),
        (RaisesKeyError, "with a ValueError, not KeyError"),
        (Unsorted, "legal_actions must be sorted"),
        (ForgetsTheEnd, "legal_actions must be empty in terminal states and only there"),
        (PaysBoth, "rewards of two players must be zero-sum"),
        (PaysAgain, "rewards must sum to returns"),
        (LosesProbability, "transitions must sum to 1"),
        (LosesAPiece, "parse_text must"),
        (ReadsAnything, "parse_text must refuse"),
        (ReadsPrefixes, "parse_action must refuse"),
        (ReadsTakenCells, "parse_action must refuse"),
        (NoLossless, "legal actions must have different texts"),
        (UsesGlobalRandom, "global random generator"),
        (SeedsNumpy, "global random generator"),
        (DiceWithoutRng, "must (be the same|refuse)|one of the transitions"),
        (Remembers, "must change nothing"),
        (Unpicklable, "cannot be pickled"),
        (TooLong, "end within max_length"),
        (WrongRange, "value_range"),
        (WrongSymmetry, "tell .* apart"),
        (WrongRotation, "tell .* apart"),
        (BadPicture, "well-formed"),
        (ForeignPicture, "self-contained"),
        (lambda: ForgetsItsParameter(4), "equal game"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_caught_and_named(make, promise):
    with pytest.raises(AssertionError, match=promise):
        check_game(make, games=10, workers=0)


def test_the_message_holds_the_state():
    with pytest.raises(AssertionError, match=r"in state TicTacToeState\(o=\d+, x=\d+\)"):
        check_game(PaysBoth, workers=0)
