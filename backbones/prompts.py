"""Requests to token sequences, and where the part of a prompt ends that others begin with, too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from nlrl.backbones.language_model import ChatRole, Message, Request
from nlrl.errors import NLRLError

_REMEMBERED = 262_144
LEAST_SHARED = 16
"""Tokens that are worth a mark: a page of the engine's cache."""


class Prompt(NamedTuple):
    """What a model reads."""

    tokens: tuple[int, ...]
    marks: tuple[int, ...] = ()
    """As `Request.marks`: the end of the system messages that a chat begins with."""


class PromptEncoder:
    """Renders chat messages by the tokenizer's template and tokenises them; remembers what it has rendered."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[tuple[Message, ...], Prompt] = {}
        self._frames: dict[tuple[ChatRole, ...], _Frame] = {}
        self._openings: dict[str, list[int]] = {}

    def encode(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """The tokens of each request's prompt, in order.

        Raises:
            NLRLError: a request has both messages and tokens, or neither; or the tokenizer has no chat template.
        """
        return [prompt.tokens for prompt in self.prompts(requests)]

    def prompts(self, requests: Sequence[Request]) -> list[Prompt]:
        """As `encode`, with marks. The tokens up to a mark are those of the system messages rendered alone, so they are
        the same whatever follows, and chats that begin with the same system messages have them in common. A chat
        without such messages, or whose template does more than frame them, has no mark.
        """
        for request in requests:
            if bool(request.messages) == bool(request.tokens):
                raise NLRLError("Request: exactly one of `messages` and `tokens` must be given")
        new = dict.fromkeys(r.messages for r in requests if r.messages and r.messages not in self._known)
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = dict.fromkeys(r.messages for r in requests if r.messages)
        self._known.update(zip(new, self._tokenise(list(new)), strict=True))
        return [self._known[r.messages] if r.messages else Prompt(tuple(r.tokens)) for r in requests]

    def _tokenise(self, chats: list[tuple[Message, ...]]) -> list[Prompt]:
        if not chats:
            return []
        if not getattr(self.tokenizer, "chat_template", None):
            raise NLRLError("the tokenizer has no chat template: give it one, or send Request.tokens")
        whole = encode_texts(self.tokenizer, self._render(chats))
        return [Prompt(tuple(ids), self._marks(chat, ids)) for chat, ids in zip(chats, whole, strict=True)]

    def _marks(self, chat: tuple[Message, ...], tokens: list[int]) -> tuple[int, ...]:
        if chat[0].role != "system":
            return ()
        opening = self._frame(tuple(message.role for message in chat)).opening(chat)
        if not opening:
            return ()
        if opening not in self._openings:
            if len(self._openings) >= _REMEMBERED:
                self._openings.clear()
            [self._openings[opening]] = encode_texts(self.tokenizer, [opening])
        shared = _common(
            self._openings[opening], tokens
        )  # a token may reach across the boundary: that one is not shared
        return (shared,) if LEAST_SHARED <= shared < len(tokens) else ()

    def _render(self, chats: list[tuple[Message, ...]]) -> list[str]:
        return [self._frame(tuple(message.role for message in chat)).render(chat) for chat in chats]

    def _frame(self, roles: tuple[ChatRole, ...]) -> _Frame:
        if roles not in self._frames:
            self._frames[roles] = _Frame.of(self._template, roles)
        return self._frames[roles]

    def _template(self, chat: tuple[Message, ...]) -> str:
        turns = [{"role": message.role, "content": message.content} for message in chat]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


@dataclass(frozen=True)
class _Frame:
    """What a chat template puts around the contents of chats with the same roles. Found once by rendering a sample:
    an iteration has a hundred thousand prompts, and the template engine would run for each."""

    template: Callable[[tuple[Message, ...]], str]
    pieces: tuple[str, ...] | None
    """Texts before, between and after the contents; None where the template does more than frame them."""

    @classmethod
    def of(cls, template: Callable[[tuple[Message, ...]], str], roles: tuple[ChatRole, ...]) -> _Frame:
        marks = [f"<<{i}>>" for i in range(len(roles))]
        rendered = template(tuple(Message(role, mark) for role, mark in zip(roles, marks, strict=True)))
        pieces = []
        for mark in marks:
            before, found, rendered = rendered.partition(mark)
            if not found or mark in rendered:
                return cls(template, None)
            pieces.append(before)
        return cls(template, (*pieces, rendered))

    def render(self, chat: tuple[Message, ...]) -> str:
        contents = [message.content for message in chat]
        if self.pieces is None or any(content != content.strip() or not content for content in contents):
            return self.template(chat)  # many templates trim
        framed = [text for pair in zip(self.pieces, contents, strict=False) for text in pair]
        return "".join(framed) + self.pieces[-1]

    def opening(self, chat: tuple[Message, ...]) -> str:
        """What comes before the first content that is not a system message's; empty if the chat begins otherwise."""
        count = next((i for i, message in enumerate(chat) if message.role != "system"), 0)
        contents = [message.content for message in chat[:count]]
        if self.pieces is None or not count or any(content != content.strip() or not content for content in contents):
            return ""
        framed = [text for pair in zip(self.pieces, contents, strict=False) for text in pair]
        return "".join(framed) + self.pieces[count]


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, special tokens only where the text spells them. The fast path skips the offsets that a
    `PreTrainedTokenizerFast` computes and nobody here reads."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two sequences begin with alike."""
    if other[: len(one)] == one:
        return len(one)
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
