"""From drawn tokens to completions: where an answer ends, its text, and stop strings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch

from nlrl.backbones.decoding import Answers, Batch, Watch
from nlrl.backbones.jobs import Job
from nlrl.backbones.language_model import Completion

Decode = Callable[[Sequence[Sequence[int]]], list[str]]


def text_decoder(tokenizer) -> Decode:
    """Tokens to texts, many at once, special tokens left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda rows: backend.decode_batch([list(row) for row in rows], skip_special_tokens=True)
    return lambda rows: [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]


def completions(
    jobs: Sequence[Job], answers: Answers, ends: frozenset[int], decode: Decode, version: str
) -> list[Completion]:
    """One completion a job, in order. ends: token ids that end an answer; they stay in `Completion.tokens`."""
    tokens_drawn, lengths = answers.tokens.cpu().numpy(), _lengths(jobs, answers, ends)
    drawn = [row[:length].tolist() for row, length in zip(tokens_drawn, lengths, strict=True)]
    texts, logprobs_drawn = decode(drawn), answers.logprobs.cpu().numpy()
    out = []
    columns = zip(jobs, drawn, texts, logprobs_drawn, answers.expectation.tolist(), strict=True)
    for job, tokens, text, logprobs, expectation in columns:
        answer = Completion(
            text=text,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs[: len(tokens)].tolist()),
            finish_reason="stop" if tokens[-1] in ends else "length",
            weight_version=version,
            prompt_tokens=len(job.prompt),
            expectation=None if math.isnan(expectation) else expectation,
        )
        out.append(cut_at_stop(answer, job.sampling.stop, decode) if job.sampling.stop else answer)
    return out


def _lengths(jobs: Sequence[Job], answers: Answers, ends: frozenset[int]) -> list[int]:
    """Tokens of each answer: up to and with its first end token, or as many as its job allows."""
    limits = torch.tensor([job.sampling.max_tokens for job in jobs], device=answers.tokens.device)
    is_end = torch.isin(answers.tokens, torch.tensor(sorted(ends), device=answers.tokens.device))
    first = torch.where(is_end.any(1), is_end.int().argmax(1) + 1, answers.tokens.shape[1])
    return torch.minimum(first, limits).tolist()


def cut_at_stop(answer: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Text up to the first stop string, and tokens up to the one that completed it."""
    found = [at for at in (answer.text.find(string) for string in stop) if at >= 0]
    if not found:
        return answer
    fewest = _shortest_prefix(
        lambda n: any(string in decode([answer.tokens[:n]])[0] for string in stop), len(answer.tokens)
    )
    return replace(
        answer,
        text=answer.text[: min(found)],
        tokens=answer.tokens[:fewest],
        logprobs=answer.logprobs[:fewest],
        finish_reason="stop",
    )


def _shortest_prefix(holds: Callable[[int], bool], longest: int) -> int:
    """The least n <= longest with holds(n), given holds(longest) and that holding survives growth."""
    low, high = 1, longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def stop_watch(jobs: Sequence[Job], decode: Decode) -> Watch | None:
    """Finds rows whose answer already holds one of their stop strings; None if no job has any."""
    if not any(job.sampling.stop for job in jobs):
        return None

    def watch(batch: Batch) -> Iterable[int]:
        rows, drawn = batch.rows, int(batch.rows.step)
        live = [i for i, finished in enumerate(rows.finished.tolist()) if not finished]
        places = rows.row.tolist()
        waiting = [i for i in live if jobs[places[i]].sampling.stop]
        if not waiting:
            return []
        tokens = batch.answers.tokens[[places[i] for i in waiting], :drawn].tolist()
        texts = decode(tokens)
        return [
            i for i, text in zip(waiting, texts, strict=True) if any(s in text for s in jobs[places[i]].sampling.stop)
        ]

    return watch
