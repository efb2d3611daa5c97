"""What a call of the sampler really has to compute: distinct answers, cut into micro-batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from nlrl.backbones.language_model import Request, Sampling
from nlrl.errors import NLRLError


@dataclass
class Job:
    """One distinct (prompt, sampling, seed) and the requests that asked for it."""

    prompt: tuple[int, ...]
    sampling: Sampling
    seed: int
    requests: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Slots of the KV cache that the job may need."""
        return len(self.prompt) + self.sampling.max_tokens


def check(sampling: Sampling) -> None:
    """Raises NLRLError naming the first field that no sampler can obey."""
    rules = {
        "temperature": (0 <= sampling.temperature < math.inf, "a finite number of at least 0"),
        "top_k": (sampling.top_k >= 0, "at least 0 (0 keeps every token)"),
        "top_p": (0 < sampling.top_p <= 1, "in (0, 1]"),
        "max_tokens": (sampling.max_tokens >= 0, "at least 0"),
        "stop": (all(sampling.stop), "without empty strings"),
    }
    for name, (holds, right) in rules.items():
        if not holds:
            raise NLRLError(f"Sampling.{name} is {getattr(sampling, name)!r}; it must be {right}")


def distinct_jobs(requests: Sequence[Request], prompts: Sequence[tuple[int, ...]], context: int | None) -> list[Job]:
    """Merges requests that must get the same answer: equal ones, and greedy ones whatever their seed.

    Args:
        context: tokens that the model can read; answers are cut short there. None: no limit.
    Returns: jobs sorted so that equal prompts are neighbours and neighbours have similar lengths.
    """
    jobs: dict[tuple, Job] = {}
    for sampling in {request.sampling for request in requests}:
        check(sampling)
    for i, (request, prompt) in enumerate(zip(requests, prompts, strict=True)):
        seed = request.seed if request.sampling.temperature > 0 else 0
        key = (prompt, request.sampling, seed)
        if key not in jobs:
            jobs[key] = Job(prompt, _within(request.sampling, prompt, context), seed)
        jobs[key].requests.append(i)
    return sorted(jobs.values(), key=lambda job: (len(job.prompt), job.sampling.max_tokens, job.prompt))


def _within(sampling: Sampling, prompt: tuple[int, ...], context: int | None) -> Sampling:
    if context is None or len(prompt) + sampling.max_tokens <= context:
        return sampling
    return replace(sampling, max_tokens=max(0, context - len(prompt)))


def micro_batches(jobs: Sequence[Job], max_rows: int, most_rows: Callable[[int], int]) -> list[list[Job]]:
    """Cuts sorted jobs into runs of at most `max_rows` rows, and `most_rows` of the longest's length."""
    batches: list[list[Job]] = []
    longest = 0
    for job in jobs:
        longest = max(longest, job.length)
        full = batches and (len(batches[-1]) == max_rows or len(batches[-1]) >= most_rows(longest))
        if not batches or full:
            batches.append([])
            longest = job.length
        batches[-1].append(job)
    return batches
