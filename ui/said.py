"""What texts say of positions: verdicts that were parsed from them, and where they stand.

A verdict is in [-1, 1] from the view of the player to move. One position may have several, from the player's own
argument down to the targets that G1 wrote; sources are listed from the nearest to the game to the furthest.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from nlrl.agents.headings import parse_verdict
from nlrl.agents.metrics.consistency import stated_number
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import body
from nlrl.envs.game import Game
from nlrl.orchestration.records import Record

OWN, POSITION, CHOICE, MOVE, TARGET = (
    "the player's own argument",
    "V: the critic on the position",
    "I: the critic on the move that was chosen",
    "Q: the critic on the move that was played",
    "G1: targets for the move that was played",
)
SOURCES = (OWN, POSITION, MOVE, CHOICE, TARGET)
NEAREST = "the nearest there is"
"""In place of a source: for each position the first of `SOURCES` that it has."""


class Said(NamedTuple):
    """One verdict and the text it was read from."""

    verdict: float
    text: str


def said_about(
    game: Game[Any], state: Any, action: int | None, turn: Mapping[str, Any] | None, records: Sequence[Record]
) -> dict[str, Said]:
    """What was said of a position, by source.

    Args:
        action: the move that was played there; None for none.
        turn: what the game's record keeps of the player's answer.
        records: those of the run about this position.
    """
    found: dict[str, Said] = {}
    if turn and (own := own_verdict(game, state, action, str(turn["reply"]))) is not None:
        found[OWN] = Said(own, str(turn["reply"]))
    if turn and (asked := number_of(turn.get("verdict"))) is not None:
        found[POSITION] = Said(asked, str(turn.get("evaluation", "")))
    for source, said in _recorded(records, action):
        found.setdefault(source, said)
    targets = [said for record in records if (said := _target(record, action)) is not None]
    if targets:
        found[TARGET] = nearest_to_mean(targets)
    return found


def nearest(said: Mapping[str, Said], source: str = NEAREST) -> Said | None:
    """The verdict of one source, or of the nearest there is."""
    wanted = SOURCES if source == NEAREST else (source,)
    return next((said[name] for name in wanted if name in said), None)


def own_verdict(game: Game[Any], state: Any, action: int | None, reply: str) -> float | None:
    """The number that an argument ends with, gives its move ("I prefer 5 at +0.58") or gives a side ("X at +0.50")."""
    ending = parse_verdict(reply, game, state)
    if not isinstance(ending, ParseFailure):
        return ending
    if action is not None:
        move = re.escape(game.action_text(state, action))
        if match := re.search(rf"(?<!\w){move}\*? at ([+-][01]\.\d\d)(?!\d)", reply):
            number = float(match[1])
            return number if abs(number) <= 1 else None
    stated = stated_number(body(reply), game, state)
    return stated if stated is not None and abs(stated) <= 1 else None


def _recorded(records: Sequence[Record], action: int | None) -> Iterator[tuple[str, Said]]:
    for record in records:
        verdict = number_of(record.get("verdict"))
        about_position = record["kind"] == "value" or (record["kind"] == "target" and record.get("action") is None)
        if verdict is not None and about_position:
            yield POSITION, Said(verdict, str(record.get("text")))
        for candidate in candidates_of(record):
            if candidate["action"] == action:
                yield MOVE, Said(candidate["verdict"], candidate["text"])
            if candidate["action"] == record.get("action"):
                yield CHOICE, Said(candidate["verdict"], candidate["text"])


def candidates_of(record: Record) -> list[dict[str, Any]]:
    """The readable candidates of a choice or a decision, in the order that I saw."""
    listed = record.get("candidates")
    return [
        {"action": one["action"], "text": str(one.get("text", "")), "verdict": verdict}
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, dict)
        and isinstance(one.get("action"), int)
        and (verdict := number_of(one.get("verdict"))) is not None
    ]


def _target(record: Record, action: int | None) -> Said | None:
    verdict = number_of(record.get("verdict"))
    if record["kind"] != "target" or action is None or record.get("action") != action or verdict is None:
        return None
    return Said(verdict, str(record.get("text")))


def nearest_to_mean(texts: Sequence[Said]) -> Said:
    """One of several texts that speaks for all."""
    mean = sum(one.verdict for one in texts) / len(texts)
    return min(texts, key=lambda one: abs(one.verdict - mean))


def number_of(value: Any) -> float | None:
    """A verdict as a record holds it; None for anything else."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and -1 <= value <= 1
    return float(value) if fits else None


def policy_of(records: Sequence[Record], legal: Sequence[int]) -> dict[int, float]:
    """The policy's probabilities of legal moves, from the run's table; empty where it has none."""
    for record in records:
        moves = record.get("moves")
        if record["kind"] == "policy" and isinstance(moves, dict):
            counts = {name: count for name, count in moves.items() if isinstance(count, int) and count > 0}
            total = sum(counts.values())
            return {action: counts[str(action)] / total for action in legal if str(action) in counts}
    return {}
