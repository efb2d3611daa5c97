"""What one token says, in bytes: log-probabilities are reported token by token, and a token may be part of a letter."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_METASPACE = "\u2581"


class Vocabulary:
    """Bytes and names of tokens, for byte-level, byte-fallback and plain vocabularies.

    Args:
        tokenizer: a `PreTrainedTokenizerFast` or a `PlainTokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        decoders = json.dumps(_decoder(tokenizer))
        self._letters = _byte_letters() if '"ByteLevel"' in decoders else None
        self._metaspace = _METASPACE in decoders or "\\u2581" in decoders
        self._known: dict[int, tuple[bytes, str]] = {}

    def bytes(self, token: int) -> bytes:
        """UTF-8, possibly only a part of a letter's."""
        return self._entry(token)[0]

    def name(self, token: int) -> str:
        """The token as text; `bytes:\\xe2\\x82` where its bytes are no text, as OpenAI writes it."""
        return self._entry(token)[1]

    def text(self, tokens: tuple[int, ...]) -> str:
        """What tokens say together, special ones included."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def _entry(self, token: int) -> tuple[bytes, str]:
        if token not in self._known:
            spoken = self._spoken(token)
            self._known[token] = spoken, _name(spoken)
        return self._known[token]

    def _spoken(self, token: int) -> bytes:
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:  # an embedding row without a token
            return b""
        if token in self._special:
            return piece.encode()
        if self._letters is not None and all(letter in self._letters for letter in piece):
            return bytes(self._letters[letter] for letter in piece)
        if found := _BYTE.fullmatch(piece):
            return bytes.fromhex(found[1])
        if self._metaspace:
            return piece.replace(_METASPACE, " ").encode()
        return self._tokenizer.decode([token]).encode()


def _name(spoken: bytes) -> str:
    try:
        return spoken.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spoken)


def _decoder(tokenizer: Any) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    return json.loads(decoder.__getstate__()) if decoder is not None else None


@lru_cache(maxsize=1)
def _byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is visible in Latin-1, the
    others in order from U+0100 on (GPT-2's table)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in set(visible)]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}
