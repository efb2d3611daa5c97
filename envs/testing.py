"""The conformance suite for games: `check_game(make)` plays at random and holds every method of `Game` to its promise.

It needs nothing but the game, so it also serves games from elsewhere. A broken promise is an AssertionError that names
it and the state it was broken in.
"""

from __future__ import annotations

import pickle
import random
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from nlrl import envs
from nlrl.envs.game import Game
from nlrl.envs.random import Rng

_JUNK = ("", " ", "0", "-1", "99", "nonsense", "best_move")
_CLOSE = 1e-9


def check_game(make: Callable[[], Game[Any]], games: int = 30, seed: int = 0) -> None:
    """Checks the game that `make` gives, on `games` random games.

    A game with two players must end within `max_length` moves by its own rules; one with a single player, whose states
    may recur, is cut there.

    Raises:
        AssertionError: a promise of `Game` is broken; the message says which, and in which state.
    """
    generators = _global_generators()
    game = make()
    _check_declarations(game)
    _check_remaking(game, make)
    for number in range(games):
        _check_playout(game, Rng("check_game", seed, number))
    _require(_global_generators() == generators, "a global random generator was used or seeded")


def _require(holds: bool, promise: str, state: Any = None) -> None:
    if not holds:
        raise AssertionError(promise if state is None else f"{promise}, in state {state!r}")


def _global_generators() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state()
    return random.getstate(), name, tuple(keys), *rest


# -- the game as a whole -----------------------------------------------------------------------------------------------
def _check_declarations(game: Game[Any]) -> None:
    low, high = game.value_range
    _require(game.num_players in (1, 2), "num_players must be 1 or 2")
    _require(len(game.player_names) == game.num_players, "player_names must name every player")
    _require(len(set(game.player_names)) == game.num_players, "player_names must differ")
    _require(low < high, "value_range must be (smallest, largest)")
    _require(game.num_actions > 0 and game.max_length > 0, "num_actions and max_length must be positive")
    states = list(game.initial_states())
    _require(len(states) > 0, "there must be an initial state")
    _require(len(set(states)) == len(states), "initial states must differ")


def _check_remaking(game: Game[Any], make: Callable[[], Game[Any]]) -> None:
    others = {"make()": make(), "type(game)(**params)": type(game)(**game.params)}
    if game.name in envs.names():
        others[f"make_from_spec({game.spec!r})"] = envs.make_from_spec(game.spec)
    try:
        others["an unpickled copy"] = pickle.loads(pickle.dumps(game))
    except Exception as error:
        raise AssertionError(f"the game cannot be pickled: {error}") from error
    for how, other in others.items():
        _require(type(other) is type(game) and other.spec == game.spec, f"{how} must give an equal game")
        _require(list(other.initial_states()) == list(game.initial_states()), f"{how} must give equal initial states")


# -- one game ----------------------------------------------------------------------------------------------------------
def _check_playout(game: Game[Any], rng: Rng) -> None:
    state = game.initial_state(rng)
    _require(state in game.initial_states(), "initial_state must be one of initial_states", state)
    totals: list[float] = [0.0] * game.num_players
    texts: set[str] = set(_JUNK)
    for _ in range(game.max_length):
        _check_state(game, state)
        if game.is_terminal(state):
            break
        texts |= {game.action_text(state, action) for action in game.legal_actions(state)}
        action = rng.choice(game.legal_actions(state))
        _check_actions(game, state, texts)
        _check_svg(game, state, action)
        step = _check_apply(game, state, action, rng)
        _check_symmetries(game, state)
        totals = [total + reward for total, reward in zip(totals, step.rewards, strict=True)]
        state = step.state
    _check_end(game, state, tuple(totals), texts)


def _check_end(game: Game[Any], state: Any, totals: tuple[float, ...], texts: set[str]) -> None:
    low, high = game.value_range
    _require(all(low - _CLOSE <= total <= high + _CLOSE for total in totals), "returns must lie in value_range", state)
    if game.num_players == 2:
        _require(game.is_terminal(state), "the game must end within max_length moves", state)
        _require(totals == tuple(game.returns(state)), "rewards must sum to returns", state)
    _check_state(game, state)
    _check_symmetries(game, state)
    if game.is_terminal(state):
        _check_actions(game, state, texts)
        _check_svg(game, state, None)


def _check_state(game: Game[Any], state: Any) -> None:
    terminal, player, legal = game.is_terminal(state), game.current_player(state), game.legal_actions(state)
    copy = pickle.loads(pickle.dumps(state))
    _require(copy == state and hash(copy) == hash(state), "a state must equal its copy and hash alike", state)
    _require(isinstance(legal, tuple) and list(legal) == sorted(set(legal)), "legal_actions must be sorted", state)
    _require(all(type(a) is int and 0 <= a < game.num_actions for a in legal), "actions must be in range", state)
    _require(bool(legal) is not terminal, "legal_actions must be empty in terminal states and only there", state)
    _require(player == -1 if terminal else 0 <= player < game.num_players, "current_player must be right", state)
    returns = game.returns(state)
    _require(len(returns) == game.num_players, "returns must have a value for each player", state)
    _require(terminal or not any(returns), "returns must be 0 before the end", state)
    _check_zero_sum(game, returns, "returns", state)
    _check_text(game, state)


