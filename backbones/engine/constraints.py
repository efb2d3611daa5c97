"""Which tokens may come next, so that a whole answer obeys its `Constraint`.

1. `Grammars` compiles a constraint once; `Grammar.start` gives each answer a `Matcher`, which is asked for a mask
   before a token and told the token after it. The automata are llguidance's; all of this is work of the host.
2. A token is allowed if the text so far, with its bytes, can still become a text that obeys. Every tokenisation of such
   a text is allowed (without `no_forcing` llguidance insists on the tokenizer's own wherever the text is certain), so
   a softmax over the allowed logits is the model's own distribution, renormalised, and nothing else.
3. End tokens are allowed exactly where the text may end. Other special tokens, and logits without a token, never.
4. A matcher that cannot go on (`Matcher.error`) allows the end tokens alone: one bad row does not stop a batch.
5. A mask is a row of bits on the host, token t in bit t % 32 of word t // 32; `masked_logits` applies it on the device.
"""

from __future__ import annotations

import copy
import json
import re
import reprlib
from collections.abc import Iterable, Sequence
from functools import cache, cached_property, lru_cache

import numpy as np
import torch
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from torch import Tensor

from nlrl.backbones.language_model import Constraint
from nlrl.errors import NLRLError
from nlrl.kernels.sample.reference import allowed

_COMPILED = 1024
"""Grammars kept. The legal moves of a position are a constraint of their own."""
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
"""How JSON may be spaced: `{"a": 1}` or `{"a":1}`. Free spacing would let a small model write spaces for ever."""
_UTF8 = [bytes([byte]) for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]
"""Every byte that occurs in UTF-8. A tokenizer that has them all can write any text, from any place within it."""
_PLACE = re.compile(r"^at \d+\(\d+\): ")
_NAMES = reprlib.Repr()
_NAMES.maxstring, _NAMES.maxtuple = 80, 4


