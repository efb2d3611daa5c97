"""A replay as rows: the move list, the tablebase panel, the claims of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nlrl.agents.language import number
from nlrl.agents.metrics.claims import Claim
from nlrl.ui.judgement import GLYPHS, Accuracy
from nlrl.ui.replay import Replay
from nlrl.ui.said import NEAREST, candidates_of, nearest

UNKNOWN = "?"


def moves(replay: Replay, source: str = NEAREST) -> list[dict[str, Any]]:
    """One row a ply: whose move, the move with its glyph, and both values of the position from the mover's view."""
    rows = []
    for one in replay.plies:
        last = one.player < 0
        glyph = GLYPHS[one.judgement.label] if one.judgement else ""
        said, regret = nearest(one.said, source), one.judgement.regret if one.judgement else None
        rows.append(
            {
                "ply": one.number,
                "player": "" if last else replay.game.player_names[one.player],
                "move": "end" if last else f"{one.move or '-'} {glyph}".strip(),
                "exact": shown(one.exact.value) if not last else "",
                "text": "" if said is None else number(said.verdict),
                "regret": "" if regret is None else f"{regret:.2f}",
            }
        )
    return rows


def tablebase(replay: Replay, ply: int) -> list[dict[str, Any]]:
    """Every legal move with its exact result, the best first; what the policy and the critic thought of it beside."""
    one, game = replay.plies[ply], replay.game
    said = {c["action"]: c["verdict"] for record in reversed(one.records) for c in candidates_of(record)}
    best = set(one.exact.best)
    rows = []
    for action in sorted(one.exact.q, key=lambda a: (-(value if (value := one.exact.q[a]) is not None else -2), a)):
        value = one.exact.q[action]
        rows.append(
            {
                "move": game.action_text(one.state, action),
                "result": result_word(value, game.num_players) if value is not None else "unknown",
                "exact": shown(value),
                "text": number(said[action]) if action in said else "",
                "policy": f"{one.policy[action]:.0%}" if action in one.policy else "",
                "played": "●" if action == one.action else "",
                "best": "★" if action in best else "",
            }
        )
    return rows


def result_word(value: float, players: int) -> str:
    """What a value means where it is a certain result."""
    if players == 1:
        return ""
    return {1.0: "wins", 0.0: "draws", -1.0: "loses"}.get(round(value, 6), "")


def claim_rows(claims: Sequence[Claim]) -> list[dict[str, str]]:
    """What the checker found in a text."""
    return [
        {"claim": one.text, "kind": one.kind.replace("_", " "), "by the rules": "✓ true" if one.true else "✗ false"}
        for one in claims
    ]


def accuracy_line(who: str, found: Accuracy) -> str:
    """One sentence about how a player moved."""
    if found.best is None:
        return f"{who}: no move could be judged"
    counts = ", ".join(f"{count} {label}" for label, count in found.counts.items() if label != "best")
    regret = "" if found.regret is None else f", mean regret {found.regret:.2f}"
    return f"{who}: {found.best:.0%} of {found.judged} moves best{regret}{f' ({counts})' if counts else ''}"


def shown(value: float | None) -> str:
    """A value, or that it is unknown."""
    return UNKNOWN if value is None else number(value)
