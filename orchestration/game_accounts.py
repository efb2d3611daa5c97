"""What metrics and logs tell of whole games: how they ended, how many turns, and which answers could not be read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nlrl.agents.asking import Reply
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.logs import Seldom, about
from nlrl.orchestration.players import Play
from nlrl.orchestration.records import Record

SHOWN = 120
"""Characters of an answer that a log line quotes."""
_log = logging.getLogger(__name__)


class GameAccounts:
    """Kept by a rollout worker."""

    def __init__(self) -> None:
        self._seldom = Seldom()

    def note(self, records: Sequence[Record], plays: Sequence[Play]) -> None:
        """Takes down games that are over, with their records."""
        reasons, retries = Counter[str](), 0
        for record, play in zip(records, plays, strict=True):
            key = record["key"]
            for ply, reply in play.replies.items():
                if reply.failures:
                    reasons.update(failure.reason for failure in reply.failures)
                    retries += len(reply.earlier)
                    _tell_failure(key, ply, reply)
            if play.forfeited_by == play.seat:
                self._tell_forfeit(key, play)
        _count(records, plays, reasons, retries)
        if unsaid := self._seldom.take():
            _log.info("%d more games were forfeited", unsaid)

    def _tell_forfeit(self, key: str, play: Play) -> None:
        instruments.count("nlrl_forfeits_total")
        if self._seldom:
            reply = play.replies.get(len(play.actions))
            why = ", ".join(failure.reason for failure in reply.failures) if reply is not None else ""
            _log.info("forfeited: no legal move in the answer (%s)", why, extra=about(key, len(play.actions)))


def _count(records: Sequence[Record], plays: Sequence[Play], reasons: Counter[str], retries: int) -> None:
    for result, games in Counter(record["result"] for record in records).items():
        instruments.count("nlrl_games_total", games, result)
    instruments.count("nlrl_turns_total", sum(len(play.replies) for play in plays))
    instruments.count("nlrl_moves_total", sum(len(play.actions) for play in plays))
    instruments.count("nlrl_retries_total", retries)
    for reason, times in reasons.items():
        instruments.count("nlrl_parse_failures_total", times, reason)


def _tell_failure(key: str, ply: int, reply: Reply[Any]) -> None:
    if _log.isEnabledFor(logging.DEBUG):
        text, reasons = reply.completion.text, ", ".join(failure.reason for failure in reply.failures)
        quoted = text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
        _log.debug("could not be read: %s; last: %r", reasons, quoted, extra=about(key, ply))
