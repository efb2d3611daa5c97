"""Evaluation of a critic of positions: its verdicts on held-out positions against exact values, beside guesses that
need no training. What cannot be read counts as wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from nlrl.agents.asking import ask
from nlrl.agents.metrics.verdicts import compare_verdicts
from nlrl.agents.roles import Evaluation, StateInput
from nlrl.envs.breakthrough import Breakthrough
from nlrl.envs.breakthrough.baselines import GUESSES
from nlrl.orchestration.progress import progress
from nlrl.orchestration.records import record_key
from nlrl.orchestration.session import Session
from nlrl.orchestration.speakers import CRITIC, Speakers
from nlrl.orchestration.stages.evaluation import NAME
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.stages.targets import at_once
from nlrl.orchestration.stages.value_targets import held_out
from nlrl.orchestration.state_sets import exact_values
from nlrl.orchestration.statistics import wilson
from nlrl.orchestration.texts import Asked, bands_of, faithfulness, rounded

POSITIONS_AT_ONCE = 2048
"""Positions in one job of a rollout worker."""


def run_value_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """Asks the critic about the held-out positions and commits the figures; returns them."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return stage.load()["metrics"]
    measured = held_out(session)[: session.config.value_td.measured or None]
    exact = exact_values(session.game, measured)
    with progress(f"iteration {iteration}: held-out positions", len(measured)) as bar:
        groups = list(chunks(list(measured), at_once(session, len(measured), POSITIONS_AT_ONCE)))
        parts = {}
        for index, part in session.texts_of(ask_critic, groups):
            parts[index] = part
            bar.advance(len(part))
    said = [one for index in range(len(groups)) for one in parts[index]]
    with stage.writer("values") as writer:
        for state, value, (text, evaluation) in zip(measured, exact, said, strict=True):
            writer.write(_record(session, iteration, state, value, text, evaluation))
    asked = [
        Asked(s, None, e.text if e else None, e.verdict if e else None)
        for s, (_, e) in zip(measured, said, strict=True)
    ]
    metrics = {
        "exact": {"against": {}},
        "sampled": {},
        "turns": {},
        "texts": faithfulness(session.game, asked, bands_of(session)),
        "values": value_scores(session, measured, [e.verdict if e else None for _, e in said], exact),
    }
    return stage.commit(metrics)["metrics"]


def ask_critic(session: Speakers, states: Sequence[Any]) -> list[tuple[str, Evaluation | None]]:
    """V's whole answer about each position, and the evaluation that could be read in it."""
    expected = session.config.improvement.verdict == "expectation" and session.critic.reads_expectations
    sampling = session.sampling(0.0, expected_number=expected)
    replies = ask(session.critic, session.student_roles.v, [StateInput(state) for state in states], sampling)
    return [(reply.completion.text, reply.output) for reply in replies]


def value_scores(
    session: Session, states: Sequence[Any], verdicts: Sequence[float | None], exact: Sequence[float]
) -> dict[str, dict[str, float | None]]:
    """Figures of the texts (`text`), of the mean of the exact values (`constant`) and of each guess that the game has;
    the share of positions whose winner is named rightly has its 95% interval."""
    game, baselines, rows = session.game, {}, {}
    if isinstance(game, Breakthrough):
        baselines = {name: [guess(game.board, state) for state in states] for name, guess in GUESSES.items()}
    for name, scores in compare_verdicts(verdicts, exact, None, baselines).items():
        low, high = wilson(scores.side_accuracy * scores.count, scores.count)
        row = asdict(scores) | {"side_low": low, "side_high": high}
        rows[name] = {key: rounded(value) for key, value in row.items()}
    return rows


def _record(
    session: Session, iteration: int, state: Any, exact: float, text: str, evaluation: Evaluation | None
) -> dict[str, Any]:
    place = session.game.to_text(state)
    return {
        "schema": 1,
        "kind": "value",
        "key": record_key("value", session.config.name, session.config.seed, iteration, place),
        "iteration": iteration,
        "state": place,
        "critic": session.versions[CRITIC],
        "text": text,
        "verdict": evaluation.verdict if evaluation else None,
        "exact": exact,
    }
