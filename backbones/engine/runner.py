"""The model's side of the engine: reads chunks, draws tokens.

1. `read` brings chunks of prompts into the state of their rows; `first` draws after a whole prompt.
2. `burst` runs several decoding steps for all running rows before the host looks at what was drawn. A step
   (`Runner.step`) works in place on static shapes and asks the host nothing: on CUDA it is a graph, with the model's
   head and the sampler in it.
3. On a CPU native code reads chunks and makes steps, a burst in one call where the sampling is plain; PyTorch does
   where there is none for the architecture (`cpu`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nlrl import kernels
from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.engine.constraints import masked_logits
from nlrl.backbones.engine.cpu import CpuModel
from nlrl.backbones.engine.graphs import Graphs
from nlrl.backbones.engine.rows import Rows
from nlrl.backbones.engine.scheduler import Chunk
from nlrl.backbones.engine.sequence import Sequence
from nlrl.backbones.engine.store import Store
from nlrl.backbones.engine.transfer import Download, upload
from nlrl.backbones.hymba.state import PagedHymbaState
from nlrl.backbones.kv_cache import PagedKVCache
from nlrl.backbones.padding import passes
from nlrl.backbones.sampler import NumberTokens, filtered

log = logging.getLogger(__name__)
CALM = 4
"""Times as many steps in a burst, while nobody is kept waiting by it."""
PASS_TOKENS = {"cpu": 4_096, "cuda": 65_536}
"""Prompt tokens, padding included, that PyTorch reads in one call."""
BURST_SECONDS = 0.01
"""On a CPU a burst takes about so long at most: the host's share is small then, and nobody waits longer for a row."""


@dataclass(frozen=True)
class Features:
    """What a step's sampler must be able to do: a step pays only for what some row asks."""

    filters: bool = False
    numbers: bool = False
    mask: bool = False
    top: bool = False

    @property
    def needs_logits(self) -> bool:
        """Whether anything beside the draw reads logits: then a step must have them in memory."""
        return self.filters or self.numbers or self.top


Drawn = tuple[Tensor, Tensor]
"""Tokens `(rows,)` int64, and their log-probabilities."""
Ends = list[tuple[Many[Sequence], Tensor]]
"""Sequences whose prompts have been read, in groups, each with the logits behind them, `(group, vocab)` float32."""


