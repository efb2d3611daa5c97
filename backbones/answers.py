"""From tokens to texts, and where stop strings cut them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from nlrl.backbones.language_model import Completion

Decode = Callable[[Sequence[Sequence[int]]], list[str]]


def text_decoder(tokenizer) -> Decode:
    """Tokens to texts, many at once, special tokens left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda rows: backend.decode_batch([list(row) for row in rows], skip_special_tokens=True)
    return lambda rows: [tokenizer.decode(list(row), skip_special_tokens=True) for row in rows]


def cut_at_stop(answer: Completion, stop: Sequence[str], decode: Decode) -> Completion:
    """Text up to the first stop string, and tokens up to the one that completed it."""
    found = [at for at in (answer.text.find(string) for string in stop) if at >= 0]
    if not found:
        return answer
    fewest = tokens_to_stop(answer.tokens, stop, decode)
    return replace(
        answer,
        text=answer.text[: min(found)],
        tokens=answer.tokens[:fewest],
        logprobs=answer.logprobs[:fewest],
        finish_reason="stop",
    )


def tokens_to_stop(tokens: Sequence[int], stop: Sequence[str], decode: Decode) -> int:
    """How many tokens it takes until their text has a stop string, as all of theirs has."""
    return _shortest_prefix(lambda n: any(string in decode([tokens[:n]])[0] for string in stop), len(tokens))


def _shortest_prefix(holds: Callable[[int], bool], longest: int) -> int:
    """The least n <= longest with holds(n), given holds(longest) and that holding survives growth."""
    low, high = 1, longest
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
