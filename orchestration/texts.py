"""Are the texts true? Verdicts beside exact values, claims beside the rules, words beside their own verdict, choices
beside what was to be chosen.

These are the checks that ask no model anything, so that every evaluation makes them; `nlrl check-texts` adds intervals
and those that do (`check_texts`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from nlrl.agents.asking import Reply
from nlrl.agents.language import language_of
from nlrl.agents.metrics.choices import ChoiceRegret, choice_regrets
from nlrl.agents.metrics.claims import LEGAL_MOVE, check_claims
from nlrl.agents.metrics.consistency import Bands, check_consistency
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.agents.metrics.verdicts import VerdictTable, compare_verdicts, one_step_action_value
from nlrl.agents.roles import Choice, body
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.random import Rng
from nlrl.orchestration import state_sets
from nlrl.orchestration.exact import action_values, optimal_values
from nlrl.orchestration.figure import rounded
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages import improvement, policy_table, rollout
from nlrl.orchestration.stages.rollout import visits

MOST_ARGUMENTS = 2000
"""Different arguments of an evaluation's games that are held to the rules."""
BASE_STATES = 100
"""States on which the untrained critic is asked before the first iteration."""

Pair = tuple[Any, int | None]
"""(state, action); no action where a text is about the position itself."""
Argument = tuple[Any, str]
"""(state, what the policy said there)."""
Exact = dict[Pair, float]
"""(state, action) -> exact value on the scale of verdicts; empty where it is not known."""


class Asked(NamedTuple):
    """What the critic said about (state, action); text and verdict are None where no answer could be read."""

    state: Any
    action: int | None
    text: str | None
    verdict: float | None

    @property
    def pair(self) -> Pair:
        return self.state, self.action


def text_metrics(session: Session, iteration: int) -> dict[str, Any]:
    """Figures of the critic's texts on the iteration's value states, all legal moves of each, and of I's choices there;
    none against a policy whose opponents are known by their samples only."""
    asked = asked_texts(session, iteration)
    if not asked:
        return {}
    exact_pi, exact_star = exact_values(session, iteration, [one.pair for one in asked])
    known = exact_pi or exact_star
    return {
        "pairs": len(asked),
        "against_policy": verdict_scores(session.game, asked, exact_pi),
        "against_optimal": verdict_scores(session.game, asked, exact_star),
        "reliability": reliability(asked, known),
        "choices": choice_metrics(session, iteration, asked, exact_pi, exact_star),
        **faithfulness(session.game, asked, bands_of(session)),
    }


# -- verdicts ----------------------------------------------------------------------------------------------------------
def verdict_scores(game: Game[Any], asked: Sequence[Asked], exact: Exact) -> dict[str, dict[str, float | None]]:
    """The figures of the texts and of the trivial baselines: `text`, `constant`, `one_step`."""
    if not exact:
        return {}
    truth, groups = [exact[one.pair] for one in asked], [one.state for one in asked]
    otherwise = _mean(truth)
    baselines = {"one_step": [one_step_verdict(game, one.state, one.action, otherwise) for one in asked]}
    scores = compare_verdicts([one.verdict for one in asked], truth, groups, baselines)
    return {name: {key: rounded(value) for key, value in asdict(row).items()} for name, row in scores.items()}


def one_step_verdict(game: Game[Any], state: Any, action: int | None, otherwise: float) -> float:
    """A verdict that reads one move ahead, and of two players one reply. Of one player: the score of walks that end at
    once, and `otherwise` of those that go on. Without an action, that of the best one."""
    if action is None:
        return max(one_step_verdict(game, state, one, otherwise) for one in game.legal_actions(state))
    if game.num_players == 2:
        return one_step_action_value(game, state, action)
    language = language_of(game)
    return sum(
        step.probability * (language.score_at(step.state, 1) if game.is_terminal(step.state) else otherwise)
        for step in game.transitions(state, action)
    )


def reliability(asked: Sequence[Asked], exact: Exact) -> list[dict[str, float | None]]:
    """The bars of the reliability diagram that hold something."""
    if not exact:
        return []
    table = VerdictTable([one.verdict for one in asked], [exact[one.pair] for one in asked])
    return [{key: rounded(value) for key, value in bar._asdict().items()} for bar in table.reliability() if bar.count]