class Runner:
    """Runs one weight set on the rows of its store."""

    def __init__(
        self,
        model,
        store: Store,
        ends: frozenset[int],
        numbers: NumberTokens | None,
        burst: int,
        cuda_graphs: bool,
        cpu: CpuModel | None,
    ):
        """
        Args:
            ends: end tokens.
            burst: steps between two looks of the host; at most `CALM` times as many.
            cpu: native steps of the model, if there are any.
        """
        self.model, self.store, self.numbers, self.cpu = model, store, numbers, cpu
        self.device = model.device
        self.vocabulary = model.config.vocab_size
        self.rows = Rows(store.rows, burst * CALM, self.vocabulary, self.device)
        self._burst, self._step_seconds = burst, 0.0 if self.device.type == "cuda" else BURST_SECONDS
        self._ends = torch.tensor(sorted(ends), dtype=torch.int64, device=self.device)
        self.pass_tokens = PASS_TOKENS.get(self.device.type, PASS_TOKENS["cuda"])
        self._graphs = Graphs(self) if self.device.type == "cuda" and cuda_graphs else None
        self.last_logits: Tensor | None = None

    def most_steps(self, calm: bool) -> int:
        """Steps between two looks of the host; calm: nobody is kept waiting by more of them."""
        times = CALM if calm and self._burst > 1 else 1
        in_time = int(times * BURST_SECONDS / self._step_seconds) if self._step_seconds else self._burst * times
        return max(1, min(self._burst * times, in_time))

    @property
    def replays(self) -> bool:
        """Whether steps are CUDA graphs."""
        return self._graphs is not None and self._graphs.works

    def read(self, chunks: Many[Chunk]) -> Ends:
        """Reads chunks into their rows; returns the logits behind the prompts that end there."""
        if self.cpu is not None:
            return self._read_natively(self.cpu, chunks)
        chunks = sorted(chunks, key=lambda chunk: chunk.end - chunk.start)
        cuts = passes([chunk.end - chunk.start for chunk in chunks], self.pass_tokens)
        return [end for cut in cuts for end in self._read_pass(chunks[cut])]

    def first(self, sequences: Many[Sequence], logits: Tensor, features: Features) -> None:
        """Draws the token behind each sequence's prompt into column 0; logits `(sequences, vocab)` float32."""
        rows = [sequence.row for sequence in sequences]
        where = upload(rows, self.device)
        self.rows.set(rows, sequences)
        self.rows.column.zero_()
        part = self.rows.at(where)
        self._note(part, self._choose(part, logits, features))
        self.rows.put(where, part)

    def results(self, rows: np.ndarray, steps: int, features: Features) -> Download:
        """What has been drawn for rows into the columns 0 .. steps - 1, on its way to the host: tokens and
        log-probabilities `(rows, steps)`, and expectations `(rows,)` where numbers are drawn."""
        where = upload(rows, self.device)
        columns = [part[:, :steps].index_select(0, where) for part in (self.rows.tokens, self.rows.logprobs)]
        return Download(*columns, *([self.rows.expectation.index_select(0, where)] if features.numbers else ()))

    def burst(self, rows: np.ndarray, length: int, features: Features, steps: int) -> None:
        """Draws `steps` tokens for the running rows, into the columns 0 .. steps - 1.

        Args: length: tokens that the longest of them will have, then.
        """
        self.rows.column.zero_()
        highest = int(rows.max()) + 1
        if self._graphs is not None and not features.top and self._graphs.replay(highest, features, steps):
            return
        start = time.perf_counter()
        if self.cpu is not None:
            self._burst_natively(self.cpu, torch.from_numpy(np.sort(rows)), features, steps)
        else:
            live = slice(0, highest)
            state = self.store.state.view(live, min(length, self.store.state.length))
            for _ in range(steps):
                self.step(self.rows.at(live), state, features)
        if self._step_seconds:
            self._step_seconds = (time.perf_counter() - start) / steps

    def _burst_natively(self, cpu: CpuModel, where: Tensor, features: Features, steps: int) -> None:
        if features == Features():
            cpu.burst(self.rows, where, self._ends, self.store.state, steps)
            return
        part = self.rows.at(where)

        def draw(ids: Tensor, positions: Tensor) -> Drawn:
            self.last_logits = logits = cpu.logits(ids, positions, where, self.store.state)
            return self._choose(part, logits, features)

        for _ in range(steps):
            self._advance(part, draw)
        self.rows.put(where, part)

    def logits_of(self, rows: Many[int]) -> Tensor:
        """What the last step of an eager burst computed for these running rows, `(rows, vocab)`."""
        assert self.last_logits is not None
        places = {row: i for i, row in enumerate(sorted(rows))} if self.cpu is not None else {row: row for row in rows}
        return self.last_logits[torch.tensor([places[row] for row in rows]).to(self.device)]

    def step(self, part: Rows, state: DecodeState, features: Features) -> None:
        """Feeds every row its last token and draws the next, in place."""

        def draw(ids: Tensor, positions: Tensor) -> Drawn:
            hidden = self.model.hidden(ids[:, None], positions[:, None], state=state)[:, 0]
            if not features.needs_logits:
                mask = part.allowed if features.mask else None
                matrix, scale = self.model.head()
                return kernels.sample_head(hidden, matrix, part.seeds, part.steps, part.temperature, mask, scale)
            self.last_logits = logits = self.model.logits(hidden)
            return self._choose(part, logits, features)

        self._advance(part, draw)

    def _advance(self, part: Rows, draw: Callable[[Tensor, Tensor], Drawn]) -> None:
        """Args: draw: what comes behind each row's next token, from ids and positions `(rows,)`."""
        drawn = draw(part.ids, part.positions.masked_fill(part.finished, -1))
        part.positions.add_(~part.finished)
        self._note(part, drawn)
        part.column.add_(1)

    def _note(self, part: Rows, drawn: Drawn) -> None:
        """Notes every row's next token."""
        token, logprob = drawn
        part.tokens.index_copy_(1, part.column[None], token[:, None])
        part.logprobs.index_copy_(1, part.column[None], logprob[:, None].float())
        part.steps.add_(1)
        ended = (token[:, None] == self._ends).any(-1) & ~part.ignores_end
        part.finished.logical_or_(ended).logical_or_(part.steps >= part.limit)
        part.ids.copy_(token)

    def _choose(self, part: Rows, logits: Tensor, features: Features) -> Drawn:
        """Draws every row's next token from logits `(rows, vocab)`."""
        mask = part.allowed if features.mask else None
        if not features.filters and not features.numbers:
            if self.cpu is not None and mask is None:
                return self.cpu.sample(logits, part.seeds, part.steps, part.temperature)
            return kernels.sample(logits, part.seeds, part.steps, part.temperature, mask)
        logits = logits.float()
        scores = logits
        if features.mask:
            scores = masked_logits(scores, part.allowed)
        if features.filters:
            scores = filtered(scores, part.temperature, part.top_k, part.top_p, part.min_p)
        token, _ = kernels.sample(scores, part.seeds, part.steps, part.temperature, None)
        if features.numbers and self.numbers is not None:
            token = self._number(part, logits, token)
        return token, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1)

    def _number(self, part: Rows, logits: Tensor, token: Tensor) -> Tensor:
        """Replaces the first number that a row would write by its expectation."""
        numbers = self.numbers
        assert numbers is not None
        first = part.wants_number & numbers.is_number[token] & part.expectation.isnan() & ~part.finished
        expectation = numbers.expectation(logits)
        part.expectation.copy_(torch.where(first, expectation, part.expectation))
        return torch.where(first, numbers.nearest(expectation, token), token)

    def _read_natively(self, cpu: CpuModel, chunks: Many[Chunk]) -> Ends:
        """In one call, chunk after chunk, without padding."""
        lengths = np.array([chunk.end - chunk.start for chunk in chunks])
        ids = np.concatenate([chunk.sequence.tokens[chunk.start : chunk.end] for chunk in chunks])
        positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        rows = np.repeat([chunk.sequence.row for chunk in chunks], lengths)
        columns = torch.from_numpy(np.stack((ids, positions, rows)).astype(np.int64))
        done = [i for i, chunk in enumerate(chunks) if chunk.completes]
        wanted = torch.from_numpy((lengths.cumsum() - 1)[done])
        logits = cpu.logits(columns[0], columns[1], columns[2], self.store.state, wanted)
        return [([chunks[i].sequence for i in done], logits)] if done else []

    def _read_pass(self, chunks: list[Chunk]) -> Ends:
        lengths = np.array([chunk.end - chunk.start for chunk in chunks])
        ids = np.zeros((len(chunks), lengths.max()), np.int32)
        filled = np.arange(lengths.max()) < lengths[:, None]
        ids[filled] = np.concatenate([chunk.sequence.tokens[chunk.start : chunk.end] for chunk in chunks])
        ids, filled = upload(ids, self.device).long(), upload(filled, self.device)
        where, starts = upload(np.array([(chunk.sequence.row, chunk.start) for chunk in chunks]).T, self.device)
        positions = torch.where(filled, starts[:, None] + torch.arange(ids.shape[1], device=self.device), -1)
        taken = self.store.state.select(where)
        state = taken.view(slice(None), max(chunk.end for chunk in chunks))
        if isinstance(state, PagedKVCache | PagedHymbaState):
            state = replace(state, fresh=all(chunk.start == 0 for chunk in chunks))
        hidden = self.model.hidden(ids, positions, state=state)
        self.store.bring_back(taken, where)
        done = np.array([i for i, chunk in enumerate(chunks) if chunk.completes], np.int64)
        if not len(done):
            return []
        places, last = upload(np.stack((done, lengths[done] - 1)), self.device)
        return [([chunks[i].sequence for i in done], self.model.logits(hidden[places, last]).float())]
