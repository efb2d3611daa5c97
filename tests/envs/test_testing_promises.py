"""Promises about endings, views, refused replies and exact values: one broken game each."""

from __future__ import annotations

import pytest

from nlrl.envs.game import Step
from nlrl.envs.oracle import TabularOracle
from nlrl.envs.testing import report_game
from nlrl.envs.tictactoe import TicTacToe
from nlrl.errors import NLRLError
from nlrl.testing import ScriptedGame

WALK = {"a": {"on": "b", "stay": "a2"}, "a2": {"on": "b2"}, "b": {"on": "c"}, "b2": {"on": "c2"}, "c": 1.0, "c2": 0.0}


class Broken(TicTacToe):
    name = "broken_promise"


class Walk(ScriptedGame):
    """A single player's game; as it is, it keeps every promise."""

    name = "walk"

    def __init__(self):
        super().__init__(WALK)

    @property
    def params(self):
        return {}


class Namesakes(Broken):
    player_names = ("O", "O")


class StartsElsewhere(Broken):
    def initial_state(self, rng):
        return self.apply(super().initial_state(rng), 4).state


# -- endings -----------------------------------------------------------------------------------------------------------
class Corridor(Walk):
    """Walks on for ever; the step count is part of the state."""

    max_length = 5
    num_actions = 1
    truncation_reward = -1.0
    value_range = (-2.0, 1.0)

    def __init__(self):
        pass

    num_players, player_names = 1, ("Walker",)

    def initial_states(self):
        return ("0",)

    def current_player(self, state):
        return -1 if self.is_terminal(state) else 0

    def legal_actions(self, state):
        return () if self.is_terminal(state) else (0,)

    def transitions(self, state, action):
        if action not in self.legal_actions(state):
            raise ValueError(f"action {action} is illegal in {state}")
        return (Step(1.0, str(int(state) + 1), (0.0,)),)

    def is_terminal(self, state):
        return False

    def returns(self, state):
        return (0.0,)

    def parse_text(self, text):
        if not text.isdecimal():
            raise ValueError(f"{text!r} is no number")
        return text

    def action_text(self, state, action):
        return "on"

    def parse_action(self, state, text):
        return 0 if text == "on" and not self.is_terminal(state) else None

    def render_svg(self, state, last_move=None, arrows=None, marks=None):
        return "<svg xmlns='http://www.w3.org/2000/svg'/>"


class CutsItself(Corridor):
    """Calls the cut a terminal draw."""

    def is_terminal(self, state):
        return int(state) >= self.max_length


class DeadEnd(Corridor):
    """Cut where nobody could have played on."""

    def transitions(self, state, action):
        if int(state) >= 5:
            raise ValueError("the corridor ends here")
        return super().transitions(state, action)


class EndlessPenalty(Corridor):
    truncation_reward = float("-inf")


class OutOfRange(Corridor):
    truncation_reward = -3.0


class PaysForCuts(Broken):
    truncation_reward = 1.0


# -- refused replies ---------------------------------------------------------------------------------------------------
class ChargesOne(Walk):
    def invalid_step(self, state):
        return Step(1.0, state, (-1.0,))


class FreeNonsense(Walk):
    def invalid_step(self, state):
        return Step(1.0, state, (0.0,))


class NonsenseEnds(Walk):
    def invalid_step(self, state):
        return Step(1.0, "c2", (-1.0,))


class SometimesForfeits(Walk):
    def invalid_step(self, state):
        return Step(1.0, state, (-1.0,)) if state == "a" else None


class NonsensePasses(Broken):
    def invalid_step(self, state):
        action = self.legal_actions(state)[0]
        return Step(1.0, self.apply(state, action).state, (-1.0, -1.0))


class RemembersIllegalMoves(Broken):
    def __init__(self):
        self.offences = 0

    def transitions(self, state, action):
        self.offences += action not in self.legal_actions(state)
        return super().transitions(state, action)


# -- views -------------------------------------------------------------------------------------------------------------
class ShowsNothing(Broken):
    def observation_text(self, state, player):
        return "" if player else self.to_text(state)


class ShowsTheLastBoardToo(Broken):
    def __init__(self):
        self.last = ""

    def observation_text(self, state, player):
        self.last, last = self.to_text(state), self.last
        return last + self.last

    def __reduce__(self):
        return type(self), ()


class GivesItselfAway(Broken):
    """Hides the board from the second player, but not before the first move."""

    def observation_text(self, state, player):
        pieces = bin(state.o | state.x).count("1")
        return f"{pieces} pieces" if player and pieces else self.to_text(state)


