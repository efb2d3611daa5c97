"""Completions as JSON, in the two shapes of OpenAI's interface. A whole answer and a streamed one are made of the same
pieces, so that they say the same."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlrl.backbones.engine.server.asks import Ask
from nlrl.backbones.engine.server.surface import Delta, TokenScore, TopLogprobs
from nlrl.backbones.engine.server.vocabulary import Vocabulary
from nlrl.backbones.language_model import Completion

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON cannot say."""


@dataclass(frozen=True)
class Piece:
    """A part of an answer's text with its tokens; `logprobs` is None where nothing comes before a token."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    logprobs: tuple[float | None, ...] = ()
    top: tuple[TopLogprobs, ...] = ()

    @classmethod
    def of(cls, source: Completion | Delta) -> Piece:
        top = source.top_logprobs[: len(source.tokens)] if isinstance(source, Completion) else ()
        return cls(source.text, source.tokens, source.logprobs, top)

    @classmethod
    def echo(cls, text: str, prompt: tuple[int, ...], scores: Sequence[TokenScore]) -> Piece:
        """The prompt itself, its first token unscored."""
        logprobs = (None, *(score.logprob for score in scores))
        return cls(text, prompt, logprobs, ((), *(score.top_logprobs for score in scores)))

    def after(self, text: int, tokens: int) -> Piece:
        """What is left without the first characters and tokens."""
        return Piece(self.text[text:], self.tokens[tokens:], self.logprobs[tokens:], self.top[tokens:])


def joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces that follow each other as one."""
    top = tuple(entry for piece in pieces for entry in (piece.top or ((),) * len(piece.tokens)))
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(logprob for piece in pieces for logprob in piece.logprobs),
        top,
    )


class Writer:
    """Writes the answers to one ask: `whole` at once, or `chunk` after `chunk`."""

    def __init__(self, ask: Ask, model: str, version: str, words: Vocabulary, chat: bool) -> None:
        self.ask, self._words, self._chat = ask, words, chat
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": version,
        }
        self._whole = "chat.completion" if chat else "text_completion"
        self._part = "chat.completion.chunk" if chat else "text_completion"
        self._offsets: dict[int, _Offset] = {}

    def whole(self, answers: Sequence[Completion], echoes: Sequence[Piece]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for index, answer in enumerate(answers):
            choice = self._choice(index, self._full(index, answer, echoes))
            choices.append(choice | {"finish_reason": answer.finish_reason} | self._ids(index, answer))
        spoken = sum(len(answer.tokens) for answer in answers)
        head = self._head | {"object": self._whole, "system_fingerprint": answers[0].weight_version}
        return head | {"choices": choices, "usage": self.usage(spoken)}

    def chunk(self, index: int, piece: Piece, finish: str | None = None, first: bool = False) -> dict[str, Any]:
        """The next part of one answer."""
        choice = self._choice(index, piece)
        if self._chat:
            del choice["message"]
            content = {"content": piece.text} if piece.text or first else {}
            choice["delta"] = {"role": "assistant"} | content if first else content
        if self.ask.body.return_token_ids:
            choice["token_ids"] = list(piece.tokens)
        return self._frame([choice | {"finish_reason": finish}])

    def last(self, spoken: int) -> dict[str, Any]:
        """The chunk that says what everything cost."""
        return self._frame([]) | {"usage": self.usage(spoken)}

    def usage(self, spoken: int) -> dict[str, int]:
        read = self.ask.prompt_tokens
        return {"prompt_tokens": read, "completion_tokens": spoken, "total_tokens": read + spoken}

    def _frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        usage = {"usage": None} if self.ask.body.stream_options.include_usage else {}
        return self._head | {"object": self._part, "choices": choices} | usage

    def _full(self, index: int, answer: Completion, echoes: Sequence[Piece]) -> Piece:
        return joined([echoes[index], Piece.of(answer)]) if echoes else Piece.of(answer)

    def _ids(self, index: int, answer: Completion) -> dict[str, Any]:
        if not self.ask.body.return_token_ids:
            return {}
        prompt = self.ask.prompts[index // len(self.ask.seeds)]
        return {"token_ids": list(answer.tokens), "prompt_token_ids": list(prompt)}

    def _choice(self, index: int, piece: Piece) -> dict[str, Any]:
        wanted = self.ask.top is not None
        if self._chat:
            message = {"role": "assistant", "content": piece.text, "refusal": None}
            return {"index": index, "message": message, "logprobs": self._chat_logprobs(piece) if wanted else None}
        return {"index": index, "text": piece.text, "logprobs": self._plain_logprobs(index, piece) if wanted else None}

    # -- log-probabilities ---------------------------------------------------------------------------------------------
    def _chat_logprobs(self, piece: Piece) -> dict[str, Any]:
        tops = piece.top or ((),) * len(piece.tokens)
        content = [
            self._entry(token, logprob) | {"top_logprobs": [self._entry(*pair) for pair in top]}
            for token, logprob, top in zip(piece.tokens, piece.logprobs, tops, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float | None) -> dict[str, Any]:
        spoken = self._words.bytes(token)
        return {"token": self._words.name(token), "logprob": _finite(logprob), "bytes": list(spoken)}

    def _plain_logprobs(self, index: int, piece: Piece) -> dict[str, Any]:
        offset = self._offsets.setdefault(index, _Offset())
        tops = piece.top or ((),) * len(piece.tokens)
        return {
            "tokens": [self._words.name(token) for token in piece.tokens],
            "token_logprobs": [_finite(logprob) for logprob in piece.logprobs],
            "top_logprobs": [
                self._alternatives(*entry) for entry in zip(piece.tokens, piece.logprobs, tops, strict=True)
            ],
            "text_offset": [offset.before(self._words.bytes(token)) for token in piece.tokens],
        }

    def _alternatives(self, token: int, logprob: float | None, top: TopLogprobs) -> dict[str, float] | None:
        """The likeliest tokens and the one that stands here, by name. Clients find out whether it is the likeliest by
        comparing numbers, so its number is the same here as in `token_logprobs`."""
        if logprob is None:
            return None
        named: dict[str, float] = {}
        for other, value in [(token, logprob), *(pair for pair in top if pair[0] != token)]:
            name = self._words.name(other)
            named[name] = max(value, named.get(name, LEAST))
        return named


class _Offset:
    """Characters before each token of a text whose letters may be spread over tokens."""

    def __init__(self) -> None:
        self._letters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._seen = 0

    def before(self, spoken: bytes) -> int:
        start = self._seen
        self._seen += len(self._letters.decode(spoken))
        return start


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, LEAST)
