"""Checks of the oracle: exact values agree with the rules and with one another."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic
from typing import Any

from nlrl.envs.game import Game
from nlrl.envs.oracle import Oracle, oracle_for
from nlrl.envs.testing.report import NotApplicable, require
from nlrl.envs.testing.sample import Sample
from nlrl.errors import NLRLError

_CLOSE = 1e-6
_LATE = 3
"""The last decisions of each game are asked for: most solvers answer them at once, whatever the size of the board."""
_SECONDS = 5.0
"""No further position is asked for after so long: a solver may need a while for each on a large board."""
_MAX_STATES = 20_000
"""Larger tables are not made only to be looked at here."""


def oracle(sample: Sample) -> None:
    game = sample.game
    exact = _oracle(game)
    asked, end = [], monotonic() + _SECONDS
    for state in _late_states(sample):
        asked.append(_check_state(game, exact, state))
        if monotonic() > end:
            break
    if asked and not any(asked):
        raise NotApplicable("the oracle gave up on every position of the sample")
    for playout in sample.playouts:
        last = playout.states[-1]
        if game.is_terminal(last):
            require(exact.value(last) == 0, "the oracle must give a terminal state no value", last)
            require(not exact.best_actions(last), "the oracle must have no best action in a terminal state", last)


def _oracle(game: Game[Any]) -> Oracle[Any]:
    """The game's oracle.

    Raises:
        NotApplicable: it has none, or none that is quick to make.
    """
    if type(game).make_oracle is Game.make_oracle and _has_more_states(game, _MAX_STATES):
        raise NotApplicable(f"full tables of more than {_MAX_STATES:,} states are not made here")
    try:
        return oracle_for(game)
    except NLRLError as error:
        raise NotApplicable(str(error)) from None


def _has_more_states(game: Game[Any], bound: int) -> bool:
    seen = dict.fromkeys(game.initial_states())
    waiting = list(seen)
    while waiting and len(seen) <= bound:
        state = waiting.pop()
        for action in game.legal_actions(state):
            for step in game.transitions(state, action):
                if step.state not in seen:
                    seen[step.state] = None
                    waiting.append(step.state)
    return len(seen) > bound


def _late_states(sample: Sample) -> Iterator[Any]:
    """The last decision of each game, then the last but one of each, and so on."""
    decisions = [playout.states[: len(playout.actions)] for playout in sample.playouts]
    return iter(dict.fromkeys(states[-n] for n in range(1, _LATE + 1) for states in decisions if len(states) >= n))


def _check_state(game: Game[Any], exact: Oracle[Any], state: Any) -> bool:
    """Whether the oracle could say anything: a search may give up on a position."""
    try:
        _check_values(game, exact, state)
        if game.num_players == 2:  # one player's value may depend on the moves left, which a state does not hold
            _check_backup(game, exact, state)
    except NLRLError:
        return False
    return True


def _check_values(game: Game[Any], exact: Oracle[Any], state: Any) -> None:
    (low, high), q_values, value = game.value_range, exact.q_values(state), exact.value(state)
    require(tuple(sorted(q_values)) == game.legal_actions(state), "the oracle must value the legal actions", state)
    for number in (value, *q_values.values()):
        require(low - _CLOSE <= number <= high + _CLOSE, f"the exact value {number} must lie in value_range", state)
    require(abs(max(q_values.values()) - value) < _CLOSE, "the exact value must be that of the best action", state)
    best = exact.best_actions(state)
    require(bool(best) and set(best) <= q_values.keys(), "there must be a best action, and it must be legal", state)
    for action in q_values:
        regret = exact.regret(state, action)
        require(regret >= 0 and (regret < _CLOSE) == (action in best), "best actions alone have regret 0", state)


def _check_backup(game: Game[Any], exact: Oracle[Any], state: Any) -> None:
    """The value of an action is the expectation of its reward and of what follows, seen by who moves."""
    player = game.current_player(state)
    for action, q in exact.q_values(state).items():
        steps = game.transitions(state, action)
        expected = sum(s.probability * (s.rewards[player] + _value(game, exact, s.state, player)) for s in steps)
        require(abs(q - expected) < _CLOSE, f"action {action} has the exact value {expected}, not {q}", state)


def _value(game: Game[Any], exact: Oracle[Any], state: Any, player: int) -> float:
    """The exact value of `state` for `player`, whoever is to move there."""
    mover = game.current_player(state)
    return 0.0 if mover == -1 else exact.value(state) * (1.0 if mover == player else -1.0)
