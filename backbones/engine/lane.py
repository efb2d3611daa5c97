"""One weight set at work: its store, scheduler and runner, and what becomes of its requests.

A step of a lane is: take rows for waiting sequences, read chunks of prompts, run one burst of decoding, hand out what
is finished. What was drawn is kept in arrays by row, so that a burst costs the host the same few calls for one row and
for a thousand; only rows that somebody watches (stop strings, streaming, constraints) are looked at one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nlrl.backbones.answers import cut_at_stop
from nlrl.backbones.engine.constraints import fill_batch
from nlrl.backbones.engine.prefix import PrefixCache
from nlrl.backbones.engine.runner import Features, Runner
from nlrl.backbones.engine.scheduler import Chunk, Scheduler
from nlrl.backbones.engine.sequence import Sequence
from nlrl.backbones.engine.store import Store, pages_for
from nlrl.backbones.engine.stream import tell
from nlrl.backbones.language_model import Completion

READ_BUDGET = {"cpu": 2_048, "cuda": 131_072}
"""Prompt tokens read between two bursts."""


class Lane:
    """Used by the engine's thread only."""

    def __init__(self, store: Store, runner: Runner, ends: frozenset[int], decode, version: str, chunk_tokens: int):
        """Args: decode: token lists to texts; version: of the weights."""
        self.store, self.runner, self.version = store, runner, version
        self.prefix = PrefixCache(store)
        self.scheduler = Scheduler(store, self.prefix, chunk_tokens)
        self.decode = decode
        self._ends = np.array(sorted(ends))
        self._read_budget = READ_BUDGET.get(runner.device.type, READ_BUDGET["cuda"])
        length = store.length
        self._drawn = np.zeros((store.rows, length), np.int32)
        self._logprobs = np.zeros((store.rows, length), np.float32)
        self._count = np.zeros(store.rows, np.int64)
        self._prompt = np.zeros(store.rows, np.int64)
        self._limit = np.zeros(store.rows, np.int64)
        self._ignores_end = np.zeros(store.rows, np.bool_)
        self.counts = dict.fromkeys(("prompt_tokens", "read_tokens", "generated_tokens", "completed", "cancelled"), 0)

    def step(self, admits: bool) -> bool:
        """One step; admits: whether waiting sequences may start. False if there was nothing to do."""
        started = admits and self._admit()
        if not self.scheduler.busy:
            return started
        self._read()
        if self.scheduler.running:
            self._burst()
        return True

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
        self.scheduler.free(sequence)

    def swap(self, weights: Mapping[str, Tensor] | None, version: str) -> None:
        """New weights, in place; only while the scheduler is not busy. None: they are in the model already."""
        if weights is not None:
            own = self.runner.model.state_dict(keep_vars=True)
            with torch.no_grad():
                for key, tensor in weights.items():
                    own[key].copy_(tensor)
        self.prefix.clear()
        if self.runner.cpu is not None:
            self.runner.cpu.refresh()
        self.version = version

    def _admit(self) -> bool:
        started = self.scheduler.admit()
        if not started:
            return False
        self.store.flush()
        kept = [(entry.slot, s.row) for s, entry in started if entry is not None and entry.slot >= 0]
        if kept:
            self.store.restore(*zip(*kept, strict=True))
        ready = [(s, entry.logits) for s, entry in started if entry is not None and entry.length == len(s.tokens)]
        self._start_drawing(dict(ready))
        return True

    def _read(self) -> None:
        chunks = self.scheduler.chunks(self._read_budget)
        if not chunks:
            return
        logits = self._survivors(chunks)
        entries = self.scheduler.have_read([chunk for chunk in chunks if chunk.sequence.row >= 0])
        for chunk, entry in entries:
            entry.logits = logits.get(chunk.sequence, entry.logits)
        self.store.flush()
        fixed = [(chunk.sequence.row, entry.slot) for chunk, entry in entries if entry.slot >= 0]
        if fixed:
            self.store.keep(*zip(*fixed, strict=True))
        self.counts["read_tokens"] += sum(chunk.end - chunk.start for chunk in chunks)
        self._start_drawing(logits)

    def _survivors(self, chunks: list[Chunk]) -> dict[Sequence, Tensor]:
        """Reads chunks; if memory does not suffice, one by one, and those that fail alone are refused."""
        self.store.flush()
        try:
            return self.runner.read(chunks)
        except torch.OutOfMemoryError:
            if len(chunks) > 1:
                half = len(chunks) // 2
                return self._survivors(chunks[:half]) | self._survivors(chunks[half:])
        torch.cuda.empty_cache()
        sequence = chunks[0].sequence
        self.scheduler.free(sequence)
        sequence.over = True
        sequence.ticket.finish(self.refusal(sequence, "the device's memory does not suffice for its prompt"))
        return {}

    def refusal(self, sequence: Sequence, error: str) -> Completion:
        return Completion(
            "", finish_reason="error", error=error, weight_version=self.version, prompt_tokens=len(sequence.prompt)
        )

    def _start_drawing(self, logits: Mapping[Sequence, Tensor | None]) -> None:
        """First tokens of sequences whose prompts are read."""
        if not logits:
            return
        sequences = list(logits)
        rows = [sequence.row for sequence in sequences]
        for sequence in sequences:
            self.scheduler.run(sequence)
        self._seat(sequences)
        self._fill_masks(sequences)
        stacked = torch.stack(list(logits.values()))  # pyright: ignore[reportArgumentType]
        self.runner.first(sequences, stacked)
        self._note_top(sequences, stacked)
        self._deliver(rows, 1)

    def _seat(self, sequences: Many[Sequence]) -> None:
        for s in sequences:
            row, before = s.row, len(s.drawn)
            self._drawn[row, :before], self._logprobs[row, :before] = s.drawn, s.logprobs
            self._count[row], self._prompt[row] = before, len(s.prompt)
            self._limit[row], self._ignores_end[row] = s.sampling.max_tokens, s.sampling.ignore_end

    def _burst(self) -> None:
        running = self.scheduler.running
        looked_at = any(s.matcher is not None or s.sampling.top_logprobs for s in running.values())
        left = int((self._limit - self._count)[list(running)].max())
        steps = 1 if looked_at else min(self._most_steps(), left)
        positions = self._prompt + self._count - 1
        for sequence in self.scheduler.reserve(positions, steps):
            self._put_back(sequence)
        if not running:
            return
        self._compact()
        self.store.flush()
        sequences = list(running.values())
        rows = [sequence.row for sequence in sequences]
        longest = int((self._prompt + self._count)[rows].max()) + steps - 1
        self._fill_masks(sequences)
        self.runner.burst(rows, longest, Features.of(sequences), steps)
        if any(s.sampling.top_logprobs for s in sequences):
            self._note_top(sequences, self.runner.logits_of(rows))
        self._deliver(rows, steps)

    def _most_steps(self) -> int:
        """More where nobody waits for a row, nobody watches, and pages suffice: a look costs the host milliseconds, in
        which the device has nothing to do."""
        running, steps = self.scheduler.running.values(), self.runner.most_steps(calm=True)
        waited_for = self.scheduler.waiting or self.scheduler.reading or any(s.watched for s in running)
        enough = not self.store.has_pages or self.store.pages.free >= len(running) * (pages_for(steps) + 1)
        return steps if enough and not waited_for else self.runner.most_steps(calm=False)

    def _put_back(self, sequence: Sequence) -> None:
        row = sequence.last_row
        count = self._count[row]
        self.runner.rows.stop([row])
        sequence.expectation = float(self.runner.rows.expectation[row])
        sequence.again(self._drawn[row, :count].tolist(), self._logprobs[row, :count].tolist())
        self.scheduler.waiting.add(sequence, first=True)

    def _compact(self) -> None:
        if moves := self.scheduler.compact():
            old, new = map(list, zip(*moves, strict=True))
            self.store.move(old, new)
            self.runner.rows.move(old, new)
            for column in (self._drawn, self._logprobs, self._count, self._prompt, self._limit, self._ignores_end):
                column[new] = column[old]

    def _fill_masks(self, sequences: Many[Sequence]) -> None:
        bound = [s for s in sequences if s.matcher is not None]
        if bound:
            mask = torch.empty((len(bound), self.runner.rows.allowed.shape[1]), dtype=torch.int32)
            fill_batch([s.matcher for s in bound], mask)  # pyright: ignore[reportArgumentType]
            where = torch.tensor([s.row for s in bound]).to(self.runner.device)
            self.runner.rows.allowed[where] = mask.to(self.runner.device)
        loose = [s.row for s in sequences if s.matcher is None] if bound else []
        if loose:
            self.runner.rows.allowed[torch.tensor(loose).to(self.runner.device)] = -1

    def _note_top(self, sequences: Many[Sequence], logits: Tensor) -> None:
        for sequence, row in zip(sequences, logits, strict=True):
            if sequence.sampling.top_logprobs:
                best = row.float().log_softmax(-1).topk(min(sequence.sampling.top_logprobs, len(row)))
                sequence.top.append(tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def _deliver(self, rows: Many[int], steps: int) -> None:
        """Notes what a burst drew for the rows that ran, ends what is finished."""
        live = torch.tensor(rows).to(self.runner.device)
        tokens = self.runner.rows.tokens[live, :steps].cpu().numpy()
        logprobs = self.runner.rows.logprobs[live, :steps].cpu().numpy()
        at = np.array(rows)
        ends = np.isin(tokens, self._ends) & ~self._ignores_end[at, None]
        first_end = np.where(ends.any(1), ends.argmax(1) + 1, steps + 1)
        new = np.minimum(np.minimum(first_end, self._limit[at] - self._count[at]), steps)
        live_row, step = np.nonzero(np.arange(steps) < new[:, None])
        places = at[live_row], self._count[at[live_row]] + step
        self._drawn[places], self._logprobs[places] = tokens[live_row, step], logprobs[live_row, step]
        self._count[at] += new
        self.counts["generated_tokens"] += int(new.sum())
        done = (new == first_end) | (self._count[at] >= self._limit[at])
        stopped = self._watch(rows, done)
        self._finish([row for row, is_done in zip(rows, done, strict=True) if is_done or row in stopped], stopped)

    def _watch(self, rows: Many[int], done: np.ndarray) -> set[int]:
        """Tells matchers and listeners what is new; returns rows that reached a stop string."""
        stopped = set()
        for row, is_done in zip(rows, done, strict=True):
            sequence = self.scheduler.running[row]
            if sequence.matcher is not None:
                sequence.matcher.accept(int(self._drawn[row, self._count[row] - 1]))  # pyright: ignore
            if sequence.watched and tell(sequence, *self._answer(row), self.decode, bool(is_done)):
                stopped.add(row)
        return stopped

    def _answer(self, row: int) -> tuple[list[int], list[float]]:
        count = self._count[row]
        return self._drawn[row, :count].tolist(), self._logprobs[row, :count].tolist()

    def _finish(self, rows: Many[int], stopped: Iterable[int]) -> None:
        if not rows:
            return
        self.runner.rows.stop(list(stopped))
        answers = [self._answer(row) for row in rows]
        texts = self.decode([tokens for tokens, _ in answers])
        expected = self.runner.rows.expectation[torch.tensor(list(rows)).to(self.runner.device)].tolist()
        for row, (tokens, logprobs), text, number in zip(rows, answers, texts, expected, strict=True):
            sequence = self.scheduler.running[row]
            ended = tokens[-1] in self._ends and not sequence.sampling.ignore_end
            answer = Completion(
                text=text,
                tokens=tuple(tokens),
                logprobs=tuple(logprobs),
                finish_reason="stop" if ended else "length",
                weight_version=self.version,
                prompt_tokens=len(sequence.prompt),
                expectation=None if math.isnan(number) else number,
                top_logprobs=tuple(sequence.top),
            )
            if sequence.sampling.stop:
                answer = cut_at_stop(answer, sequence.sampling.stop, self.decode)
            if error := getattr(sequence.matcher, "error", ""):
                answer = replace(answer, finish_reason="error", error=error)
            self.scheduler.free(sequence)
            sequence.over = True
            self.counts["completed"] += 1
            self.counts["prompt_tokens"] += len(sequence.prompt)
            sequence.ticket.finish(answer)
