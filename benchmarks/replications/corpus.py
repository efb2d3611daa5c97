"""The corpus of the replications: free text on the machine, a quarter of it the project's own texts about boards.

One `.npz` file holds tokens (`uint16`), the offset of each document, which documents are held out (2 %, by a hash of
their text, the same ones at any size), and the tokenizer. Paragraphs that occur twice are kept once. What is on the
machine decides what is in the file, so the file is built once and carried.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nlrl.benchmarks.replications.experiment import Data
from nlrl.benchmarks.replications.needles import CITIES
from nlrl.errors import NLRLError

VOCABULARY = 4096
MOST_TOKENS = 24_000_000
BOARD_SHARE = 0.25
"""Of the tokens."""
HELD_OUT = 50
"""One document in so many is held out."""
BOS = 1
"""`tokenizer.BOS`; stands before every document."""
_WORDS = (r" ?\p{N}", r" ?\p{L}+")
"""Pieces of a text that tokens do not reach across: digits, words."""
_TRAINED_ON = 6_000_000
"""Characters that the tokenizer sees; so few that cities and digits, put to them, become tokens."""
_SHORT = 80
"""Paragraphs below this length may occur again."""


Text = tuple[str, str]
"""(source, text)."""


class Row(NamedTuple):
    """A document in tokens."""

    source: str
    bytes: int
    held_out: bool
    tokens: np.ndarray


def build(out: Path, seed: int, most_tokens: int = MOST_TOKENS) -> dict[str, Any]:
    """Writes the corpus to `out`; returns documents, bytes of text, tokens, held_out (tokens), file_bytes, sources
    (tokens by source) and sha256 of the file."""
    from nlrl.benchmarks.replications.sources import documents

    boards = _board_texts(seed, round(most_tokens * BOARD_SHARE * 3.5))
    return write(out, _unique(documents(), seed), boards, seed, most_tokens)


def write(
    out: Path, free: list[Text], boards: list[Text], seed: int = 0, most_tokens: int = MOST_TOKENS
) -> dict[str, Any]:
    """`build` from given texts: those about boards are at most their share, the free ones what is left."""
    tokenizer = _trained([*free, *boards])
    rows = _encoded(tokenizer, boards, round(most_tokens * BOARD_SHARE))
    rows += _encoded(tokenizer, free, most_tokens - sum(len(row.tokens) for row in rows))
    rows = [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]
    _save(out, rows, tokenizer.to_str())
    sources = Counter()
    for row in rows:
        sources[row.source] += len(row.tokens)
    return {
        "documents": len(rows),
        "bytes": sum(row.bytes for row in rows),
        "tokens": sum(sources.values()),
        "held_out": sum(len(row.tokens) for row in rows if row.held_out),
        "sources": dict(sources.most_common()),
        "file_bytes": out.stat().st_size,
        "sha256": sha256(out),
    }


def load(path: Path, context: int, device) -> Data:
    """Raises: NLRLError: the file is missing or not a corpus."""
    import torch
    from tokenizers import Tokenizer

    arrays = _arrays(path)
    held = np.repeat(arrays["held_out"], np.diff(arrays["offsets"]))
    tokens = arrays["tokens"].astype(np.int16)
    parts = [torch.from_numpy(tokens[mask]).to(device) for mask in (~held, held)]
    tokenizer = Tokenizer.from_str(arrays["tokenizer"].tobytes().decode())
    return Data(parts[0], parts[1], tokenizer.get_vocab_size(), tokenizer, context)


def describe(path: Path) -> dict[str, Any]:
    """sha256 of the file, tokens, documents, vocabulary. Raises: NLRLError: as `load`."""
    from tokenizers import Tokenizer

    arrays = _arrays(path)
    vocabulary = Tokenizer.from_str(arrays["tokenizer"].tobytes().decode()).get_vocab_size()
    sizes = {"tokens": len(arrays["tokens"]), "documents": len(arrays["held_out"]), "vocabulary": vocabulary}
    return {"sha256": sha256(path)} | sizes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in ("tokens", "offsets", "held_out", "tokenizer")}
    except (OSError, ValueError, KeyError) as error:
        hint = "`python -m nlrl.benchmarks.replications corpus --out FILE` writes one"
        raise NLRLError(f"{path} is no corpus ({error}); {hint}") from None


# -- texts -------------------------------------------------------------------------------------------------------------
def _unique(texts: Iterable[Text], seed: int) -> list[Text]:
    """Without paragraphs seen before; in an order drawn from the texts and the seed."""
    seen: set[int] = set()
    found = [(source, kept) for source, text in texts if len(kept := _new_paragraphs(text, seen)) >= 400]
    return sorted(found, key=lambda item: hashlib.blake2b(f"{seed}/{item[1]}".encode()).digest())


def _new_paragraphs(text: str, seen: set[int]) -> str:
    kept = []
    for paragraph in re.split(r"\n\s*\n", text):
        key = hash(re.sub(r"\W+", "", paragraph))
        if len(paragraph) < _SHORT or key not in seen:
            kept.append(paragraph.rstrip())
            seen.add(key)
    return "\n\n".join(kept).strip()


def _board_texts(seed: int, characters: int) -> list[Text]:
    """Prompts and answers of every role, about boards; different ones, of about so many characters in all."""
    from nlrl.agents.corpus import CorpusSettings, examples

    found: dict[str, None] = {}
    for example in examples(CorpusSettings(), seed):
        text = f"{example.messages[-1].content}\n{example.completion}"
        if text not in found:
            found[text] = None
            characters -= len(text)
        if characters < 0:
            return [("boards", text) for text in found]
    return []


# -- tokens ------------------------------------------------------------------------------------------------------------
def _trained(texts: list[Text]):
    from nlrl.backbones.tokenizer import train_tokenizer

    order = np.random.default_rng(0).permutation(len(texts))
    sample = _until((texts[i][1] for i in order), _TRAINED_ON)
    whole = [f" {word}" for word in (*CITIES, *range(10))]
    return train_tokenizer(sample, _WORDS, whole, VOCABULARY).backend_tokenizer


def _until(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text


def _encoded(tokenizer, texts: list[Text], most: int) -> list[Row]:
    """The texts in order, until there are `most` tokens."""
    rows: list[Row] = []
    for start in range(0, len(texts), 256):
        part = texts[start : start + 256]
        encoded = tokenizer.encode_batch([text for _, text in part], add_special_tokens=False)
        for (source, text), encoding in zip(part, encoded, strict=True):
            tokens = np.array([BOS, *encoding.ids], np.uint16)[:most]
            rows.append(Row(source, len(text.encode()), _is_held_out(text), tokens))
            most -= len(tokens)
            if most <= 0:
                return rows
    return rows


def _is_held_out(text: str) -> bool:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % HELD_OUT == 0


def _save(out: Path, rows: list[Row], tokenizer: str) -> None:
    np.savez_compressed(
        out,
        tokens=np.concatenate([row.tokens for row in rows]),
        offsets=np.cumsum([0, *(len(row.tokens) for row in rows)]),
        held_out=np.array([row.held_out for row in rows]),
        tokenizer=np.frombuffer(tokenizer.encode(), np.uint8),
    )
