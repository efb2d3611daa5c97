"""Checks of the rules: what a game declares, whose turn it is, what is legal, what a move does and what it pays."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from functools import partial
from math import isfinite
from typing import Any

from nlrl import envs
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.envs.testing.report import NotApplicable, require, require_value_error
from nlrl.envs.testing.sample import Playout, Sample

CLOSE = 1e-9
_MAX_REFUSALS = 100_000
"""Illegal actions that are tried, evenly spread over the sample: each costs an error message, twice."""
_MAX_SEEN = 1000
"""States that are looked at where a look is dear."""


# -- the game as a whole -----------------------------------------------------------------------------------------------
def declarations(sample: Sample) -> None:
    game = sample.game
    low, high = game.value_range
    require(game.num_players in (1, 2), "num_players must be 1 or 2")
    require(len(game.player_names) == game.num_players, "player_names must name every player")
    require(len(set(game.player_names)) == game.num_players, "player_names must differ")
    require(low < high, "value_range must be (smallest, largest)")
    require(game.num_actions > 0 and game.max_length > 0, "num_actions and max_length must be positive")
    states = list(game.initial_states())
    require(len(states) > 0, "there must be an initial state")
    require(len(set(states)) == len(states), "initial states must differ")
    first = [playout.states[0] for playout in sample.playouts]
    wrong = next((state for state in first if state not in states), None)
    require(wrong is None, "initial_state must be one of initial_states", wrong)


def remaking(sample: Sample) -> None:
    game = sample.game
    others = {"make()": sample.make(), "type(game)(**params)": type(game)(**game.params)}
    if game.name in envs.names():
        others[f"make_from_spec({game.spec!r})"] = envs.make_from_spec(game.spec)
    try:
        others["an unpickled copy"] = pickle.loads(pickle.dumps(game))
    except Exception as error:
        raise AssertionError(f"the game cannot be pickled: {error}") from error
    for how, other in others.items():
        require(type(other) is type(game) and other.spec == game.spec, f"{how} must give an equal game")
        require(list(other.initial_states()) == list(game.initial_states()), f"{how} must give equal initial states")


# -- states and moves --------------------------------------------------------------------------------------------------
def states(sample: Sample) -> None:
    for state in sample.states():
        _check_state(sample.game, state)


def _check_state(game: Game[Any], state: Any) -> None:
    terminal, player, legal = game.is_terminal(state), game.current_player(state), game.legal_actions(state)
    require(isinstance(legal, tuple) and list(legal) == sorted(set(legal)), "legal_actions must be sorted", state)
    require(all(type(a) is int and 0 <= a < game.num_actions for a in legal), "actions must be in range", state)
    require(bool(legal) is not terminal, "legal_actions must be empty in terminal states and only there", state)
    require(player == -1 if terminal else 0 <= player < game.num_players, "current_player must be right", state)
    returns = game.returns(state)
    require(len(returns) == game.num_players, "returns must have a value for each player", state)
    require(terminal or not any(returns), "returns must be 0 before the end", state)
    _check_zero_sum(game, returns, "returns", state)


def _check_zero_sum(game: Game[Any], values: tuple[float, ...], what: str, state: Any) -> None:
    require(game.num_players == 1 or abs(sum(values)) < CLOSE, f"{what} of two players must be zero-sum", state)


def illegal_actions(sample: Sample) -> None:
    game, seen = sample.game, list(sample.states())
    for state in seen[:: 1 + len(seen) * game.num_actions // _MAX_REFUSALS]:
        before = pickle.dumps((game, state))
        for action in sorted({-1, *range(game.num_actions), game.num_actions} - set(game.legal_actions(state))):
            for method in (game.apply, game.transitions):
                promise = f"{method.__name__} must refuse the illegal action {action}"
                require_value_error(partial(method, state, action), promise, state)
        require(pickle.dumps((game, state)) == before, "an illegal action must change nothing", state)


def outcomes(sample: Sample) -> None:
    for number, (state, action) in enumerate(sample.decisions()):
        _check_outcomes(sample.game, state, action, Rng("outcomes", number).bits())


def _check_outcomes(game: Game[Any], state: Any, action: int, seed: int) -> None:
    before = pickle.dumps((game, state))
    steps = game.transitions(state, action)
    require(abs(sum(step.probability for step in steps) - 1) < CLOSE, "transitions must sum to 1", state)
    require(all(step.probability > 0 for step in steps), "transitions must have positive probabilities", state)
    require(len({step.state for step in steps}) == len(steps), "transitions must lead to different states", state)
    for step in steps:
        require(len(step.rewards) == game.num_players, "rewards must have a value for each player", state)
        _check_zero_sum(game, step.rewards, "rewards", state)
    step = game.apply(state, action, Rng(seed))
    require(step == game.apply(state, action, Rng(seed)), "apply must be the same under the same Rng", state)
    require(steps == game.transitions(state, action), "transitions must be the same when asked again", state)
    found = [(other.state, other.rewards) for other in steps]
    require((step.state, step.rewards) in found, "apply must give one of the transitions", state)
    if len(steps) == 1:
        require(step == game.apply(state, action), "apply must need no Rng where chance has no say", state)
    else:
        require_value_error(lambda: game.apply(state, action), "apply must ask for an Rng", state)
    require(pickle.dumps((game, state)) == before, "apply and transitions must change nothing", state)


def invalid_replies(sample: Sample) -> None:
    game = sample.game
    steps = {state: game.invalid_step(state) for state in sample.ongoing()}
    if not any(steps.values()):
        raise NotApplicable("a reply that names no legal action is a forfeit")
    for state, step in steps.items():
        player, before = game.current_player(state), pickle.dumps(state)
        if step is None:
            raise AssertionError(f"invalid_step must be given everywhere or nowhere, in state {state!r}")
        require(step == game.invalid_step(state), "invalid_step must be the same when asked again", state)
        require(step.probability == 1, "invalid_step must be certain", state)
        require(len(step.rewards) == game.num_players, "invalid_step must have a reward for each player", state)
        require(not game.is_terminal(step.state), "the game must go on after invalid_step", state)
        require(game.current_player(step.state) == player, "invalid_step must leave the turn where it is", state)
        require(step.rewards[player] < 0, "invalid_step must cost the player something", state)
        require(pickle.dumps(state) == before, "invalid_step must change nothing", state)


# -- the end -----------------------------------------------------------------------------------------------------------
def ends(sample: Sample) -> None:
    for playout in sample.playouts:
        _check_end(sample.game, playout)


def _check_end(game: Game[Any], playout: Playout) -> None:
    (low, high), last = game.value_range, playout.states[-1]
    cut = 0.0 if game.is_terminal(last) else game.truncation_reward
    totals = tuple(total + cut for total in playout.totals)
    require(all(low - CLOSE <= total <= high + CLOSE for total in totals), "returns must lie in value_range", last)
    if game.num_players == 2:
        require(game.is_terminal(last), "the game must end within max_length moves", last)
        require(totals == tuple(game.returns(last)), "rewards must sum to returns", last)


def truncation(sample: Sample) -> None:
    """A game that is cut at `max_length` is unfinished: its rules neither end it there nor call it a draw."""
    game = sample.game
    require(isfinite(game.truncation_reward), "truncation_reward must be a finite number")
    require(game.num_players == 1 or game.truncation_reward == 0, "two players must not be paid for a cut game")
    longer = copy.copy(game)
    try:
        longer.max_length = game.max_length + 1
    except AttributeError:
        raise NotApplicable("max_length cannot be set") from None
    for playout in sample.playouts:
        last = playout.states[-1]
        require(
            longer.is_terminal(last) == game.is_terminal(last) and longer.returns(last) == game.returns(last),
            "max_length must cut games from outside: the rules must not end a game because of it",
            last,
        )
        if not game.is_terminal(last):
            require(not any(game.returns(last)), "a game cut at max_length must have no returns of its own", last)
            require(bool(game.legal_actions(last)), "a game cut at max_length must be one that could go on", last)
            game.transitions(last, game.legal_actions(last)[0])


# -- symmetry ----------------------------------------------------------------------------------------------------------
def symmetries(sample: Sample) -> None:
    """Symmetric states must agree in everything that does not name a place, and so must what follows from them."""
    for state, _ in zip(sample.states(), range(_MAX_SEEN), strict=False):
        _check_symmetries(sample.game, state)


def _check_symmetries(game: Game[Any], state: Any) -> None:
    images = game.symmetries(state)
    require(state in images, "symmetries must hold the state itself", state)
    expected = _invariants(game, state)
    for image in set(images):
        require(set(game.symmetries(image)) == set(images), f"symmetries of {image!r} must be the same set", state)
        require(_invariants(game, image) == expected, f"the rules must not tell {image!r} apart", state)


def _invariants(game: Game[Any], state: Any) -> tuple[Any, ...]:
    def after(action: int) -> frozenset[Any]:
        steps = game.transitions(state, action)
        return frozenset((frozenset(game.symmetries(s.state)), round(s.probability, 9), s.rewards) for s in steps)

    legal = game.legal_actions(state)
    return game.current_player(state), game.returns(state), Counter(after(action) for action in legal)