class OnlyOnePlayerSees(Broken):
    def observation_text(self, state, player):
        if player:
            raise KeyError(player)
        return self.to_text(state)


# -- exact values ------------------------------------------------------------------------------------------------------
class Optimist(TabularOracle):
    def value(self, state):
        return 0.9 * super().value(state)


class OptimisticOracle(Broken):
    name = "optimistic"

    def make_oracle(self):
        return Optimist(self)


class Misjudging(TabularOracle):
    """Right about each position by itself, wrong about how they follow from one another."""

    def q_values(self, state):
        return dict.fromkeys(super().q_values(state), 0.0)

    def value(self, state):
        return 0.0


class MisjudgingOracle(Broken):
    name = "misjudging"

    def make_oracle(self):
        return Misjudging(self)


class Inverted(TabularOracle):
    def best_actions(self, state):
        values = self.q_values(state)
        return tuple(action for action, q in values.items() if q == min(values.values()))


class InvertedOracle(Broken):
    name = "inverted"

    def make_oracle(self):
        return Inverted(self)


class Lavish(TabularOracle):
    def q_values(self, state):
        return {action: 3 * q for action, q in super().q_values(state).items()}

    def value(self, state):
        return 3 * super().value(state)


class LavishOracle(Broken):
    name = "lavish"

    def make_oracle(self):
        return Lavish(self)


class NoMoves(TabularOracle):
    def q_values(self, state):
        return {}


class SilentOracle(Broken):
    name = "silent"

    def make_oracle(self):
        return NoMoves(self)


CUT = "a cut game is not a drawn game"
REFUSED = "a reply without a move costs something and play goes on"
VIEWS = "each player has a view that depends on the state alone"
EXACT = "exact values agree with the rules"


@pytest.mark.parametrize(
    ("make", "promise", "message"),
    [
        (Namesakes, "declarations are consistent", "player_names must differ"),
        (StartsElsewhere, "declarations are consistent", "initial_state must be one of initial_states"),
        (CutsItself, CUT, "the rules must not end a game because of it, in state '5'"),
        (DeadEnd, CUT, "the corridor ends here"),
        (EndlessPenalty, CUT, "truncation_reward must be a finite number"),
        (PaysForCuts, CUT, "two players must not be paid for a cut game"),
        (OutOfRange, "games end in time and pay what they say", "returns must lie in value_range"),
        (FreeNonsense, REFUSED, "must cost the player something"),
        (NonsenseEnds, REFUSED, "must go on after invalid_step"),
        (SometimesForfeits, REFUSED, "everywhere or nowhere"),
        (NonsensePasses, REFUSED, "must leave the turn where it is"),
        (RemembersIllegalMoves, "illegal actions raise ValueError and change nothing", "must change nothing"),
        (ShowsNothing, VIEWS, "must show player 1 something"),
        (ShowsTheLastBoardToo, VIEWS, "must be the same when asked again"),
        (GivesItselfAway, VIEWS, "hides something from player 1 elsewhere"),
        (OnlyOnePlayerSees, VIEWS, "raised KeyError(1)"),
        (OptimisticOracle, EXACT, "must be that of the best action"),
        (MisjudgingOracle, EXACT, "has the exact value"),
        (InvertedOracle, EXACT, "best actions alone have regret 0"),
        (LavishOracle, EXACT, "must lie in value_range"),
        (SilentOracle, EXACT, "must value the legal actions"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_promise_is_found_under_its_name(make, promise, message):
    found = report_game(make, games=8, workers=0)[promise]
    assert found.ok is False
    assert message in found.message


@pytest.mark.parametrize("make", [Walk, Corridor, ChargesOne], ids=lambda make: make.__name__)
def test_the_same_games_unbroken_keep_every_promise(make):
    assert report_game(make, games=8, workers=0).failed == ()


def test_an_oracle_that_cannot_be_made_is_not_applicable():
    class Endless(Corridor):
        """Far more states than a table made only to be looked at should have."""

        max_length = 10

    found = report_game(Endless, games=1, workers=0)[EXACT]
    assert found.ok is None
    assert "more than 20,000 states" in found.message


def test_an_oracle_that_gives_up_on_every_position_is_not_applicable():
    class GivesUp(TabularOracle):
        def value(self, state):
            raise NLRLError("no proof within the limit")

    class HardGame(Broken):
        name = "hard"

        def make_oracle(self):
            return GivesUp(self)

    found = report_game(HardGame, games=2, workers=0)[EXACT]
    assert found.ok is None
    assert "gave up on every position" in found.message
