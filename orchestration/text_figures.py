"""The figures of `nlrl check-texts`: what the metrics of `agents/metrics` come to, with intervals.

Those about faithfulness are in `text_faithful`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from nlrl.agents.metrics import sufficiency as blind
from nlrl.agents.metrics.consistency import without_judgements
from nlrl.agents.metrics.counterfactual import score_swaps
from nlrl.agents.metrics.symmetry import MovedChoice, Reading, score_readings, spreads
from nlrl.agents.metrics.verdicts import VerdictTable
from nlrl.envs.random import Rng
from nlrl.orchestration import text_questions, texts
from nlrl.orchestration.figure import RESAMPLES, bootstrapped, figure, mean_figure, rounded, share
from nlrl.orchestration.session import Session
from nlrl.orchestration.statistics import cluster_bootstrap
from nlrl.orchestration.texts import Asked, Exact

MOST_TEXTS = 4000
"""Texts that the blind reader learns from and is judged on."""
BLIND_PROMPTS = 200
"""Narratives that a chat model is asked to read."""
_INTERVALS = (
    *("sign_accuracy", "side_accuracy", "mae", "brier", "ece", "order_accuracy", "rank_correlation", "bias"),
    "positivity_bias",
)


class Evidence(NamedTuple):
    """What figures are made from."""

    session: Session
    iteration: int
    asked: list[Asked]
    """The critic's texts on states whose exact values are wanted."""
    said: list[Asked]
    """All that it said."""
    exact_pi: Exact
    exact_star: Exact
    states: int
    prompts: int

    @property
    def readable(self) -> list[Asked]:
        """What it said that could be read."""
        return [one for one in self.said if one.text is not None and one.verdict is not None]


# -- verdicts ----------------------------------------------------------------------------------------------------------
def verdicts(evidence: Evidence) -> dict[str, Any]:
    """Calibration against exact values, and what I's choices cost; nothing where no value is known."""
    if not (evidence.exact_pi or evidence.exact_star):
        return {}
    known = {"policy": evidence.exact_pi, "optimal": evidence.exact_star}
    found: dict[str, Any] = {f"against_{name}": _calibration(evidence, exact) for name, exact in known.items() if exact}
    return found | {
        "reliability": texts.reliability(evidence.asked, evidence.exact_pi or evidence.exact_star),
        "choices": {name: rows for name, exact in known.items() if (rows := _regrets(evidence, exact))},
    }


def _calibration(evidence: Evidence, exact: Exact) -> dict[str, Any]:
    asked = evidence.asked
    truth, states = [exact[one.pair] for one in asked], [one.state for one in asked]
    table = VerdictTable([one.verdict for one in asked], truth, states)
    scores, read = table.scores(), sum(one.verdict is not None for one in asked)

    def statistics(rows: Any) -> list[float]:
        drawn = table.scores(rows)
        return [getattr(drawn, name) for name in _INTERVALS]

    intervals = cluster_bootstrap(statistics, states, resamples=RESAMPLES)
    rows = texts.verdict_scores(evidence.session.game, asked, exact)
    return {
        "text": {"coverage": share(read, len(asked))}
        | {
            name: figure(getattr(scores, name), interval, len(asked))
            for name, interval in zip(_INTERVALS, intervals, strict=True)
        },
        "baselines": {name: row for name, row in rows.items() if name != "text"},
    }


def _regrets(evidence: Evidence, exact: Exact) -> dict[str, Any]:
    found = texts.regrets_of(evidence.session, evidence.iteration, evidence.asked, exact)
    names = ("regret", "best", "random_regret", "random_best")
    columns = {name: np.array([float(getattr(one, name)) for one in found]) for name in names}
    return {name: mean_figure(column, range(len(found))) for name, column in columns.items()} if found else {}


# -- symmetry ----------------------------------------------------------------------------------------------------------
def symmetry(evidence: Evidence) -> dict[str, Any]:
    """Verdicts and moves over the images of positions, by symmetry and over all."""
    session = evidence.session
    states = list(dict.fromkeys(one.state for one in evidence.asked)) or texts.base_states(session)
    chosen = set(Rng(session.seed("symmetry")).shuffled(states)[: evidence.states])
    pairs = list(dict.fromkeys(one.pair for one in evidence.asked if one.state in chosen))
    if session.config.targets.value == "v" or session.config.method == "gpi":  # V speaks, of positions
        pairs = list(dict.fromkeys((state, None) for state, _ in pairs))
    readings = text_questions.symmetry_readings(session, pairs) if pairs else []
    moves = text_questions.symmetry_choices(session, [state for state in states if state in chosen])
    if not readings and not moves:
        return {}
    deviations = spreads(readings)
    return {
        "positions": len(chosen),
        "verdicts": {name: _read(group) for name, group in _by_symmetry(readings) if group},
        "moves": {name: _moved(group) for name, group in _by_symmetry(moves) if group},
        "spread": mean_figure(np.array(list(deviations.values())), [state for state, _ in deviations]),
    }


