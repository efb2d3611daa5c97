"""Faithfulness in `nlrl check-texts`: claims, illegal suggestions, leaks and words against numbers, by author.

Authors are the critic (what it said to I), the actor (its arguments in the games of the evaluation), I (its arguments)
and the targets (what the critic was trained on, after leaks were cut out).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from nlrl.agents.metrics.claims import LEGAL_MOVE, check_claims
from nlrl.agents.metrics.consistency import Bands, check_consistency
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.envs.game import Game
from nlrl.orchestration import texts
from nlrl.orchestration.figure import share
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import improvement, targets
from nlrl.orchestration.text_figures import Evidence

EXAMPLES = 3
"""Texts that fail, shown of each author."""


def faithfulness(evidence: Evidence) -> dict[str, Any]:
    """Figures by author, and some of the texts that fail."""
    return {name: _faithful(evidence, said) for name, said in _authors(evidence) if said}


class Said(NamedTuple):
    """A text, and what it is about."""

    state: Any
    action: int | None
    text: str
    verdict: float | None = None


def _authors(evidence: Evidence) -> Iterator[tuple[str, list[Said]]]:
    session, iteration = evidence.session, evidence.iteration
    choices, learned = (_records(session, iteration, name) for name in (improvement.NAME, targets.NAME))
    yield "critic", [Said(one.state, one.action, one.text or "", one.verdict) for one in evidence.readable]
    yield "actor", _arguments(session, iteration)
    yield "I", [Said(r["state"], None, r["text"]) for r in choices if r["text"]]
    yield (
        "targets",
        [Said(r["state"], r.get("action"), r["target"], r["verdict"]) for r in learned if r["target"] is not None],
    )


def _records(session: Session, iteration: int, name: str) -> Iterator[dict[str, Any]]:
    """A committed stage's records, with their states read."""
    stage = session.folder.stage(iteration, name)
    if stage.is_committed():
        for record in stage.records():
            yield record | {"state": session.game.parse_text(record["state"])}


def _arguments(session: Session, iteration: int) -> list[Said]:
    """The actor's arguments in the games of the evaluation, each once."""
    stage = session.folder.stage(iteration, "evaluation")
    records = stage.records() if stage.is_committed() else ()
    return [Said(state, None, text) for state, text in texts.said_in_games(session, records)]


def _faithful(evidence: Evidence, said: Sequence[Said]) -> dict[str, Any]:
    game, n, bands = evidence.session.game, len(said), texts.bands_of(evidence.session)
    claims = texts.claim_metrics(game, [(one.state, one.action, one.text) for one in said])
    rows = {
        "texts": n,
        "true_claims": share(round((claims["true_claims"] or 0) * claims["claims"]), claims["claims"]),
        "illegal_suggestions": share(round((claims["illegal"] or 0) * n), n),
        "leaks": share(sum(bool(find_leaks(one.text)) for one in said), n),
        "claims_by_kind": claims["claims_by_kind"],
        "examples": list(_failures(game, said, bands)),
    }
    return rows if said[0].verdict is None else rows | _consistent(game, said, bands)


def _consistent(game: Game[Any], said: Sequence[Said], bands: Bands | None) -> dict[str, Any]:
    found = [check_consistency(one.text, one.verdict or 0.0, game, one.state, bands) for one in said]
    words = [one.words_agree for one in found if one.words_agree is not None]
    numbers = [one.number_agrees for one in found if one.number_agrees is not None]
    return {
        "words_agree": share(sum(words), len(words)),
        "words_silent": share(len(said) - len(words), len(said)),
        "numbers_agree": share(sum(numbers), len(numbers)),
    }


# -- examples ----------------------------------------------------------------------------------------------------------
def _failures(game: Game[Any], said: Sequence[Said], bands: Bands | None) -> Iterator[dict[str, Any]]:
    """The first texts that fail in some way, at most `EXAMPLES`, each with what is wrong."""
    found = 0
    for one in said:
        wrong = list(_faults(game, one, bands))
        if wrong and found < EXAMPLES:
            found += 1
            move = None if one.action is None else game.action_text(one.state, one.action)
            text = {"text": one.text, "verdict": one.verdict, "wrong": wrong}
            yield {"position": game.to_text(one.state), "move": move} | text


def _faults(game: Game[Any], one: Said, bands: Bands | None) -> Iterator[str]:
    for claim in check_claims(one.text, game, one.state, one.action):
        if not claim.true:
            yield f"{'illegal' if claim.kind == LEGAL_MOVE else 'false'}: {claim.text}"
    yield from (f"cites what it cannot know: {leak.phrase}" for leak in find_leaks(one.text))
    if one.verdict is None:
        return
    found = check_consistency(one.text, one.verdict, game, one.state, bands)
    if found.words_agree is False and found.judgement:
        yield f"says '{found.judgement.text}' and ends with {one.verdict:+.2f}"
    if found.number_agrees is False:
        yield f"says {found.number:+.2f} and ends with {one.verdict:+.2f}"
