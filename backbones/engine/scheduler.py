"""Who gets a row, what is read next, and who must give way. Host only: it moves no tensor, the `Store` does.

1. Clients take turns; a client's requests are served in order.
2. A prompt is read in chunks that end at its marks. While one sequence reads towards a mark, others that need it wait
   and start from it, so n equal prompts are read once.
3. When pages run out, kept states go first, then the sequence that came last gives up its row, to be read again later.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace

import numpy as np

from nlrl.backbones.engine.prefix import Entry, Key, PrefixCache
from nlrl.backbones.engine.sequence import Sequence
from nlrl.backbones.engine.store import Store, pages_for
from nlrl.backbones.kv_cache import PAGE

LOOK_AHEAD = 1024
"""Waiting sequences looked at in one pass."""


@dataclass
class Chunk:
    """Tokens of one sequence to be read in one call."""

    sequence: Sequence
    start: int
    end: int

    @property
    def completes(self) -> bool:
        return self.end == len(self.sequence.tokens)


class Waiting:
    """Queues by client, served in turn."""

    def __init__(self):
        self._queues: dict[str, deque[Sequence]] = {}
        self._size = 0
        self.equal: Counter[Key] = Counter()
        """Waiting sequences by prompt."""

    def __len__(self) -> int:
        return self._size

    def add(self, sequence: Sequence, first: bool = False) -> None:
        queue = self._queues.setdefault(sequence.client, deque())
        queue.appendleft(sequence) if first else queue.append(sequence)
        self.equal[sequence.key] += 1
        self._size += 1

    def remove(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.client]
        queue.remove(sequence)
        self._left(sequence)

    def turns(self, most: int) -> Iterator[Sequence]:
        """Up to `most` sequences, one of each client in turn; each is removed, and must be put back by `add(...,
        first=True)` if it cannot start."""
        clients = deque(self._queues)
        for _ in range(most):
            if not clients:
                return
            client = clients.popleft()
            queue = self._queues[client]
            sequence = queue.popleft()
            clients.append(client)
            self._left(sequence)
            if not queue:
                clients.pop()
            elif len(self._queues) > 1:  # the next pass begins with another client
                self._queues[client] = self._queues.pop(client)
            yield sequence

    def _left(self, sequence: Sequence) -> None:
        self._size -= 1
        self.equal[sequence.key] -= 1
        if not self.equal[sequence.key]:
            del self.equal[sequence.key]
        if not self._queues[sequence.client]:
            del self._queues[sequence.client]


class Scheduler:
    """The sequences of one weight set."""

    def __init__(self, store: Store, prefix: PrefixCache, chunk_tokens: int):
        self.store, self.prefix, self.chunk_tokens = store, prefix, chunk_tokens
        self.waiting = Waiting()
        self.reading: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        """By row."""
        self._free_rows = list(range(store.rows))
        self._pending: set[Key] = set()
        """Marks and ends of prompts that somebody reads towards."""
        self.preemptions = self.hit_tokens = self.asked_tokens = 0

    @property
    def busy(self) -> bool:
        return bool(self.reading or self.running)

    def fits(self, sequence: Sequence) -> bool:
        """Whether it could run if it were alone."""
        return not self.store.has_pages or pages_for(sequence.slots) <= self.store.pages.total

    def admit(self, budget: float) -> list[tuple[Sequence, Entry | None]]:
        """Gives rows and pages to waiting sequences until there are so many tokens to be read at once; says which kept
        state each starts from."""
        started, held = [], []
        budget -= sum(map(self._next_tokens, self.reading))
        if budget <= 0:
            return []
        for sequence in self.waiting.turns(LOOK_AHEAD) if self._free_rows else ():
            entry = self.prefix.longest(sequence.tokens, {*sequence.marks, len(sequence.prompt)})
            missing = self._missing(sequence, entry)
            if any(key in self._pending for key in missing):
                held.append(sequence)
                continue
            if not self._start(sequence, entry):
                held.append(sequence)
                break
            self._pending.update(missing)
            started.append((sequence, entry))
            budget -= self._next_tokens(sequence)
            if not self._free_rows or budget <= 0:
                break
        for sequence in reversed(held):
            self.waiting.add(sequence, first=True)
        return started

    def chunks(self, budget: int) -> list[Chunk]:
        """What is to be read next, at most `budget` tokens (one chunk at least); first come, first read."""
        out = []
        for sequence in self.reading:
            chunk = Chunk(sequence, sequence.read, self._next_stop(sequence))
            if out and chunk.end - chunk.start > budget:
                break
            budget -= chunk.end - chunk.start
            out.append(chunk)
        return out

    def have_read(self, chunks: Iterable[Chunk]) -> list[tuple[Chunk, Entry]]:
        """Notes that chunks have been read; returns the entries that are to be filled with the states they ended in."""
        entries = []
        for chunk in chunks:
            sequence = chunk.sequence
            sequence.read = chunk.end
            if chunk.end not in self._stops(sequence):
                continue
            entry = self._entry(chunk)
            entries += [(chunk, entry)] if entry is not None else []
        return entries

    def run(self, sequence: Sequence) -> None:
        """From reading to drawing."""
        self._has_read(sequence)
        self.running[sequence.row] = sequence

    def reserve(self, rows: np.ndarray, slots: np.ndarray) -> bool:
        """Sees to it that running rows have pages for so many tokens each; False if there are not enough, even without
        kept states: then nobody got any."""
        if not self.store.has_pages:
            return True
        missing = pages_for(slots) - self.store.held[rows]
        rows, missing = rows[missing > 0], missing[missing > 0]
        if not len(rows):
            return True
        if not self._make_room(int(missing.sum())):
            return False
        new, end = self.store.pages.take(int(missing.sum())), 0
        self.store.extend(rows, missing, new)
        for row, count in zip(rows.tolist(), missing.tolist(), strict=True):
            self.running[row].pages += new[end : end + count]
            end += count
        return True

    def give_way(self) -> Sequence:
        """Takes row and pages back from the running sequence that came last; the caller puts it back into the queue."""
        last = next(reversed(self.running.values()))
        self.free(last)
        self.preemptions += 1
        return last

    def free(self, sequence: Sequence) -> None:
        """Takes row and pages back."""
        if self.running.pop(sequence.row, None) is None and sequence in self.reading:
            self._has_read(sequence)
        heappush(self._free_rows, sequence.row)
        self.store.pages.release(sequence.pages)
        sequence.last_row, sequence.row, sequence.pages = sequence.row, -1, []

    @property
    def sparse(self) -> bool:
        """Whether moving the running sequences to the lowest rows would halve the rows in use at least, and nobody is
        reading."""
        highest = max(self.running, default=-1) + 1
        return not self.reading and highest >= 2 * len(self.running) and highest > 8

    def compact(self) -> list[tuple[int, int]]:
        """Moves the running sequences to the lowest rows where they are sparse; says (old, new) rows."""
        moves = []
        for old in sorted(self.running, reverse=True) if self.sparse else ():
            if not self._free_rows or self._free_rows[0] >= old:
                break
            new = heapreplace(self._free_rows, old)
            sequence = self.running.pop(old)
            sequence.row = new
            self.running[new] = sequence
            moves.append((old, new))
        return moves

    def _start(self, sequence: Sequence, entry: Entry | None) -> bool:
        read = 0 if entry is None else entry.length
        if self.store.has_pages:
            pages = self._pages(sequence, entry)
            if pages is None:
                return False
            sequence.pages = pages
        sequence.row, sequence.read = heappop(self._free_rows), read
        self.store.hold(sequence.row, sequence.pages)
        self.reading.append(sequence)
        self.hit_tokens += read
        self.asked_tokens += len(sequence.tokens)
        return True

    def _pages(self, sequence: Sequence, entry: Entry | None) -> list[int] | None:
        """Pages for what has to be read: whole ones of the entry shared, its partly filled one copied."""
        shared = entry.pages[: entry.length // PAGE] if entry is not None else []
        self.store.pages.share(shared)  # before room is made: an eviction must not free them
        if not self._make_room(pages_for(len(sequence.tokens)) - len(shared)):
            self.store.pages.release(shared)
            return None
        new = self.store.pages.take(pages_for(len(sequence.tokens)) - len(shared))
        if entry is not None and entry.length % PAGE:
            self.store.copy_page(entry.pages[-1], new[0])
        return [*shared, *new]

    def _make_room(self, pages: int) -> bool:
        while self.store.pages.free < pages:
            if not self.prefix.evict():
                return False
        return True

    def _entry(self, chunk: Chunk) -> Entry | None:
        key = chunk.sequence.key_at(chunk.end)
        self._pending.discard(key)
        known = self.prefix.get(key)
        if known is not None:
            return known if chunk.completes and known.logits is None else None
        pages = chunk.sequence.pages[: pages_for(chunk.end)] if self.store.has_pages else []
        return self.prefix.new(key, chunk.end, pages, self.store.has_pages and chunk.end % PAGE != 0)

    def _has_read(self, sequence: Sequence) -> None:
        self.reading.remove(sequence)
        self._pending.difference_update(self._missing(sequence, None))

    def _missing(self, sequence: Sequence, entry: Entry | None) -> list[Key]:
        """Its marks and its prompt's end, as far as they lie behind the entry."""
        start = 0 if entry is None else entry.length
        keys = [sequence.key_at(mark) for mark in sequence.marks if mark > start]
        return [*keys, sequence.key] if start < len(sequence.prompt) else keys

    def _stops(self, sequence: Sequence) -> list[int]:
        """Where its state is wanted by others: its marks, and the end of its prompt if an equal one waits or came
        before."""
        end = len(sequence.prompt)
        wanted = self.waiting.equal[sequence.key] or sequence.key in self.prefix
        return [*sequence.marks, end] if wanted else list(sequence.marks)

    def _next_tokens(self, sequence: Sequence) -> int:
        return min(len(sequence.tokens) - sequence.read, self.chunk_tokens)

    def _next_stop(self, sequence: Sequence) -> int:
        farthest = min(sequence.read + self.chunk_tokens, len(sequence.tokens))
        return min((stop for stop in self._stops(sequence) if sequence.read < stop < farthest), default=farthest)
