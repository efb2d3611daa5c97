"""Requests to token sequences."""

from __future__ import annotations

from collections.abc import Sequence

from nlrl.backbones.language_model import Message, Request
from nlrl.errors import NLRLError

_REMEMBERED = 65_536


class PromptEncoder:
    """Renders chat messages by the tokenizer's template and tokenises them; remembers what it has rendered."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self._known: dict[tuple[Message, ...], tuple[int, ...]] = {}

    def encode(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """The prompt of each request, in order.

        Raises:
            NLRLError: a request has both messages and tokens, or neither; or the tokenizer has no chat template.
        """
        for request in requests:
            if bool(request.messages) == bool(request.tokens):
                raise NLRLError("Request: exactly one of `messages` and `tokens` must be given")
        new = dict.fromkeys(r.messages for r in requests if r.messages and r.messages not in self._known)
        if len(self._known) + len(new) > _REMEMBERED:
            self._known.clear()
            new = dict.fromkeys(r.messages for r in requests if r.messages)
        self._known.update(zip(new, self._tokenise(list(new)), strict=True))
        return [self._known[r.messages] if r.messages else tuple(r.tokens) for r in requests]

    def _tokenise(self, chats: list[tuple[Message, ...]]) -> list[tuple[int, ...]]:
        if not chats:
            return []
        if not getattr(self.tokenizer, "chat_template", None):
            raise NLRLError("the tokenizer has no chat template: give it one, or send Request.tokens")
        return [tuple(ids) for ids in encode_texts(self.tokenizer, self._render(chats))]

    def _render(self, chats: list[tuple[Message, ...]]) -> list[str]:
        turns = [[{"role": message.role, "content": message.content} for message in chat] for chat in chats]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def encode_texts(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, special tokens only where the text spells them. The fast path skips the offsets that a
    `PreTrainedTokenizerFast` computes and nobody here reads."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
