"""What metrics and logs tell of whole games: how they ended, how many turns, and which answers could not be read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from nlrl.agents.asking import Reply
from nlrl.envs.game import Game
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.logs import Seldom, about
from nlrl.orchestration.players import Play

SHOWN = 120
"""Characters of an answer that a log line quotes."""
_log = logging.getLogger(__name__)


class GameAccounts:
    """Kept by a rollout worker."""

    def __init__(self) -> None:
        self._seldom = Seldom()

    def note(self, keys: Sequence[str], plays: Sequence[Play], game: Game[Any]) -> None:
        """Takes down games that are over."""
        reasons, retries = Counter[str](), 0
        for key, play in zip(keys, plays, strict=True):
            for ply, reply in play.replies.items():
                if reply.failures:
                    reasons.update(failure.reason for failure in reply.failures)
                    retries += len(reply.earlier)
                    _log.debug(
                        "could not be read: %s; last: %r",
                        ", ".join(failure.reason for failure in reply.failures),
                        _short(reply),
                        extra=about(key, ply),
                    )
            if play.forfeited_by == play.seat:
                self._tell_forfeit(key, play)
        self._count(plays, game, reasons, retries)
        if unsaid := self._seldom.take():
            _log.info("%d more games were forfeited", unsaid)

    def _tell_forfeit(self, key: str, play: Play) -> None:
        instruments.count("nlrl_forfeits_total")
        if self._seldom:
            reply = play.replies.get(len(play.actions))
            why = ", ".join(failure.reason for failure in reply.failures) if reply is not None else ""
            _log.info("forfeited: no legal move in the answer (%s)", why, extra=about(key, len(play.actions)))

    def _count(self, plays: Sequence[Play], game: Game[Any], reasons: Counter[str], retries: int) -> None:
        for result, games in Counter(play.result(game) for play in plays).items():
            instruments.count("nlrl_games_total", games, result)
        instruments.count("nlrl_turns_total", sum(len(play.replies) for play in plays))
        instruments.count("nlrl_moves_total", sum(len(play.actions) for play in plays))
        instruments.count("nlrl_retries_total", retries)
        for reason, times in reasons.items():
            instruments.count("nlrl_parse_failures_total", times, reason)


def _short(reply: Reply[Any]) -> str:
    text = reply.completion.text
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