def _by_symmetry(found: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    yield "all", list(found)
    for name in dict.fromkeys(one.symmetry for one in found):
        yield name, [one for one in found if one.symmetry == name]


def _read(readings: Sequence[Reading]) -> dict[str, Any]:
    names = ("same_sign", "opposite", "difference")
    states = [reading.pair[0] for reading in readings]
    scores = score_readings(readings)
    intervals = cluster_bootstrap(
        lambda rows: [getattr(score_readings([readings[i] for i in rows]), name) for name in names],
        states,
        resamples=100,
    )
    rows = {name: figure(getattr(scores, name), i, len(readings)) for name, i in zip(names, intervals, strict=False)}
    return rows | {"coverage": rounded(scores.coverage), "unrelated": rounded(scores.unrelated)}


def _moved(choices: Sequence[MovedChoice]) -> dict[str, Any]:
    right = np.array([float(one.equivariant) for one in choices])
    chance = float(np.mean([one.chance for one in choices])) if choices else math.nan
    return {"equivariant": mean_figure(right, [one.state for one in choices]), "chance": rounded(chance)}


# -- counterfactual ----------------------------------------------------------------------------------------------------
def counterfactual(evidence: Evidence) -> dict[str, Any]:
    """Whether I follows evaluations that were exchanged, and stays where only the order is another."""
    swaps, choices = text_questions.counterfactual(evidence.session, evidence.said, evidence.prompts)
    if not swaps:
        return {}
    scores = score_swaps(swaps, choices)
    n = scores.first_best
    return {
        "first_best": share(n, scores.prompts),
        "follows": share(scores.follows, n),
        "stays": share(scores.stays, n),
        "elsewhere": share(scores.elsewhere, n),
        "unread": share(scores.unread, n),
        "unmoved_by_order": share(scores.unmoved, n),
    }


# -- sufficiency -------------------------------------------------------------------------------------------------------
def sufficiency(evidence: Evidence) -> dict[str, Any]:
    """What a blind reader recovers from narratives, from their facts alone, and from shuffled ones."""
    session = evidence.session
    said = Rng(session.seed("sufficiency")).shuffled(evidence.readable)[:MOST_TEXTS]
    bands = texts.bands_of(session)
    found = {}
    for name, strip in (
        ("narrative", lambda text: text),
        ("facts", lambda text: without_judgements(text, session.game, bands)),
    ):
        narratives = [blind.narrative(strip(one.text or ""), session.game, one.state) for one in said]
        found[name] = _recovered(narratives, said)
    if session.teacher_roles.policy.style == "instruct":
        found["chat_model"] = _chat_reader(session, said[:BLIND_PROMPTS])
    return {name: rows for name, rows in found.items() if rows}


def _recovered(narratives: Sequence[str], said: Sequence[Asked]) -> dict[str, Any]:
    groups, truth = [one.state for one in said], [one.verdict or 0.0 for one in said]
    try:
        found = blind.recover(narratives, truth, groups)
    except ValueError:  # too few positions to learn from some and be judged on others
        return {}
    return {"learned_from": found.train} | {
        f"{label}{name}": value
        for label, read in (("", found.read), ("shuffled_", found.shuffled))
        for name, value in _reading(read, found.truth, found.groups).items()
    }


def _chat_reader(session: Session, said: Sequence[Asked]) -> dict[str, Any]:
    narratives = [blind.narrative(one.text or "", session.game, one.state) for one in said]
    answers = text_questions.read_blindly(session, narratives)
    truth = np.array([one.verdict or 0.0 for one in said])
    read = np.array([truth.mean() if answer is None else answer for answer in answers])
    answered = sum(answer is not None for answer in answers)
    return {"coverage": share(answered, len(said))} | _reading(read, truth, [one.state for one in said])


def _reading(read: Any, truth: Any, groups: Sequence[Hashable]) -> dict[str, Any]:
    signs = blind.same_sign(read, truth)
    return {
        "r_squared": bootstrapped(read, groups, lambda rows: blind.r_squared(read[rows], truth[rows])),
        "sign_accuracy": mean_figure(signs, groups),
    }
