"""One weight set at work: its store, scheduler and runner, and what becomes of its requests.

1. A step of a lane is: take rows for waiting sequences, read chunks of prompts, run one burst of decoding, hand out
   what is finished.
2. What was drawn comes back in flights (`ledger`). With `overlap` the next burst is launched before the last one's
   tokens are looked at, so the device has always something to do. A row whose answer has ended meanwhile does nothing
   there; one that was withdrawn runs in vain. Whatever uses its row and pages next comes after that on the device.
3. All flights land first where the host must know what was drawn: before sequences move or give way, and always while
   somebody watches (stop strings, streaming) or needs every token (constraints, alternatives).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nlrl.backbones.answers import cut_at_stop
from nlrl.backbones.engine.constraints import fill_batch
from nlrl.backbones.engine.ledger import EVERY_TOKEN, WATCHED, Flight, Ledger
from nlrl.backbones.engine.prefix import PrefixCache
from nlrl.backbones.engine.runner import CALM, Ends, Features, Runner
from nlrl.backbones.engine.scheduler import Chunk, Scheduler
from nlrl.backbones.engine.sequence import Sequence
from nlrl.backbones.engine.store import Store, pages_for
from nlrl.backbones.engine.stream import tell
from nlrl.backbones.language_model import Completion

READ_BUDGET = {"cpu": 2_048, "cuda": 131_072}
"""Prompt tokens read between two bursts; `CALM` times as many where nobody draws and none is awaited at once."""


class Lane:
    """Used by the engine's thread only."""

    def __init__(
        self, store: Store, runner: Runner, ends: frozenset[int], decode, version: str, chunk_tokens: int, overlap: bool
    ):
        """Args: decode: token lists to texts; version: of the weights; overlap: burst after burst without a look."""
        self.store, self.runner, self.version, self.overlap = store, runner, version, overlap
        self.prefix = PrefixCache(store)
        self.scheduler = Scheduler(store, self.prefix, chunk_tokens)
        self.decode = decode
        self.book = Ledger(store.rows, store.length, ends)
        self._flights: deque[Flight] = deque()
        self._read_budget = READ_BUDGET.get(runner.device.type, READ_BUDGET["cuda"])
        self.counts = dict.fromkeys(("prompt_tokens", "read_tokens", "generated_tokens", "completed", "cancelled"), 0)

    def step(self, admits: bool) -> bool:
        """One step; admits: whether waiting sequences may start. False if there was nothing to do."""
        worked = self._start_reading(admits)
        if self.scheduler.running:
            self._burst()
        if not self.scheduler.running:
            self._flights.clear()  # they carry nobody any more
        return worked

    def _start_reading(self, admits: bool) -> bool:
        """Takes in and reads. While nobody runs, the device reads one pass and the host prepares the next meanwhile."""
        by_pass = self.overlap and not self.scheduler.running
        most, left = self._read_budget, self._read_budget
        if by_pass:
            most, left = self.runner.pass_tokens, CALM * left
        worked = self.scheduler.busy
        while left > 0:
            started = admits and self._admit(most if by_pass else math.inf)
            left -= self._read(min(most, left))
            worked = worked or started
            if not by_pass or not started:
                break
        return worked

    def withdraw(self, sequence: Sequence) -> None:
        """Ends a sequence that nobody waits for any more."""
        if sequence.over:
            return
        self.counts["cancelled"] += 1
        sequence.over = True
        if sequence.row < 0:
            self.scheduler.waiting.remove(sequence)
            return
        self.runner.rows.stop([sequence.row])
        self.book.leave(sequence.row)
        self.scheduler.free(sequence)

    def swap(self, weights: Mapping[str, Tensor] | None, version: str) -> None:
        """New weights, in place; only while the scheduler is not busy. None: they are in the model already."""
        if weights is not None:
            own = self.runner.model.state_dict(keep_vars=True)
            with torch.no_grad():
                for key, tensor in weights.items():  # staged, so that the next one is read while this one travels
                    staged = tensor.pin_memory() if own[key].is_cuda and not tensor.is_cuda else tensor
                    own[key].copy_(staged, non_blocking=True)
        self.prefix.clear()
        if self.runner.cpu is not None:
            self.runner.cpu.refresh()
        self.version = version

    def _admit(self, tokens: float) -> bool:
        started = self.scheduler.admit(tokens)
        if not started:
            return False
        self.store.flush()
        kept = [(entry.slot, s.row) for s, entry in started if entry is not None and entry.slot >= 0]
        if kept:
            self.store.restore(*zip(*kept, strict=True))
        ready = [(s, entry.logits) for s, entry in started if entry is not None and entry.length == len(s.tokens)]
        if ready:
            sequences, logits = zip(*ready, strict=True)
            self._start_drawing([(sequences, torch.stack(logits))])
        return True

    def _read(self, tokens: int) -> int:
        """Reads about so many tokens of prompts; returns how many they were."""
        chunks = self.scheduler.chunks(tokens)
        if not chunks:
            return 0
        ends = self._survivors(chunks)
        entries = self.scheduler.have_read([chunk for chunk in chunks if chunk.sequence.row >= 0])
        behind = {s: row for group, rows in ends if entries for s, row in zip(group, rows, strict=True)}
        for chunk, entry in entries:
            entry.logits = behind[chunk.sequence].clone() if chunk.sequence in behind else entry.logits
        self.store.flush()
        fixed = [(chunk.sequence.row, entry.slot) for chunk, entry in entries if entry.slot >= 0]
        if fixed:
            self.store.keep(*zip(*fixed, strict=True))
        read = sum(chunk.end - chunk.start for chunk in chunks)
        self.counts["read_tokens"] += read
        self._start_drawing(ends)
        return read

    def _survivors(self, chunks: list[Chunk]) -> Ends:
        """Reads chunks; if memory does not suffice, one by one, and those that fail alone are refused."""
        self.store.flush()
        try:
            return self.runner.read(chunks)
        except torch.OutOfMemoryError:
            if len(chunks) > 1:
                half = len(chunks) // 2
                return self._survivors(chunks[:half]) + self._survivors(chunks[half:])
        torch.cuda.empty_cache()
        sequence = chunks[0].sequence
        self.scheduler.free(sequence)
        sequence.over = True
        sequence.ticket.finish(self.refusal(sequence, "the device's memory does not suffice for its prompt"))
        return []

    def refusal(self, sequence: Sequence, error: str) -> Completion:
        return Completion(
            "", finish_reason="error", error=error, weight_version=self.version, prompt_tokens=len(sequence.prompt)
        )

    def _start_drawing(self, groups: Ends) -> None:
        """First tokens of sequences whose prompts are read."""
        for sequences, logits in groups:
            for sequence in sequences:
                self.scheduler.run(sequence)
            rows = self.book.seat(sequences)
            features = self.book.features(rows)
            self._fill_masks(sequences, features)
            self.runner.first(sequences, logits, features)
            self._note_top(sequences, logits, features)
            self._flights.append(self.book.depart(rows, 1, self.runner.results(rows, 1, features)))
        self._look(flying=len(self._flights))

    def _burst(self) -> None:
        """Launches a burst and then, while the device is at it, hands out what was drawn before."""
        steps = self._make_way()
        launched = self._launch(steps) if steps else False
        self._look(flying=1 if launched else 0)

    def _make_way(self) -> int:
        """Sees to it that the running sequences lie in the lowest rows and have pages for the next burst; both may need
        to know first what has been drawn. Returns the burst's steps; 0 if nobody runs any more."""
        running = self.scheduler.running
        if self.scheduler.sparse:
            self._land()
            self._compact()
        while running:
            rows = self._running_rows()
            steps = self._steps(rows)
            if self.scheduler.reserve(rows, self.book.slots(rows, steps)):
                return steps
            if self._flights:
                self._land()
            else:
                self._put_back(self.scheduler.give_way())
        return 0

    def _launch(self, steps: int) -> bool:
        """False if all that the running sequences may draw has been asked for already."""
        rows = self._running_rows()
        rows = rows[self.book.unplanned(rows) > 0]
        if not len(rows):
            return False
        features = self.book.features(rows)
        sequences = [self.scheduler.running[row] for row in rows.tolist()] if features.mask or features.top else []
        self.store.flush()
        self._fill_masks(sequences, features)
        self.runner.burst(rows, int(self.book.slots(rows, steps).max()), features, steps)
        if features.top:
            self._note_top(sequences, self.runner.logits_of(rows.tolist()), features)
        self._flights.append(self.book.depart(rows, steps, self.runner.results(rows, steps, features)))
        return True

    def _running_rows(self) -> np.ndarray:
        return np.fromiter(self.scheduler.running, np.int64, len(self.scheduler.running))

    def _steps(self, rows: np.ndarray) -> int:
        """More where nobody waits for a row, nobody watches, and pages suffice: a look costs the host milliseconds, in
        which the device has nothing to do, unless it has been given the next burst already."""
        asked, calm = self.book.asked(rows), self.runner.most_steps(calm=True)
        if asked & EVERY_TOKEN:
            return 1
        waited_for = self.overlap or self.scheduler.waiting or self.scheduler.reading or asked & WATCHED
        enough = not self.store.has_pages or self.store.pages.free >= len(rows) * (pages_for(calm) + 1)
        most = calm if enough and not waited_for else self.runner.most_steps(calm=False)
        return max(1, min(most, int(self.book.unplanned(rows).max())))

    def _put_back(self, sequence: Sequence) -> None:
        row = sequence.last_row
        self.runner.rows.stop([row])
        sequence.expectation = float(self.book.expectation[row])
        sequence.again(*self.book.answer(row))
        self.book.leave(row)
        self.scheduler.waiting.add(sequence, first=True)

    def _compact(self) -> None:
        if moves := self.scheduler.compact():
            old, new = map(list, zip(*moves, strict=True))
            for rows in (self.store, self.runner.rows, self.book):
                rows.move(old, new)

    def _fill_masks(self, sequences: Many[Sequence], features: Features) -> None:
        if not features.mask:
            return
        bound = [s for s in sequences if s.matcher is not None]
        mask = torch.empty((len(bound), self.runner.rows.allowed.shape[1]), dtype=torch.int32)
        fill_batch([s.matcher for s in bound], mask)  # pyright: ignore[reportArgumentType]
        where = torch.tensor([s.row for s in bound]).to(self.runner.device)
        self.runner.rows.allowed[where] = mask.to(self.runner.device)
        if loose := [s.row for s in sequences if s.matcher is None]:
            self.runner.rows.allowed[torch.tensor(loose).to(self.runner.device)] = -1

    def _note_top(self, sequences: Many[Sequence], logits: Tensor, features: Features) -> None:
        for sequence, row in zip(sequences, logits, strict=True) if features.top else ():
            if sequence.sampling.top_logprobs:
                best = row.float().log_softmax(-1).topk(min(sequence.sampling.top_logprobs, len(row)))
                sequence.top.append(tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def _look(self, flying: int) -> None:
        """Lands all flights but the last few; none flies on where somebody has to see a burst before the next one."""
        everything = not self.overlap or self.book.asked(self._running_rows()) & (EVERY_TOKEN | WATCHED)
        self._land(0 if everything else flying)

    def _land(self, flying: int = 0) -> None:
        """Notes what flights have brought, all but the last few, and ends what is finished."""
        while len(self._flights) > flying:
            rows, done, tokens = self.book.land(self._flights.popleft())
            self.counts["generated_tokens"] += tokens
            stopped = self._watch(rows, done) if self.book.asked(rows) & (EVERY_TOKEN | WATCHED) else set()
            self._finish(rows[done | np.isin(rows, list(stopped))].tolist(), stopped)

    def _watch(self, rows: np.ndarray, done: np.ndarray) -> set[int]:
        """Tells matchers and listeners what is new; returns rows that reached a stop string."""
        stopped = set()
        for row, is_done in zip(rows.tolist(), done.tolist(), strict=True):
            sequence = self.scheduler.running[row]
            if sequence.matcher is not None:
                sequence.matcher.accept(int(self.book.drawn[row, self.book.count[row] - 1]))  # pyright: ignore
            if sequence.watched and tell(sequence, *self.book.answer(row), self.decode, is_done):
                stopped.add(row)
        return stopped

    def _finish(self, rows: Many[int], stopped: Iterable[int]) -> None:
        if not rows:
            return
        self.runner.rows.stop(list(stopped))
        answers = [self.book.answer(row) for row in rows]
        texts = self.decode([tokens for tokens, _ in answers])
        expected = self.book.expectation[rows].tolist()
        for row, (tokens, logprobs), text, number in zip(rows, answers, texts, expected, strict=True):
            sequence = self.scheduler.running[row]
            answer = self._completion(sequence, tokens, logprobs, text, number)
            self.scheduler.free(sequence)
            self.book.leave(row)
            sequence.over = True
            self.counts["completed"] += 1
            self.counts["prompt_tokens"] += len(sequence.prompt)
            sequence.ticket.finish(answer)

    def _completion(self, sequence: Sequence, tokens: list[int], logprobs: list[float], text: str, number: float):
        ended = tokens[-1] in self.book.ends and not sequence.sampling.ignore_end
        answer = Completion(
            text=text,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            finish_reason="stop" if ended else "length",
            weight_version=self.version,
            prompt_tokens=len(sequence.prompt),
            expectation=None if math.isnan(number) else number,
            top_logprobs=tuple(sequence.top),
            timing=sequence.timing,
        )
        if sequence.sampling.stop:
            answer = cut_at_stop(answer, sequence.sampling.stop, self.decode)
        if error := getattr(sequence.matcher, "error", ""):
            answer = replace(answer, finish_reason="error", error=error)
        return answer