# -- faithfulness ------------------------------------------------------------------------------------------------------
def faithfulness(game: Game[Any], asked: Sequence[Asked], bands: Bands | None = None) -> dict[str, Any]:
    """What the rules and the texts themselves say of the readable texts: shares, and counts of what was found."""
    readable = [one for one in asked if one.text is not None and one.verdict is not None]
    texts = [(one.state, one.action, one.text or "") for one in readable]
    said = [check_consistency(one.text or "", one.verdict or 0.0, game, one.state, bands) for one in readable]
    return claim_metrics(game, texts) | {
        "leaks": sum(bool(find_leaks(text)) for *_, text in texts) / max(len(texts), 1),
        "words_agree": _share([one.words_agree for one in said if one.words_agree is not None]),
        "words_silent": _share([one.words_agree is None for one in said]),
        "numbers_agree": _share([one.number_agrees for one in said if one.number_agrees is not None]),
    }


def claim_metrics(game: Game[Any], texts: Iterable[tuple[Any, int | None, str]]) -> dict[str, Any]:
    """Claims of (state, action, text) that the rules decide, and texts that suggest a move that is not legal."""
    found = [check_claims(text, game, state, action) for state, action, text in texts]
    claims = [claim for of_text in found for claim in of_text]
    counts, true = Counter(claim.kind for claim in claims), Counter(claim.kind for claim in claims if claim.true)
    illegal = [any(claim.kind == LEGAL_MOVE and not claim.true for claim in of_text) for of_text in found]
    return {
        "claims": len(claims),
        "true_claims": _share([claim.true for claim in claims]),
        "claims_by_kind": {kind: {"claims": n, "true": true[kind] / n} for kind, n in sorted(counts.items())},
        "suggestions": counts[LEGAL_MOVE],
        "illegal": _share(illegal),
    }


def argument_metrics(game: Game[Any], replies: Mapping[Any, Reply[Choice]]) -> dict[str, Any]:
    """The same of the policy's arguments; the move that an argument ends with is a claim, too. Nothing of an agent that
    says nothing."""
    return spoken_metrics(game, [(state, reply.completion.text) for state, reply in replies.items()], "actor_")


def spoken_metrics(game: Game[Any], said: Iterable[Argument], prefix: str = "") -> dict[str, Any]:
    """The same of arguments, wherever they were made: claims, suggestions that are not legal, and leaks."""
    texts = [(state, None, text) for state, text in said if text]
    if not texts:
        return {}
    found = claim_metrics(game, texts) | {"leaks": _share([bool(find_leaks(text)) for *_, text in texts])}
    return {prefix + name: value for name, value in found.items() if name != "claims_by_kind"}


def said_in_games(session: Session, records: Iterable[Mapping[str, Any]]) -> list[Argument]:
    """The actor's different arguments in games, a seeded sample of at most `MOST_ARGUMENTS`."""
    found: dict[Argument, None] = {}
    for record in records:
        if record["kind"] == "game":
            states = line_of_record(session.game, record).states
            found |= dict.fromkeys((states[turn["ply"]], turn["reply"]) for turn in record["turns"])
    return Rng(session.seed("arguments")).shuffled(list(found))[:MOST_ARGUMENTS]


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def bands_of(session: Session) -> Bands | None:
    """How the game's own sentences word verdicts: for models that were taught them."""
    if session.config.model.prompt_style != "plain":
        return None
    return language_of(session.game).phrases.get("bands")


# -- choices -----------------------------------------------------------------------------------------------------------
def choice_metrics(
    session: Session, iteration: int, asked: Sequence[Asked], exact_pi: Exact, exact_star: Exact
) -> dict[str, dict[str, float | None]]:
    """Regret of I's choices in the value states, by the exact values of the policy it improves and of best play."""
    values = {"policy": exact_pi, "optimal": exact_star}
    return {
        name: regret_row(regrets)
        for name, exact in values.items()
        if (regrets := regrets_of(session, iteration, asked, exact))
    }


def regrets_of(session: Session, iteration: int, asked: Sequence[Asked], exact: Exact) -> list[ChoiceRegret]:
    """What each of I's choices in the asked states cost; empty before the first iteration."""
    stage = session.folder.stage(iteration, improvement.NAME)
    if not exact or not stage.is_committed():
        return []
    values: dict[Any, dict[int, float]] = {}
    for one in asked:
        if one.action is not None:
            values.setdefault(one.state, {})[one.action] = exact[one.pair]
    found = ((session.game.parse_text(record["state"]), record["action"]) for record in stage.records())
    return choice_regrets(((state, action) for state, action in found if state in values), values)


def regret_row(regrets: Sequence[ChoiceRegret]) -> dict[str, float | None]:
    """Means of regrets, and those of a uniformly random choice."""
    means = {name: _mean([getattr(one, name) for one in regrets]) for name in ChoiceRegret._fields[1:]}
    return {"choices": len(regrets)} | {name: rounded(value) for name, value in means.items()}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


