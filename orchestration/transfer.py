"""Does the engine say what the trainer has learned? Asked after every transfer of weights.

1. The engine answers a few prompts of what was trained on, sampled at temperature 1; each of its servers does, since
   each has weights of its own. The trainer reads prompts and answers itself, from its own tokens of the prompt, and
   says how likely each token was.
2. KL(engine, trainer) is estimated from the engine's samples as the mean of r - 1 - log r, r being the trainer's
   probability over the engine's (Schulman 2020, "Approximating KL divergence", k3): no sample of it is negative. Equal
   networks differ by rounding alone. Weights that did not arrive, arrived under another name, were rounded away, or
   read other tokens do not.
3. The figures depend on the machine in their last digits, so they go to the trackers and not into a manifest.

Scripted models are not asked: they have no probabilities.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from nlrl.agents.roles import ActionInput, StateInput
from nlrl.backbones.language_model import Completion, Message, Request, Sampling
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig

if TYPE_CHECKING:
    from nlrl.orchestration.cluster import Handle
    from nlrl.orchestration.router import Router
    from nlrl.orchestration.session import Session

log = logging.getLogger(__name__)
PROBES = 4
"""Prompts asked after a transfer."""
TOKENS = 32
"""Longest answer to one of them."""
EXACT, ROUNDED = 1e-6, 0.02
"""Most KL, nats a token, where both compute in float32 on a CPU, and elsewhere."""

Prompt = tuple[Message, ...]


@dataclass(frozen=True)
class Agreement:
    """What an engine and a trainer say of the same tokens."""

    kl: float
    """Estimate of KL(engine, trainer), nats a token."""
    max_difference: float
    """Largest distance of two log-probabilities of a token."""
    tokens: int
    versions: tuple[str, ...] = ()
    """What the engines call their weights."""


def agreement(engine: Sequence[Sequence[float]], trainer: Sequence[Sequence[float]]) -> Agreement:
    """Compares log-probabilities of the same tokens, sampled by the engine: answer by answer, token by token."""
    pairs = [pair for rows in zip(engine, trainer, strict=True) for pair in zip(*rows, strict=True)]
    gaps = [theirs - ours for ours, theirs in pairs]
    if not all(map(math.isfinite, gaps)):
        return Agreement(math.inf, math.inf, len(gaps))
    each = [math.expm1(min(gap, 700.0)) - gap for gap in gaps]
    return Agreement(math.fsum(each) / max(len(each), 1), max(map(abs, gaps), default=0.0), len(gaps))


def limit_of(model: ModelConfig) -> float:
    """Most KL that a transfer may show; infinity where it is not to be looked at."""
    if model.max_transfer_kl is not None:
        return model.max_transfer_kl or math.inf
    from nlrl.orchestration.models import inference_dtype, resolve_device

    if model.kind != "native":
        return ROUNDED
    device = resolve_device(model.device)
    return EXACT if device == "cpu" and inference_dtype(model.dtype, device) == "float32" else ROUNDED


def check_transfer(session: Session, network: str, version: str, prompts: Sequence[Prompt]) -> None:
    """Compares a network in the engines with the one in the trainer, and notes the figures in `session.transfers`.

    Args:
        prompts: what it was trained on; positions of the game stand in where they are not known any more.

    Raises:
        NLRLError: they are further apart than `model.max_transfer_kl`.
    """
    model, trainer = session.config.model, session.trainer
    limit = math.inf if model.kind == "scripted" else limit_of(model)
    if limit == math.inf or trainer is None:
        return
    begun = time.monotonic()
    asked = _spread_out(prompts) or positions(session, network)
    sampling = Sampling(temperature=1.0, max_tokens=min(TOKENS, model.max_tokens))
    requests = [Request(p, sampling=sampling, seed=session.seed("transfer", version, i)) for i, p in enumerate(asked)]
    found = compared(session.student.router, trainer, network, requests)
    if found is None:
        log.warning("%s: no answer with log-probabilities came back, so the transfer could not be checked", version)
        return
    figures = {"kl": found.kl, "max_difference": found.max_difference, "seconds": time.monotonic() - begun}
    session.transfers |= {f"transfer/{network}/{name}": value for name, value in figures.items()}
    if not found.kl <= limit:
        raise NLRLError(_complaint(network, version, found, limit))


def compared(router: Router, trainer: Handle, network: str, requests: Sequence[Request]) -> Agreement | None:
    """What a network in each of the servers and in the trainer say of the servers' answers; None where no answer tells
    its tokens and their log-probabilities."""
    everywhere = router.generate_everywhere(network, requests)
    answers = [pair for answers in everywhere for pair in zip(requests, answers, strict=True) if _is_telling(pair[1])]
    if not answers:
        return None
    prompts = [request.messages for request, _ in answers]
    read = trainer.call("score", network, prompts, [one.tokens for _, one in answers]).result()
    found = agreement([one.logprobs for _, one in answers], read)
    return replace(found, versions=tuple(sorted({one.weight_version for _, one in answers})))


def positions(session: Session, network: str) -> list[Prompt]:
    """What a network is asked in the positions of a random walk from the start, the same ones every time."""
    game, roles = session.game, session.student_roles
    rng = Rng(session.seed("transfer", "positions"))
    found, state = [], game.initial_state(rng)
    while len(found) < PROBES and not game.is_terminal(state):
        action = rng.shuffled(game.legal_actions(state))[0]
        if network == "actor":
            found.append(roles.policy.messages(StateInput(state)))
        else:
            found.append(roles.q.messages(ActionInput(state, action)))
        state = game.apply(state, action, rng).state
    return found


def _spread_out(prompts: Sequence[Prompt]) -> list[Prompt]:
    """A few different ones, from all over the list."""
    different = list(dict.fromkeys(prompts))
    return different[:: max(1, len(different) // PROBES)][:PROBES]


def _is_telling(answer: Completion) -> bool:
    return bool(answer.tokens) and len(answer.logprobs) == len(answer.tokens)


def _complaint(network: str, version: str, found: Agreement, limit: float) -> str:
    return (
        f"{version} does not answer as it was trained: KL(engine, trainer) is {found.kl:.3g} nats a token over "
        f"{found.tokens} tokens, more than {limit:g} (model.max_transfer_kl), and one token's log-probability differs "
        f"by {found.max_difference:.3g}. The engine calls its weights {', '.join(found.versions)}; the trainer's "
        f"'{network}' has others, or the two read prompts as different tokens. What was committed is whole: rerun the "
        "same command, which sends the weights again"
    )