class Grammars:
    """The constraints of one tokenizer, compiled and kept.

    Args:
        tokenizer: PreTrainedTokenizerFast, byte-level or with byte fallback.
        vocabulary: number of logits, at least the tokenizer's size.
        end_tokens: tokens that end an answer; they must be special ones (checked by the first `compile`).
    """

    def __init__(self, tokenizer, vocabulary: int, end_tokens: Iterable[int]):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._ends = frozenset(end_tokens)
        self._kept = lru_cache(_COMPILED)(self._compiled)

    def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of a constraint; equal constraints share one. Any thread may call it.

        Regular expressions are those of Rust's `regex`: no look-around, no back-references, `.` is not a newline,
        `^` and `$` at the ends only and without effect. JSON is on one line, with at most one space after `,` and `:`
        unless the schema's "x-guidance" says otherwise; properties come in the schema's order.

        Raises:
            NLRLError: nothing can obey the constraint, or it, the tokenizer or an end token cannot be used.
        """
        _check_type(constraint)
        return self._kept(constraint)

    def _compiled(self, constraint: Constraint) -> Grammar:
        text = lark(constraint)
        if constraint.kind == "choice":
            self._check_writable(constraint)
        # The parser's state in a message would be pages long.
        limits = LLParserLimits(verbose_errors=False)
        root = Matcher(constraint, self._ends, LLMatcher(self._trie, text, log_level=0, limits=limits))
        if not root.error:
            # Finds a language without texts; the states it visits are kept for the matchers to come.
            root.fill(np.empty(-(-self._vocabulary // 32), np.int32))
        if root.error:
            raise _refusal(constraint, root.error)
        return Grammar(root)

    @cached_property
    def _trie(self) -> LLTokenizer:
        if not self._ends:
            raise NLRLError("constraints need an end token: the model and its tokenizer name none")
        try:
            trie = LLTokenizer(_serialised(self._tokenizer), n_vocab=self._vocabulary, eos_token=sorted(self._ends))
        except (ValueError, AttributeError) as error:
            raise NLRLError(f"constraints cannot be used with this tokenizer: {error}") from error
        plain = [token for token in sorted(self._ends) if not trie.is_special_token(token)]
        if plain:
            # As a piece of text and as the end of it at once, a token would cut answers short.
            raise NLRLError(f"constraints need end tokens that are special tokens; these are text: {plain}")
        return trie

    @cached_property
    def _pieces(self) -> frozenset[bytes]:
        """The bytes of every token of text."""
        trie = self._trie
        return frozenset(trie.decode_bytes([i]) for i in range(trie.vocab_size) if not trie.is_special_token(i))

    def _check_writable(self, constraint: Constraint) -> None:
        if self._pieces.issuperset(_UTF8):
            return
        for text in constraint.value:
            if not _is_concatenation(text.encode(), self._pieces):
                raise _refusal(constraint, f"the tokenizer cannot write {text!r}")


class Grammar:
    """A compiled constraint."""

    def __init__(self, root: Matcher):
        self._root = root

    def start(self) -> Matcher:
        """A matcher at the beginning of an answer."""
        return self._root.fork()


class Matcher:
    """How far one answer has come in its grammar. For one thread at a time; made by `Grammar.start` and `fork`."""

    __slots__ = ("_constraint", "_ends", "_inner")

    def __init__(self, constraint: Constraint, ends: frozenset[int], inner: LLMatcher):
        self._constraint = constraint
        self._ends = ends
        self._inner = inner

    def fill(self, mask: np.ndarray | Tensor) -> None:
        """Sets the bits of the tokens that may come next and clears all others.

        Args:
            mask: `(ceil(vocabulary / 32),)` int32, contiguous, on the host.
        Raises:
            ValueError: the mask is anything else.
        """
        row = _host(mask, 1)
        self._inner.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)

    def accept(self, token: int) -> None:
        """Goes on by the token that was drawn.

        Raises:
            NLRLError: the token was not allowed. The matcher stays where it was.
        """
        taken = (self.done and token in self._ends) or self._inner.try_consume_tokens([token]) == 1
        if not taken:
            raise _refusal(self._constraint, f"token {token} is not allowed here")

    @property
    def done(self) -> bool:
        """Whether nothing but an end token may follow."""
        return self._inner.is_stopped()

    @property
    def error(self) -> str:
        """Why the answer cannot be completed; empty if it can. Known after a `fill`.

        It happens where a pattern outgrows llguidance's limits, and where a tokenizer that lacks bytes has come to a
        place from which it cannot go on.
        """
        return _reason(self._inner.get_error()) if self._inner.is_error() else ""

    def fork(self) -> Matcher:
        """A matcher at the same place that goes its own way."""
        return Matcher(self._constraint, self._ends, self._inner.deep_copy())


def lark(constraint: Constraint) -> str:
    """The constraint in llguidance's form of Lark: what `Grammars` compiles, and what vLLM's llguidance is given.

    Raises:
        NLRLError: it is none.
    """
    _check_type(constraint)
    return f'%llguidance {{"no_forcing": true}}\n{_RULES[constraint.kind](constraint)}'


def fill_batch(matchers: Sequence[Matcher | None], bitmask: Tensor) -> None:
    """`Matcher.fill` of many rows, on several threads.

    Args:
        matchers: row i's, or None for a row where everything is allowed, as are the rows beyond the last matcher.
            A matcher has one row.
        bitmask: `(rows, ceil(vocabulary / 32))` int32, contiguous, on the host.
    Raises:
        ValueError: the bitmask is anything else, or has too few rows.
    """
    words = _host(bitmask, 2)
    if len(matchers) > len(words):
        raise ValueError(f"{len(matchers)} matchers, but the bitmask has {len(words)} rows")
    jobs = [(matcher._inner, row) for row, matcher in enumerate(matchers) if matcher is not None]
    if len(jobs) < len(words):
        words[:] = -1
    if jobs:
        _executor().unsafe_compute_mask_ptr(jobs, words.ctypes.data, words.strides[0], len(words))


def masked_logits(logits: Tensor, bitmask: Tensor) -> Tensor:
    """Logits with -inf where the bitmask forbids; fit for a CUDA graph.

    Args:
        logits: float32 `(batch, vocabulary)`.
        bitmask: int32 `(batch, ceil(vocabulary / 32))`, on the same device.
    """
    return logits.masked_fill(~allowed(bitmask, logits.shape[1]), -torch.inf)


def _serialised(tokenizer) -> str:
    """The JSON of a `tokenizers.Tokenizer`; of the one inside, where it is inside another."""
    backend = copy.copy(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    return backend.to_str()


@cache
def _executor() -> LLExecutor:
    return LLExecutor()


def _host(mask: np.ndarray | Tensor, dims: int) -> np.ndarray:
    """The mask as an array over the same memory."""
    if isinstance(mask, Tensor) and mask.is_cpu:
        mask = mask.numpy()
    if not (isinstance(mask, np.ndarray) and mask.dtype == np.int32 and mask.ndim == dims and mask.flags.c_contiguous):
        raise ValueError(f"a mask must be contiguous int32 with {dims} dimension(s), on the host")
    return mask


def _check_type(constraint: Constraint) -> None:
    """Before the cache is asked: a list has no hash."""
    if constraint.kind not in _RULES:
        raise _refusal(constraint, f"the kind must be one of {', '.join(_RULES)}")
    value, texts = constraint.value, constraint.kind == "choice"
    if texts and not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
        raise _refusal(constraint, "the value must be a tuple of texts")
    if not texts and not isinstance(value, str):
        raise _refusal(constraint, "the value must be a text")


def _choice_rule(constraint: Constraint) -> str:
    if not constraint.value:
        raise _refusal(constraint, "there is no choice")
    try:
        "".join(constraint.value).encode()
    except UnicodeEncodeError as error:
        raise _refusal(constraint, f"a choice is no valid text: {error}") from error
    # One terminal: a rule per choice would make the parser keep a lexeme of each.
    return f"start: CHOICE\nCHOICE: {' | '.join(json.dumps(text) for text in dict.fromkeys(constraint.value))}"


def _regex_rule(constraint: Constraint) -> str:
    return f"start: /{regex_to_lark(str(constraint.value))}/"


def _schema_rule(constraint: Constraint) -> str:
    try:
        schema = json.loads(str(constraint.value))
    except (ValueError, RecursionError) as error:
        raise _refusal(constraint, f"the schema is no JSON: {error}") from error
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema = {"x-guidance": _SPACING, **schema}
    return f"start: %json {json.dumps(schema)}"


_RULES = {"choice": _choice_rule, "regex": _regex_rule, "json_schema": _schema_rule}


def _is_concatenation(text: bytes, pieces: frozenset[bytes]) -> bool:
    reached, longest = [True], max(map(len, pieces), default=0)
    for end in range(1, len(text) + 1):
        starts = range(max(0, end - longest), end)
        reached.append(any(reached[start] and text[start:end] in pieces for start in starts))
    return reached[-1]


def _refusal(constraint: Constraint, why: str) -> NLRLError:
    return NLRLError(f"constraint {constraint.kind} {_NAMES.repr(constraint.value)}: {why}")


def _reason(error: str) -> str:
    """llguidance's message without its drawing of the place."""
    if error.startswith("NoExtension"):
        return "no text that the tokenizer can write obeys it"
    lines = error.splitlines()
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or [_PLACE.sub("", lines[0])])[0]
