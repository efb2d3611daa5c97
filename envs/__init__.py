"""Games: rules, text, pictures and exact values, and opponents that need no language.

`make("tictactoe")` gives a `Game`; `names()` lists what there is; `register` adds a game of your own, which
`nlrl.envs.testing.check_game` then checks. Importing this package loads no game and no numpy: a game's module is
imported when the game is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nlrl.envs.adapters import register_when_imported
from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng
from nlrl.envs.spec import parse_call
from nlrl.errors import GameError, NLRLError

__all__ = ["Game", "Rng", "Step", "make", "make_from_spec", "names", "register", "to_pettingzoo"]

_factories: dict[str, str | Callable[..., Game[Any]]] = {
    "breakthrough": "nlrl.envs.breakthrough:Breakthrough",
    "frozen_lake": "nlrl.envs.frozen_lake:FrozenLake",
    "maze": "nlrl.envs.maze:Maze",
    "tictactoe": "nlrl.envs.tictactoe:TicTacToe",
}


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_factories))


def register(name: str, factory: str | Callable[..., Game[Any]]) -> None:
    """Adds a game. `factory` takes the parameters of `make`; a string `module:attribute` is imported on first use.

    Raises:
        NLRLError: the name is taken, or is not an identifier (a spec could not name it).
    """
    if not name.isidentifier():
        raise NLRLError(f"game name {name!r} must be an identifier, such as 'my_game'")
    if name in _factories:
        raise NLRLError(f"a game named {name!r} is already registered; known: {', '.join(names())}")
    _factories[name] = factory


def make(name: str, **params: Any) -> Game[Any]:
    """The game `name` with `params`.

    Raises:
        GameError: there is no such game, it has no such parameter, or the parameter's type or value is wrong; the
            message says what is allowed.
    """
    if name not in _factories:
        raise GameError(f"unknown game {name!r}; known: {', '.join(names())}")
    factory = _resolve(name)
    _require_params(name, factory, params)
    try:
        return factory(**params)
    except GameError:
        raise
    except ValueError as error:
        raise GameError(f"{name}: {error}") from error


def make_from_spec(spec: str) -> Game[Any]:
    """The game that `Game.spec` names: `tictactoe`, `breakthrough(rows=5,columns=5)`.

    Raises:
        GameError: as `make`. NLRLError: the spec is malformed.
    """
    name, args, kwargs = parse_call(spec)
    if args:
        raise GameError(f"{spec!r}: {args[0]!r} needs a name; write `{name}(key=value,...)`")
    return make(name, **kwargs)


def _resolve(name: str) -> Callable[..., Game[Any]]:
    factory = _factories[name]
    if not isinstance(factory, str):
        return factory
    from importlib import import_module

    module, _, attribute = factory.partition(":")
    return getattr(import_module(module), attribute)


def _require_params(name: str, factory: Callable[..., Game[Any]], params: dict[str, Any]) -> None:
    """Refuses parameters that the factory does not take, before it runs."""
    import inspect

    signature = inspect.signature(factory).parameters.values()
    known = {p.name: p for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature)
    unknown = [key for key in params if key not in known]
    if unknown and not takes_any:
        raise GameError(f"game {name!r} has no parameter {unknown[0]!r}; it has: {', '.join(known) or 'none'}")
    missing = [key for key, p in known.items() if p.default is p.empty and key not in params]
    if missing:
        raise GameError(f"game {name!r} needs the parameter {missing[0]!r}; it has: {', '.join(known)}")
    _require_types(name, factory, params)


def _require_types(name: str, factory: Callable[..., Game[Any]], params: dict[str, Any]) -> None:
    """Holds parameters to the factory's annotations: `rows=five` or `rows=5.5` is refused, not rounded."""
    from typing import get_type_hints

    hints = get_type_hints(factory.__init__ if isinstance(factory, type) else factory)
    typed = {key: hints[key] for key in params if key in hints}
    if not typed:
        return
    from pydantic import TypeAdapter, ValidationError

    for key, hint in typed.items():
        try:
            TypeAdapter(hint).validate_python(params[key], strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise GameError(f"game {name!r}: {key} cannot be {params[key]!r}: {reason}") from None


def to_pettingzoo(game: Game[Any], **options: Any) -> Any:
    """`game` as a PettingZoo `AECEnv`; options as in `nlrl.envs.adapters.pettingzoo.to_pettingzoo`."""
    from nlrl.envs.adapters import pettingzoo  # the library is imported when it is used

    return pettingzoo.to_pettingzoo(game, **options)


register_when_imported()
