"""Exact results of a tabulated agent: every game it can get into, weighted, instead of a sample of games.

A *table* maps a state to the agent's moves and their weights; `None` as a move is a forfeit. Games are small enough
to walk: the recursion visits each state once and remembers it. Games of two end by their own rules; those for one
player, which may be cut, are in `nlrl.orchestration.walks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from nlrl.agents.language import language_of
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.walks import ExactWalks

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
            Turn(state, t.seat, t.ply + 1)
            for t in new.values()
            for action in options.get(t, game.legal_actions(t.state))
            for state in successors(game, t.state, action)
        ]


def successors(game: Game[Any], state: Any, action: int | None) -> list[Any]:
    """The states that a move (None: a reply that names no legal one) may lead to; none after a forfeit."""
    if action is not None:
        return [step.state for step in game.transitions(state, action)]
    lost = game.invalid_step(state)
    return [] if lost is None else [lost.state]


@cache
def is_small(spec: str, most: int) -> bool:
    """Whether a game has at most so many positions in which somebody moves."""
    game = make_from_spec(spec)
    frontier = [state for state in dict.fromkeys(game.initial_states()) if not game.is_terminal(state)]
    seen = set(frontier)
    while frontier and len(seen) <= most:
        state = frontier.pop()
        found = {s for action in game.legal_actions(state) for s in successors(game, state, action)}
        new = [s for s in found - seen if not game.is_terminal(s)]
        seen.update(new)
        frontier += new
    return len(seen) <= most


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
                after: None
                for state in new
                for action, weight in self._moves(state).items()
                if weight and action is not None
                for after in successors(self.game, state, action)
            }

    def after(self, state: Any, action: int | None) -> Results:
        """Results once `action` is played in `state` (None: the player to move forfeits)."""
        if action is None:
            mine = self.game.current_player(state) == self.seat
            return Results(0, 0, 0, 1) if mine else Results(1, 0, 0, 0)
        steps = self.game.transitions(state, action)
        if len(steps) == 1:
            return self.results(steps[0].state)
        out = NOTHING
        for step in steps:
            out = out.plus(self.results(step.state), step.probability)
        return out

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
        value = min(_worst_after(game, table, seat, state, action, known) for action in game.legal_actions(state))
    else:
        moves = table[state]
        value = 0.0
        for action, weight in moves.items():
            after = FORFEIT_RETURN if action is None else _worst_after(game, table, seat, state, action, known)
            value += weight / sum(moves.values()) * after
    known[state] = value
    return value


def _worst_after(game: Game[Any], table: Table, seat: int, state: Any, action: int, known: dict[Any, float]) -> float:
    steps = game.transitions(state, action)
    return sum(step.probability * _worst(game, table, seat, step.state, known) for step in steps)


def action_values(
    game: Game[Any],
    table: Table,
    opponents: Sequence[Opponent | None],
    pairs: Iterable[tuple[Any, int]],
    horizon: str = "full",
) -> dict[tuple[Any, int], float]:
    """Exact Q^pi of the agent for given (state, action) where it is to move, mean over the opponents (each drawn
    per game), on the scale of verdicts (`GameLanguage.score`). With one player there are no opponents.

    Args:
        horizon: how long the walks of one player are, as `targets.horizon`.
    """
    if game.num_players == 1:
        return _walk_values(game, table, list(pairs), horizon)
    by_seat: dict[int, list[tuple[Any, int]]] = {}
    for state, action in pairs:
        by_seat.setdefault(game.current_player(state), []).append((state, action))
    values: dict[tuple[Any, int], float] = {}
    for seat, found in by_seat.items():
        each = {id(opponent): exact_play(game, table, seat, opponent) for opponent in opponents}
        plays = [each[id(opponent)] for opponent in opponents]
        for play in each.values():
            play.prepare([after for state, action in found for after in successors(game, state, action)])
        values |= {pair: sum(play.after(*pair).value for play in plays) / len(plays) for pair in found}
    return values


def _walk_values(
    game: Game[Any], table: Table, pairs: Sequence[tuple[Any, int]], horizon: str
) -> dict[tuple[Any, int], float]:
    starts = [after for state, action in pairs for after in successors(game, state, action)]
    walks = ExactWalks(game, language_of(game), table, starts, horizon)
    return {pair: walks.after(*pair) for pair in pairs}


def optimal_values(game: Game[Any], states: Iterable[Any]) -> dict[tuple[Any, int], float]:
    """Exact Q* of every legal action of the states, on the scale of verdicts; empty where the game's oracle cannot find
    one of them."""
    language = language_of(game)
    try:
        oracle = oracle_for(game)
        return {
            (state, action): language.verdict_of_value(value, state)
            for state in states
            for action, value in oracle.q_values(state).items()
        }
    except NLRLError:
        return {}


def best_return(game: Game[Any]) -> float:
    """The value of best play at the start, from the first player's view: the mean over all starts.

    Raises:
        NLRLError: the game's oracle cannot solve them.
    """
    oracle = oracle_for(game)
    values = [oracle.value(start) * (1 if game.current_player(start) == 0 else -1) for start in game.initial_states()]
    return sum(values) / len(values)
