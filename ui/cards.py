"""The card of a move: everything that the records hold about one decision. What they do not hold is left out.

Prompts are not recorded; they are built again from the position, by the same roles and templates that asked, in the
style that the run's config names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from nlrl.agents.language import language_of
from nlrl.agents.metrics.claims import Claim, check_claims
from nlrl.agents.parser import ParseFailure, parse_move
from nlrl.agents.roles import CandidatesInput, Evaluation, Roles, SamplesInput, StateInput
from nlrl.backbones.language_model import Message
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration import lines
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.records import Record
from nlrl.orchestration.timings import TurnTiming
from nlrl.ui.replay import Ply, Replay
from nlrl.ui.said import candidates_of, number_of


@dataclass(frozen=True)
class Opinion:
    """What the critic said of one move."""

    move: str
    text: str
    verdict: float
    exact: float | None
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Merge:
    """One call of G1: what went in and what came out."""

    about: str
    """The move, or "the position"."""
    kind: str
    """`games`: retold games; `outlooks`: texts of G2."""
    inputs: tuple[str, ...]
    output: str
    learned: str | None
    """What the critic is to learn of it, where that differs from the output."""
    verdict: float | None
    failures: tuple[str, ...]
    prompt: tuple[Message, ...] = ()
    claims: tuple[Claim, ...] = ()
    fused: tuple[tuple[str, str], ...] = ()
    """Of each text of G2, what it was given: the moves retold, and the evaluation of where they led."""


@dataclass(frozen=True)
class Improvement:
    """One call of I, and the candidates it chose among."""

    candidates: tuple[Opinion, ...]
    unread: tuple[str, ...]
    """Moves whose evaluation could not be read."""
    chosen: str
    text: str
    failures: tuple[str, ...]
    prompt: tuple[Message, ...] = ()
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Card:
    """All of it. Empty fields are those that the records leave open."""

    prompt: tuple[Message, ...] = ()
    reply: str = ""
    parsed: str = ""
    """The move that the reply names, or why it names none."""
    claims: tuple[Claim, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)
    """Tokens, retries, latency, model and weight version, as text."""
    evaluation: str = ""
    """What the player said of the position, where it was asked."""
    improvements: tuple[Improvement, ...] = ()
    merges: tuple[Merge, ...] = ()
    look_aheads: tuple[str, ...] = ()
    """What G2 was given to join with what V says of where it leads, retold, where the run keeps it."""


def make_card(replay: Replay, number: int, config: RunConfig | None = None) -> Card:
    """The card of a ply's decision.

    Args:
        config: of the run; without it there are no prompts, for nothing says in which style they were.
    """
    ply, game = replay.plies[number], replay.game
    if ply.player < 0:
        return Card()
    student, teacher = _roles(game, config)
    return Card(
        prompt=student.policy.messages(StateInput(ply.state)) if student and ply.turn else (),
        reply=str(ply.turn["reply"]) if ply.turn else "",
        parsed=_parsed(game, ply),
        claims=_claims(game, ply.state, None, str(ply.turn["reply"])) if ply.turn else (),
        facts=_facts(replay, ply, config),
        evaluation=str(ply.turn.get("evaluation", "")) if ply.turn else "",
        improvements=tuple(_improvements(game, ply, teacher)),
        merges=tuple(_merges(game, ply, teacher)),
        look_aheads=tuple(_look_aheads(game, ply)),
    )


def _roles(game: Game[Any], config: RunConfig | None) -> tuple[Roles | None, Roles | None]:
    if config is None:
        return None, None
    try:
        teacher = config.teacher or config.model
        return Roles(game, config.model.prompt_style), Roles(game, teacher.prompt_style)
    except NLRLError:  # the game has no templates in this style
        return None, None


def _parsed(game: Game[Any], ply: Ply) -> str:
    if not ply.turn:
        return ""
    found = parse_move(str(ply.turn["reply"]), game, ply.state)
    if isinstance(found, ParseFailure):
        return f"no move: {found.reason}" + (f" ({found.detail})" if found.detail else "")
    return game.action_text(ply.state, found)


def _facts(replay: Replay, ply: Ply, config: RunConfig | None) -> dict[str, str]:
    facts: dict[str, str] = {}
    turn = ply.turn or {}
    if isinstance(turn.get("tokens"), int):
        facts["tokens"] = str(turn["tokens"])
    failures = _texts(turn.get("failures"))
    if turn:
        facts["retries"] = f"{len(failures)} ({', '.join(failures)})" if failures else "0"
    if isinstance(turn.get("seconds"), int | float):
        facts["latency"] = f"{turn['seconds']:.2f} s"
    elif turn and (times := _times(replay, ply)):
        facts["latency"] = latency(times)
    logprobs = turn.get("logprobs")
    if isinstance(logprobs, list) and logprobs and all(isinstance(one, int | float) for one in logprobs):
        facts["log-probability"] = f"{sum(logprobs):.2f}"
    if turn and config is not None:
        facts["model"] = config.model.name
    version = turn and (turn.get("weights") or replay.record.get("weights") or _policy_version(replay, ply))
    if version:
        facts["weights"] = str(version)
    critics = {str(record["critic"]) for record in ply.records if record.get("critic")}
    if critics:
        facts["critic's weights"] = ", ".join(sorted(critics))
    return facts


def _times(replay: Replay, ply: Ply) -> list[TurnTiming]:
    return [one for one in replay.timings if one.ply == ply.number]


def latency(times: Sequence[TurnTiming]) -> str:
    """`0.52 s (115 tokens/s), asked 2026-11-22 10:41:07 UTC`: of all attempts at a turn together."""
    seconds, tokens = sum(one.milliseconds for one in times) / 1000, sum(one.tokens for one in times)
    rate = f" ({tokens / seconds:.0f} tokens/s)" if seconds > 0 else ""
    try:
        when = datetime.fromtimestamp(times[0].asked, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        when = "at no time there is"
    again = f", {len(times)} attempts" if len(times) > 1 else ""
    stored = ", an answer made for an earlier turn" if times[-1].stored else ""
    return f"{seconds:.2f} s{rate}{again}, asked {when}{stored}"


def _policy_version(replay: Replay, ply: Ply) -> str:
    """Targets name the policy that played the rollout; other games are played by later weights."""
    if not replay.stage.endswith("/rollout"):
        return ""
    every = [record for one in replay.plies for record in one.records if record["kind"] == "target"]
    return str(next((record["policy"] for record in every if record.get("policy")), ""))


def _improvements(game: Game[Any], ply: Ply, roles: Roles | None) -> list[Improvement]:
    return [
        _improvement(game, ply, record, roles)
        for record in ply.records
        if record["kind"] in ("improvement", "decision") and candidates_of(record)
    ]


def _improvement(game: Game[Any], ply: Ply, record: Record, roles: Roles | None) -> Improvement:
    legal, text = game.legal_actions(ply.state), str(record.get("text") or "")
    found = [one for one in candidates_of(record) if one["action"] in legal]
    offer = tuple((one["action"], Evaluation(one["text"], one["verdict"])) for one in found)
    listed = record.get("unread")
    unread = [action for action in listed if action in legal] if isinstance(listed, list) else []
    return Improvement(
        candidates=tuple(_opinion(game, ply, action, evaluation) for action, evaluation in offer),
        unread=tuple(game.action_text(ply.state, action) for action in unread),
        chosen=game.action_text(ply.state, record["action"]) if record.get("action") in legal else "",
        text=text,
        failures=_texts(record.get("failures")),
        prompt=roles.improvement.messages(CandidatesInput(ply.state, offer)) if roles and text and offer else (),
        claims=_claims(game, ply.state, None, text),
    )


def _opinion(game: Game[Any], ply: Ply, action: int, evaluation: Evaluation) -> Opinion:
    claims = _claims(game, ply.state, action, evaluation.text)
    move = game.action_text(ply.state, action)
    return Opinion(move, evaluation.text, evaluation.verdict, ply.exact.q.get(action), claims)


def _merges(game: Game[Any], ply: Ply, roles: Roles | None) -> list[Merge]:
    """G1's calls, those about the move that was played first."""
    legal = game.legal_actions(ply.state)
    found = [
        record
        for record in ply.records
        if record["kind"] == "target" and (record.get("action") is None or record["action"] in legal)
    ]
    found.sort(key=lambda record: (record.get("action") != ply.action, str(record.get("action"))))
    return [_merge(game, ply, record, roles) for record in found]


