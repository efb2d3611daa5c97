"""A tokenizer for models that are not models: one token a word, so that answers have tokens and log-probabilities."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

_WORD = re.compile(r"\s*\S+|\s+")


class WordTokenizer:
    """A token is a word with the white space before it. Its id is a hash: equal words have equal ids everywhere."""

    def __init__(self) -> None:
        self._words: dict[int, str] = {}

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of `text`, losslessly."""
        return tuple(self._id(word) for word in _WORD.findall(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens that this tokenizer has encoded before.

        Raises:
            KeyError: a token it has never seen; a hash cannot be turned back.
        """
        return "".join(self._words[token] for token in tokens)

    @staticmethod
    def logprob(token: int) -> float:
        """The log-probability of a token, in [-4, 0): a fixed function of it, so that a test notices shifted ones."""
        return -4 * (1 - token % 1021 / 1021)

    def _id(self, word: str) -> int:
        token = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "little") >> 1
        self._words[token] = word
        return token
