"""What is said of an answer while it is being written."""

from __future__ import annotations

import logging

from nlrl.backbones.answers import tokens_to_stop
from nlrl.backbones.engine.sequence import Delta, Sequence

log = logging.getLogger(__name__)


def tell(sequence: Sequence, tokens: list[int], logprobs: list[float], decode, done: bool) -> bool:
    """Hands new text to the listener of a sequence; says whether its answer has reached a stop string.

    Args:
        tokens, logprobs: all of the answer so far.
        decode: token lists to texts.
        done: nothing will follow.
    """
    text = decode([tokens])[0]
    stop = sequence.sampling.stop
    found = [at for at in (text.find(string) for string in stop) if at >= 0]
    if sequence.on_tokens is not None:
        end = min(found) if found else len(text) if done else _safe_end(text, stop)
        kept = tokens_to_stop(tokens, stop, decode) if found else len(tokens)
        _speak(sequence, text[sequence.told : end], tokens[:kept], logprobs[:kept], last=done or bool(found))
        sequence.told = max(sequence.told, end)
    return bool(found)


def _safe_end(text: str, stop: tuple[str, ...]) -> int:
    """How much of a text stays as it is whatever follows: not a half character, not what may begin a stop string."""
    end = len(text)
    while end and text[end - 1] == "\ufffd":
        end -= 1
    held = [n for string in stop for n in range(1, len(string)) if text.endswith(string[:n])]
    return min(end, len(text) - max(held, default=0))


def _speak(sequence: Sequence, text: str, tokens: list[int], logprobs: list[float], last: bool) -> None:
    new = slice(sequence.told_tokens, len(tokens))
    if not text and not (last and tokens[new]):
        return
    sequence.told_tokens = len(tokens)
    try:
        sequence.on_tokens(Delta(text, tuple(tokens[new]), tuple(logprobs[new])))  # pyright: ignore
    except Exception:  # a listener's fault must not stop everybody else's answers
        log.exception("a listener of a streamed answer failed; it will hear no more")
        sequence.on_tokens = None