# -- what was said -----------------------------------------------------------------------------------------------------
def asked_texts(session: Session, iteration: int) -> list[Asked]:
    """The critic's texts that are compared with exact values: what it said to I about the value states; of a critic of
    positions that no I listens to, what it said about the held-out ones; before the first iteration, about a sample."""
    valued = list(value_texts(session, iteration))
    if valued or iteration == 0:
        return valued or _base_texts(session)
    said, rolled = loop_texts(session, iteration), session.folder.stage(iteration, rollout.NAME)
    if not rolled.is_committed():
        return said
    visited = visits(session.game, rolled.records())
    chosen = set(policy_table.value_states(session, iteration, list(visited)))
    return [one for one in said if one.state in chosen]


def value_texts(session: Session, iteration: int) -> Iterator[Asked]:
    """What a critic of positions said in a committed evaluation of values."""
    stage = session.folder.stage(iteration, "evaluation")
    for record in stage.records() if stage.is_committed() else ():
        if record["kind"] == "value":
            text = None if record["verdict"] is None else body(record["text"])
            yield Asked(session.game.parse_text(record["state"]), None, text, record["verdict"])


def loop_texts(session: Session, iteration: int) -> list[Asked]:
    """Everything that the critic said to I in an iteration, state by state, candidates in the order that I saw."""
    asked = []
    for record in session.folder.stage(iteration, improvement.NAME).records():
        state = session.game.parse_text(record["state"])
        asked += [Asked(state, c["action"], c["text"], c["verdict"]) for c in record["candidates"]]
        asked += [Asked(state, action, None, None) for action in record["unread"]]
    return asked


def _base_texts(session: Session) -> list[Asked]:
    pairs = [(state, action) for state in base_states(session) for action in session.game.legal_actions(state)]
    found = improvement.evaluate_moves(session, pairs)
    return [Asked(*pair, e.text, e.verdict) if e else Asked(*pair, None, None) for pair, e in found.items()]


def base_states(session: Session) -> list[Any]:
    """A seeded sample of a small game's positions; of a larger one, positions of random games."""
    from nlrl.agents.corpus.states import StateSampler, states_by_ply

    if session.is_small:
        listed = [state for layer in states_by_ply(session.game.spec).values() for state in layer]
        return Rng(session.seed("base texts")).shuffled(listed)[:BASE_STATES]
    sampler, rng = StateSampler(session.game), random.Random(session.seed("base texts"))
    return list(dict.fromkeys(sampler.draw(rng) for _ in range(BASE_STATES)))


# -- exact values ------------------------------------------------------------------------------------------------------
def exact_values(session: Session, iteration: int, pairs: Sequence[Pair]) -> tuple[Exact, Exact]:
    """Exact Q^pi (before the first iteration: of uniformly random play, which is what the base plays; empty where it
    is not known) and Q* (empty where the game's oracle cannot find it), on the scale of verdicts."""
    moves = [(state, action) for state, action in pairs if action is not None]
    if len(moves) < len(pairs):  # about positions: best play is all that they are compared with
        language, states = language_of(session.game), [state for state, _ in pairs]
        values = zip(states, state_sets.exact_values(session.game, states), strict=True)
        return {}, {(state, None): language.verdict_of_value(value, state) for state, value in values}
    optimal = optimal_values(session.game, dict.fromkeys(state for state, _ in pairs))
    return _exact_pi(session, iteration, moves), {pair: optimal[pair] for pair in moves} if optimal else {}


def _exact_pi(session: Session, iteration: int, pairs: Sequence[tuple[Any, int]]) -> Exact:
    game, opponents, horizon = session.game, session.exact_opposition(), session.config.targets.horizon
    tabulated = session.folder.stage(iteration, policy_table.NAME).is_committed()
    if opponents is None or (iteration and not tabulated):
        return {}
    if iteration:
        values = action_values(game, policy_table.read_table(session, iteration), opponents, pairs, horizon)
    else:
        others: list[Opponent | None] = [opponent or make_opponent("random", game) for opponent in opponents]
        values = action_values(game, _Uniform(game), others, pairs, horizon)
    return {pair: values[pair] for pair in pairs}


class _Uniform(dict[Any, dict[int | None, float]]):
    """The table of a uniformly random player, made as it is read."""

    def __init__(self, game: Any):
        super().__init__()
        self._game = game

    def __missing__(self, state: Any) -> dict[int | None, float]:
        self[state] = dict.fromkeys(self._game.legal_actions(state), 1.0)
        return self[state]
