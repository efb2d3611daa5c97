"""What an engine counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nlrl.backbones.engine.lane import Lane


def collect(lanes: Sequence[Lane], arrived: int) -> dict[str, float]:
    """Sums over lanes. `prefix_hit_rate`: share of the tokens of admitted prompts whose state was there already."""

    def total(of) -> float:
        return float(sum(map(of, lanes)))

    asked = total(lambda lane: lane.scheduler.asked_tokens)
    hits = total(lambda lane: lane.scheduler.hit_tokens)
    return {
        "requests_waiting": arrived + total(lambda lane: len(lane.scheduler.waiting)),
        "requests_running": total(lambda lane: len(lane.scheduler.running) + len(lane.scheduler.reading)),
        "requests_completed_total": total(lambda lane: lane.counts["completed"]),
        "requests_cancelled_total": total(lambda lane: lane.counts["cancelled"]),
        "prompt_tokens_total": total(lambda lane: lane.counts["prompt_tokens"]),
        "prompt_tokens_read_total": total(lambda lane: lane.counts["read_tokens"]),
        "generated_tokens_total": total(lambda lane: lane.counts["generated_tokens"]),
        "prefix_hit_tokens_total": hits,
        "prefix_hit_rate": hits / asked if asked else 0.0,
        "prefix_entries": total(lambda lane: len(lane.prefix)),
        "prefix_bytes": total(lambda lane: lane.prefix.nbytes),
        "prefix_evictions_total": total(lambda lane: lane.prefix.evictions),
        "pages_used": total(lambda lane: lane.store.pages.used),
        "pages_total": total(lambda lane: lane.store.pages.total),
        "rows_total": total(lambda lane: lane.store.rows),
        "preemptions_total": total(lambda lane: lane.scheduler.preemptions),
    }
