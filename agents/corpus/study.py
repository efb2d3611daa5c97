"""How well a model does what the corpus teaches, on positions it has never seen (docs/bundled_models.md)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

from nlrl.agents.corpus.example import Example
from nlrl.agents.corpus.stream import MIXTURE, CorpusSettings, examples
from nlrl.agents.language import band
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import Completion, LanguageModel, Request, Sampling
from nlrl.envs import make_from_spec

ROLE_OF = {"g1_games": "g1", "g1_outlooks": "g1"}
MOVERS = ("policy", "improvement")
READERS = ("descriptor", "reader")
LONGEST_ANSWER = 160
"""Tokens."""


@dataclass
class RoleScore:
    """Scores of one role on held-out prompts; shares in [0, 1]."""

    prompts: int
    parsed: float
    exact: float | None
    """Share of prompts whose verdict (or, for I, whose choice among best-evaluated candidates) is right; None for
    policy, V and Q."""
    mean_absolute_error: float | None
    """Of verdicts, over parsed answers; None for roles that move."""
    true_claims: float
    """Share of claims about the position (winning cells, open lines) that the rules confirm; 1 where none was made."""
    claims: int


def study(
    model: LanguageModel, settings: CorpusSettings, prompts: int, seed: int = 0, roles: Sequence[str] = ()
) -> dict[str, RoleScore]:
    """Greedy answers (T=1 for the policy, V and Q) to `prompts` held-out prompts of each role, scored by the
    writers' answers."""
    collected = _collect(replace(settings, held_out=True, roles=tuple(roles)), prompts, seed)
    return {role: _score(model, role, found) for role, found in sorted(collected.items())}


def _collect(settings: CorpusSettings, prompts: int, seed: int) -> dict[str, list[Example]]:
    found: dict[str, list[Example]] = defaultdict(list)
    wanted = len(settings.roles or MIXTURE)
    for example in islice(examples(settings, seed), prompts * 200):
        if len(found[example.role]) < prompts:
            found[example.role].append(example)
        if len(found) == wanted and all(len(group) == prompts for group in found.values()):
            break
    return found


def _score(model: LanguageModel, role: str, found: Sequence[Example]) -> RoleScore:
    temperature = 1.0 if role in ("policy", "q", "v") else 0.0
    sampling = Sampling(temperature=temperature, max_tokens=LONGEST_ANSWER)
    completions = model.generate(
        [Request(messages=example.messages, sampling=sampling, seed=i) for i, example in enumerate(found)]
    )
    answered = list(zip(found, completions, strict=True))
    if role in READERS:
        right = [_said(example, c.text) == _said(example, example.completion) for example, c in answered]
        return RoleScore(len(found), 1.0, sum(right) / len(right), None, 1.0, 0)
    outputs = [_parse(role, example, completion) for example, completion in answered]
    claims = [
        claim.true
        for example, completion in answered
        if role != "g2"  # its text retells moves: most of what it says is about positions on the way
        for claim in check_claims(
            completion.text, _game(example.game), example.inp.state, getattr(example.inp, "action", None)
        )
    ]
    parsed = [output for output in outputs if not isinstance(output, ParseFailure)]
    exact_role = role not in (*MOVERS, "q", "v")  # V and Q of the base are noise: there is nothing to be right about
    return RoleScore(
        prompts=len(found),
        parsed=len(parsed) / len(found),
        exact=_exact(role, found, outputs),
        mean_absolute_error=_error(found, outputs) if exact_role else None,
        true_claims=sum(claims) / len(claims) if claims else 1.0,
        claims=len(claims),
    )


_game = lru_cache(maxsize=256)(make_from_spec)


@lru_cache(maxsize=256)
def _roles(spec: str) -> Roles:
    return Roles(_game(spec), "plain")


def _said(example: Example, text: str) -> list[str]:
    return _roles(example.game).policy.language.content(text)


def _parse(role: str, example: Example, completion: Completion) -> Any:
    return getattr(_roles(example.game), ROLE_OF.get(role, role)).parse(example.inp, completion)


def _exact(role: str, found: Sequence[Example], outputs: Sequence[Any]) -> float | None:
    if role in ("policy", "q", "v"):
        return None
    right = 0
    for example, output in zip(found, outputs, strict=True):
        if isinstance(output, ParseFailure):
            continue
        if role == "improvement":
            verdicts = {action: evaluation.verdict for action, evaluation in example.inp.candidates}
            right += verdicts[output.action] == max(verdicts.values())
        else:
            right += abs(output.verdict - example.answer) < 0.005
    return right / len(found)


def _error(found: Sequence[Example], outputs: Sequence[Any]) -> float | None:
    errors = [
        abs(output.verdict - example.answer)
        for example, output in zip(found, outputs, strict=True)
        if not isinstance(output, ParseFailure)
    ]
    return sum(errors) / len(errors) if errors else None


def text_agrees(text: str, verdict: float, phrases: dict[str, list[str]]) -> bool:
    """Whether an evaluation's words belong to the band of its verdict."""
    return any(words in text for words in phrases[band(round(verdict, 2))])
