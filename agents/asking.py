"""Asking a model in a role: batched, retried, and honest about failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic

from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import In, Out, Role
from nlrl.backbones.language_model import Completion, LanguageModel, Request, Sampling, Timing
from nlrl.envs.random import derive_seed

RETRY_TEMPERATURE = 0.7
"""A greedy answer that cannot be read would only repeat itself, so retries sample."""


@dataclass(frozen=True, slots=True)
class Reply(Generic[Out]):
    """The last answer to one input. `output` is None when every attempt failed: the caller forfeits, and counts it."""

    output: Out | None
    completion: Completion
    failures: tuple[ParseFailure, ...] = ()
    prompt_tokens: int = 0
    """Of all attempts."""
    generated_tokens: int = 0
    """Of all attempts."""
    earlier: tuple[tuple[Timing | None, int], ...] = field(default=(), compare=False, repr=False)
    """Of the attempts that failed before the last one: when, and tokens generated."""

    @property
    def failed(self) -> bool:
        return self.output is None


def ask(
    model: LanguageModel,
    role: Role[In, Out],
    inputs: Sequence[In],
    sampling: Sampling,
    seeds: Sequence[int] | int = 0,
    retries: int = 1,
) -> list[Reply[Out]]:
    """One reply per input, in order.

    Args:
        seeds: one seed per input, or one for all (greedy answers do not use it).
        retries: how often an answer that cannot be read is asked again, with another seed.
    """
    per_input = [seeds] * len(inputs) if isinstance(seeds, int) else seeds
    requests = [
        Request(messages=role.messages(inp), sampling=sampling, seed=seed)
        for inp, seed in zip(inputs, per_input, strict=True)
    ]
    replies = _attempt(model, role, inputs, requests)
    for attempt in range(1, retries + 1):
        failed = [i for i, reply in enumerate(replies) if reply.failed]
        if not failed:
            break
        again = _attempt(model, role, [inputs[i] for i in failed], [_again(requests[i], attempt) for i in failed])
        for i, reply in zip(failed, again, strict=True):
            replies[i] = _after(replies[i], reply)
    return replies


def _after(earlier: Reply[Out], reply: Reply[Out]) -> Reply[Out]:
    return replace(
        reply,
        failures=earlier.failures + reply.failures,
        prompt_tokens=earlier.prompt_tokens + reply.prompt_tokens,
        generated_tokens=earlier.generated_tokens + reply.generated_tokens,
        earlier=(*earlier.earlier, (earlier.completion.timing, len(earlier.completion.tokens))),
    )


def _again(request: Request, attempt: int) -> Request:
    sampling = replace(request.sampling, temperature=max(request.sampling.temperature, RETRY_TEMPERATURE))
    return replace(request, sampling=sampling, seed=derive_seed(request.seed, "retry", attempt))


def _attempt(
    model: LanguageModel, role: Role[In, Out], inputs: Sequence[In], requests: Sequence[Request]
) -> list[Reply[Out]]:
    replies = []
    for inp, completion in zip(inputs, model.generate(requests), strict=True):
        output = role.parse(inp, completion)
        read, generated = completion.prompt_tokens, len(completion.tokens)
        if isinstance(output, ParseFailure):
            replies.append(Reply(None, completion, (output,), read, generated))
        else:
            replies.append(Reply(output, completion, (), read, generated))
    return replies
