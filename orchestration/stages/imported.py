"""Imported data in the place of games of our own, for method `value_td`: look-aheads and held-out positions that
`nlrl import-nlrl` has read and checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.import_nlrl import FILES
from nlrl.orchestration.records import Record, read_records, record_key
from nlrl.orchestration.session import Session

POLICY = "imported"


def check_folder(field: str, folder: Path, kind: str, game: Game[Any]) -> None:
    """Refuses a folder that does not hold what is wanted of it.

    Raises:
        NLRLError: no such file, an empty one, or one about another board; names the field.
    """
    path = folder / FILES[kind]
    if not path.is_file():
        raise NLRLError(f"{field}: there is no {path}; it is made by `nlrl import-nlrl DATA {folder}`")
    first = next(iter(read_records(path)), None)
    if first is None:
        raise NLRLError(f"{field}: {path} is empty")
    try:
        game.parse_text(first["state"])
    except (KeyError, ValueError) as error:
        raise NLRLError(f"{field}: {path} is not about {game.spec}: {error}") from None


def held_out_of(folder: Path, game: Game[Any]) -> tuple[Any, ...]:
    """The positions of an imported folder, in an order that says nothing."""
    return tuple(game.parse_text(record["state"]) for record in read_records(folder / FILES["state"]))


def look_aheads_of(session: Session, folder: Path, held_out: frozenset[Any]) -> Iterator[Record]:
    """The look-aheads of an imported folder as `value_td` keeps them, a record a position: the first different
    lines, of the first `states.train` positions that are not held out."""
    config, settings = session.config, session.config.value_td
    found: dict[str, dict[tuple[int, ...], Any]] = {}
    for record in read_records(folder / FILES["lookahead"]):
        lines = found.setdefault(record["state"], {})
        lines.update({tuple(line["actions"]): line for line in record["lines"] if tuple(line["actions"]) not in lines})
    wanted = [state for state in found if session.game.parse_text(state) not in held_out]
    for state in wanted[: settings.states.train]:
        yield {
            "schema": 1,
            "kind": "lookahead",
            "key": record_key("look ahead", config.name, config.seed, state),
            "state": state,
            "policy": POLICY,
            "lines": list(found[state].values())[: settings.variations],
        }