def _check_zero_sum(game: Game[Any], values: tuple[float, ...], what: str, state: Any) -> None:
    _require(game.num_players == 1 or abs(sum(values)) < _CLOSE, f"{what} of two players must be zero-sum", state)


def _check_text(game: Game[Any], state: Any) -> None:
    text = game.to_text(state)
    _require(bool(text) and not text.endswith("\n"), "to_text must be non-empty, without a trailing newline", state)
    try:
        read = game.parse_text(text)
    except ValueError as error:
        raise AssertionError(f"parse_text must read what to_text wrote ({error}), in state {state!r}") from error
    _require(read == state, f"parse_text must give the state back, not {read!r}", state)
    for junk in ("", "nonsense", text + "\n" + text):
        _require_value_error(lambda junk=junk: game.parse_text(junk), f"parse_text must refuse {junk!r}", state)


def _require_value_error(call: Callable[[], Any], promise: str, state: Any) -> None:
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{promise} with a ValueError, not {error!r}, in state {state!r}") from error
    raise AssertionError(f"{promise} with a ValueError, in state {state!r}")


# -- moves -------------------------------------------------------------------------------------------------------------
def _check_actions(game: Game[Any], state: Any, texts: set[str]) -> None:
    """`texts`: everything that might be taken for a move; only those of legal moves may be."""
    legal = game.legal_actions(state)
    named = {game.action_text(state, action): action for action in legal}
    _require(len(named) == len(legal), "legal actions must have different texts", state)
    for text, action in named.items():
        _require(game.parse_action(state, text) == action, f"parse_action must read {text!r}", state)
    for text in {*texts, *(f"{text} or so" for text in named), *(text + text for text in named)} - named.keys():
        _require(game.parse_action(state, text) is None, f"parse_action must refuse {text!r}", state)
    for action in {-1, *range(game.num_actions), game.num_actions} - set(legal):
        for method in (game.apply, game.transitions):
            promise = f"{method.__name__} must refuse the illegal action {action}"
            _require_value_error(lambda method=method, action=action: method(state, action), promise, state)


def _check_apply(game: Game[Any], state: Any, action: int, rng: Rng) -> Any:
    """Checks every outcome of `action` and returns one, drawn with `rng`."""
    before = pickle.dumps((game, state))
    steps, seed = game.transitions(state, action), rng.bits()
    _require(abs(sum(step.probability for step in steps) - 1) < _CLOSE, "transitions must sum to 1", state)
    _require(all(step.probability > 0 for step in steps), "transitions must have positive probabilities", state)
    _require(len({step.state for step in steps}) == len(steps), "transitions must lead to different states", state)
    for step in steps:
        _require(len(step.rewards) == game.num_players, "rewards must have a value for each player", state)
        _check_zero_sum(game, step.rewards, "rewards", state)
    step = game.apply(state, action, Rng(seed))
    _require(step == game.apply(state, action, Rng(seed)), "apply must be the same under the same Rng", state)
    _require(steps == game.transitions(state, action), "transitions must be the same when asked again", state)
    outcomes = [(other.state, other.rewards) for other in steps]
    _require((step.state, step.rewards) in outcomes, "apply must give one of the transitions", state)
    if len(steps) == 1:
        _require(step == game.apply(state, action), "apply must need no Rng where chance has no say", state)
    else:
        _require_value_error(lambda: game.apply(state, action), "apply must ask for an Rng", state)
    _require(pickle.dumps((game, state)) == before, "apply and transitions must change nothing", state)
    return step


# -- symmetry and pictures ---------------------------------------------------------------------------------------------
def _check_symmetries(game: Game[Any], state: Any) -> None:
    """Symmetric states must agree in everything that does not name a place, and so must what follows from them."""
    images = game.symmetries(state)
    _require(state in images, "symmetries must hold the state itself", state)
    expected = _invariants(game, state)
    for image in images:
        _require(set(game.symmetries(image)) == set(images), f"symmetries of {image!r} must be the same set", state)
        _require(_invariants(game, image) == expected, f"the rules must not tell {image!r} apart", state)


def _invariants(game: Game[Any], state: Any) -> tuple[Any, ...]:
    def after(action: int) -> frozenset[Any]:
        steps = game.transitions(state, action)
        return frozenset((frozenset(game.symmetries(s.state)), round(s.probability, 9), s.rewards) for s in steps)

    legal = game.legal_actions(state)
    return game.current_player(state), game.returns(state), Counter(after(action) for action in legal)


def _check_svg(game: Game[Any], state: Any, action: int | None) -> None:
    legal = game.legal_actions(state)
    weights, marks = {a: 1 / len(legal) for a in legal}, {a: "<&>\"'\x00\ud800" for a in legal}
    for picture in (game.render_svg(state), game.render_svg(state, action, weights, marks)):
        try:
            root = ET.fromstring(picture)
        except (ET.ParseError, ValueError) as error:
            raise AssertionError(f"render_svg must be well-formed ({error}), in state {state!r}") from error
        _require(root.tag == "{http://www.w3.org/2000/svg}svg", "render_svg must be an <svg> element", state)
        outside = [e for e in root.iter() if any(name.endswith("href") for name in e.attrib) or "script" in e.tag]
        _require(not outside, "render_svg must be self-contained, without links or scripts", state)
