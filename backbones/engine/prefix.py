"""States kept at marks, for later requests that begin with the same tokens.

An entry holds its pages (with the holders counted), the fixed part of a row, and, where the mark ends a prompt, the
logits behind it. The least recently used entry goes first when memory is short.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from nlrl.backbones.engine.store import Store

Key = bytes


@dataclass(eq=False)
class Entry:
    """What is kept of a prompt's first `length` tokens."""

    key: Key
    length: int
    pages: list[int]
    slot: int
    """Its place in `Store.kept`; -1 for models whose rows have no fixed part."""
    logits: Tensor | None = None
    """`(vocab,)` float32, if the mark ended a prompt."""


class PrefixCache:
    """Entries by the tokens they hold."""

    def __init__(self, store: Store):
        self._store = store
        self._entries: OrderedDict[Key, Entry] = OrderedDict()
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    @property
    def nbytes(self) -> int:
        """May be asked for by any thread."""
        entries = list(self._entries.values())  # at once: the engine's thread goes on meanwhile
        pages = {page for entry in entries for page in entry.pages}
        slots = sum(entry.slot >= 0 for entry in entries)
        return len(pages) * self._store.page_nbytes + slots * self._store.row_nbytes

    def longest(self, tokens: np.ndarray, lengths: Iterable[int]) -> Entry | None:
        """The entry of the longest of these lengths that there is. One that ends where the tokens do serves only if it
        has the logits behind it."""
        for length in sorted(lengths, reverse=True):
            entry = self._entries.get(key_of(tokens, length))
            if entry is not None and (length < len(tokens) or entry.logits is not None):
                self._entries.move_to_end(entry.key)
                return entry
        return None

    def new(self, key: Key, length: int, pages: list[int], partial: bool) -> Entry | None:
        """An entry that shares `pages`; a partly filled last one is copied at the next flush. The caller fills in the
        fixed part of the row (`Entry.slot`). None where there is no memory for it."""
        store = self._store
        if store.has_rows and not self._room(lambda: bool(store.free_kept)):
            return None
        if partial and not self._room(lambda: store.pages.free > 0):
            return None
        whole = pages[:-1] if partial else list(pages)
        store.pages.share(whole)
        if partial:
            whole += store.pages.take(1)
            store.copy_page(pages[-1], whole[-1])
        entry = Entry(key, length, whole, store.free_kept.pop() if store.has_rows else -1)
        self._entries[key] = entry
        return entry

    def evict(self) -> bool:
        """Drops the least recently used entry; False if there is none."""
        if not self._entries:
            return False
        _, entry = self._entries.popitem(last=False)
        self._drop(entry)
        self.evictions += 1
        return True

    def clear(self) -> None:
        """Forgets everything: the weights have changed."""
        for entry in self._entries.values():
            self._drop(entry)
        self._entries.clear()

    def _room(self, there_is) -> bool:
        while not there_is():
            if not self.evict():
                return False
        return True

    def _drop(self, entry: Entry) -> None:
        self._store.pages.release(entry.pages)
        if entry.slot >= 0:
            self._store.free_kept.append(entry.slot)


def key_of(tokens: np.ndarray, length: int) -> Key:
    """tokens: int32."""
    return tokens[:length].tobytes()
