"""Exact results of a tabulated agent: every game it can get into, weighted, instead of a sample of games.

A *table* maps a state to the agent's moves and their weights; `None` as a move is a forfeit. Games are small enough
to walk: the recursion visits each state once and remembers it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent

Table = Mapping[Any, Mapping[int | None, float]]
FORFEIT_RETURN = -1.0


class Results(NamedTuple):
    """Probabilities of a game's results for the agent; they sum to 1."""

    win: float
    draw: float
    loss: float
    forfeit: float

    def plus(self, other: Results, weight: float) -> Results:
        return Results(*(a + weight * b for a, b in zip(self, other, strict=True)))

    @property
    def value(self) -> float:
        """Expected return, a forfeit counting as a loss."""
        return self.win - self.loss - self.forfeit


NOTHING = Results(0.0, 0.0, 0.0, 0.0)


class Turn(NamedTuple):
    """A state on the way: who the agent is there, and how many moves led to it."""

    state: Any
    seat: int
    ply: int


def reachable_turns(
    game: Game[Any],
    choose: Callable[[list[Turn]], list[Iterable[int | None]]],
    starts: Iterable[Turn],
    both_seats: bool = False,
) -> None:
    """Asks for the agent's moves in every state it can meet, one batch a ply, whatever its opponent does.

    Args:
        choose: given new turns of the agent, its possible moves in each.
        both_seats: ask about the opponent's turns, too (its moves remain all legal ones): for an agent that is its
            own opponent.
    """
    seen: set[tuple[Any, int]] = set()
    frontier = list(starts)
    while frontier:
        new = {
            (t.state, t.seat): t for t in frontier if (t.state, t.seat) not in seen and not game.is_terminal(t.state)
        }
        seen.update(new)
        mine = [t for t in new.values() if game.current_player(t.state) == t.seat]
        options = dict(zip(mine, choose(mine) if mine else [], strict=True))
        if both_seats and (theirs := [t for t in new.values() if t not in options]):
            choose(theirs)
        frontier = [
            Turn(game.apply(t.state, action).state, t.seat, t.ply + 1)
            for t in new.values()
            for action in options.get(t, game.legal_actions(t.state))
            if action is not None
        ]


class ExactPlay:
    """The agent of a table, in one seat, against one opponent."""

    def __init__(self, game: Game[Any], table: Table, seat: int, opponent: Opponent):
        self.game, self.table, self.seat, self.opponent = game, table, seat, opponent
        self._known: dict[Any, Results] = {}

    def results(self, state: Any) -> Results:
        """Results from a state on.

        Raises:
            KeyError: the table has no moves for a state that the agent can get into.
        """
        if state not in self._known:
            self._known[state] = self._walk(state)
        return self._known[state]

    def prepare(self, starts: Iterable[Any]) -> None:
        """Tells the opponent, one batch a ply, in which states it will be asked when games go on from `starts`."""
        seen, frontier = set(self._known), dict.fromkeys(starts)
        while frontier:
            new = [state for state in frontier if state not in seen and not self.game.is_terminal(state)]
            seen.update(new)
            self.opponent.prepare([state for state in new if self.game.current_player(state) != self.seat])
            frontier = {
                self.game.apply(state, action).state: None
                for state in new
                for action, weight in self._moves(state).items()
                if weight and action is not None
            }

    def after(self, state: Any, action: int | None) -> Results:
        """Results once `action` is played in `state` (None: the player to move forfeits)."""
        if action is None:
            mine = self.game.current_player(state) == self.seat
            return Results(0, 0, 0, 1) if mine else Results(1, 0, 0, 0)
        return self.results(self.game.apply(state, action).state)

    def _walk(self, state: Any) -> Results:
        if self.game.is_terminal(state):
            value = self.game.returns(state)[self.seat]
            return Results(float(value > 0), float(value == 0), float(value < 0), 0.0)
        moves = self._moves(state)
        total, out = sum(moves.values()), NOTHING
        for action, weight in moves.items():
            if weight:
                out = out.plus(self.after(state, action), weight / total)
        return out

    def _moves(self, state: Any) -> Mapping[Any, float]:
        mine = self.game.current_player(state) == self.seat
        return self.table[state] if mine else self.opponent.policy(state)


class _SelfPlay(ExactPlay):
    """The agent of a table against itself."""

    def __init__(self, game: Game[Any], table: Table, seat: int):
        super().__init__(game, table, seat, None)  # type: ignore[arg-type]

    def prepare(self, starts: Iterable[Any]) -> None:
        pass

    def _moves(self, state: Any) -> Mapping[Any, float]:
        return self.table[state]


def exact_play(game: Game[Any], table: Table, seat: int, opponent: Opponent | None) -> ExactPlay:
    """The agent in one seat; opponent None is the agent itself."""
    return _SelfPlay(game, table, seat) if opponent is None else ExactPlay(game, table, seat, opponent)


def mixed_results(game: Game[Any], table: Table, opponent: Opponent | None) -> Results:
    """Results over all starts, half the games in each seat."""
    starts, out = game.initial_states(), NOTHING
    for seat in range(game.num_players):
        played = exact_play(game, table, seat, opponent)
        played.prepare(starts)
        for start in starts:
            out = out.plus(played.results(start), 1 / (len(starts) * game.num_players))
    return out


def worst_case(game: Game[Any], table: Table) -> float:
    """The agent's exploitability in return units: how much a best-responding opponent wins from it, mean over seats.

    0 means that no opponent can win a single game in expectation beyond draws; for a deterministic agent it is the
    share of seats in which it can be beaten. Games with draws under perfect play have value 0, so this is minus the
    agent's worst-case return.
    """
    total, starts = 0.0, game.initial_states()
    for seat in range(game.num_players):
        known: dict[Any, float] = {}
        total += sum(_worst(game, table, seat, start, known) for start in starts) / len(starts)
    return -total / game.num_players


def _worst(game: Game[Any], table: Table, seat: int, state: Any, known: dict[Any, float]) -> float:
    if state in known:
        return known[state]
    if game.is_terminal(state):
        value = game.returns(state)[seat]
    elif game.current_player(state) != seat:
        value = min(_worst(game, table, seat, game.apply(state, a).state, known) for a in game.legal_actions(state))
    else:
        moves = table[state]
        value = 0.0
        for action, weight in moves.items():
            after = (
                FORFEIT_RETURN if action is None else _worst(game, table, seat, game.apply(state, action).state, known)
            )
            value += weight / sum(moves.values()) * after
    known[state] = value
    return value


def action_values(
    game: Game[Any], table: Table, opponents: Sequence[Opponent | None], pairs: Iterable[tuple[Any, int]]
) -> dict[tuple[Any, int], float]:
    """Exact Q^pi of the agent for given (state, action) where it is to move, mean over the opponents (each drawn
    per game)."""
    by_seat: dict[int, list[tuple[Any, int]]] = {}
    for state, action in pairs:
        by_seat.setdefault(game.current_player(state), []).append((state, action))
    values: dict[tuple[Any, int], float] = {}
    for seat, found in by_seat.items():
        plays = [exact_play(game, table, seat, opponent) for opponent in opponents]
        for play in plays:
            play.prepare(game.apply(state, action).state for state, action in found)
        values |= {pair: sum(play.after(*pair).value for play in plays) / len(plays) for pair in found}
    return values