def _merge(game: Game[Any], ply: Ply, record: Record, roles: Roles | None) -> Merge:
    action, samples = record.get("action"), _texts(record.get("samples"))
    kind = "outlooks" if record.get("evidence") == "outlooks" else "games"
    text, learned = str(record.get("text") or ""), record.get("target")
    inp = SamplesInput(ply.state, action, samples, kind)
    return Merge(
        about="the position" if action is None else f"move {game.action_text(ply.state, action)}",
        kind=kind,
        inputs=samples,
        output=text,
        learned=str(learned) if learned is not None and learned != text else None,
        verdict=number_of(record.get("verdict")),
        failures=_texts(record.get("failures")),
        prompt=roles.g1.messages(inp) if roles and samples else (),
        claims=_claims(game, ply.state, action, text),
        fused=_fused(record.get("fused"), len(samples)),
    )


def _fused(found: Any, count: int) -> tuple[tuple[str, str], ...]:
    """What G2 was given for each sample; empty where the record does not say."""
    listed = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    pairs = tuple((str(one.get("played", "")), str(one.get("successor", ""))) for one in listed)
    return pairs if len(pairs) == count else ()


def _look_aheads(game: Game[Any], ply: Ply) -> Iterator[str]:
    kept = [record.get("lines") for record in ply.records if record["kind"] == "lookahead"]
    for one in (one for found in kept if isinstance(found, list) for one in found):
        try:
            line = lines.replay(game, ply.state, one["actions"], one.get("outcomes"))
            yield language_of(game).moves(line) if one["open"] else language_of(game).told(line)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, NLRLError):
            continue  # not as a run writes it


def _claims(game: Game[Any], state: Any, action: int | None, text: str) -> tuple[Claim, ...]:
    try:
        return tuple(check_claims(text, game, state, action)) if text else ()
    except ValueError:
        return ()


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def claims_line(claims: Sequence[Claim]) -> str:
    """`✓ X wins at 5 · ✗ O wins at 2`: what the rules say of a text's claims, for one line."""
    return " · ".join(f"{'✓' if claim.true else '✗'} {claim.text}" for claim in claims)
