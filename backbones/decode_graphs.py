"""Decoding through CUDA graphs: model step and sampler replayed from static buffers.

A model of a few million parameters takes tens of microseconds of GPU time a layer and longer than that to launch from
Python. One graph holds a whole step (`decode_step`); the host replays several and then looks once whether everybody has
finished. Batch sizes and cache lengths are rounded up to buckets, so a run needs a handful of graphs. Weights are
swapped in place, which keeps the graphs valid.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import fields

import torch

from nlrl.backbones.decoding import Answers, Batch, Decoder, Rows, Watch, decode_step, finish
from nlrl.backbones.sampler import Features, Settings

log = logging.getLogger(__name__)
BATCH_BUCKETS = (64, 512, 2048, 4096)
"""Few: every bucket that is met has to be captured first, and idle rows cost little."""
LENGTH_STEP = 128
STEPS_PER_CHECK = 8


def bucket(batch: int) -> int:
    """The smallest batch bucket that holds `batch` rows; multiples of the largest beyond it."""
    largest = BATCH_BUCKETS[-1]
    return next((size for size in BATCH_BUCKETS if size >= batch), -(-batch // largest) * largest)


def round_up(value: int, step: int) -> int:
    return -(-value // step) * step


class DecodeGraph:
    """One captured decoding step for a fixed batch size and cache length."""

    def __init__(self, decoder: Decoder, batch: int, length: int, features: Features, pool):
        device = decoder.end_tokens.device
        self.decoder = decoder
        self.batch = Batch(
            _idle_rows(batch, device),
            Answers.empty(batch, length, device),
            decoder.model.new_state(batch, length),
            features,
            length,
        )
        self.graph = self._capture(pool)

    def _capture(self, pool) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(self.decoder.end_tokens.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):  # lazy initialisation (cuBLAS, Triton) must not fall into the capture
                    self._step()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread (a data loader's, say) may use the device during the capture.
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                self._step()
        return graph

    def _step(self) -> None:
        decode_step(self.decoder, self.batch, self.batch.state)

    def load(self, batch: Batch) -> None:
        """Copies a freshly started batch into the static buffers; spare rows stay finished."""
        n = len(batch.rows)
        self.batch.rows.finished.fill_(True)
        self.batch.rows.positions.zero_()
        _copy_rows(self.batch.rows, batch.rows, n)
        for name in ("tokens", "logprobs"):
            getattr(self.batch.answers, name)[:n, :1].copy_(getattr(batch.answers, name)[:, :1])
        self.batch.answers.expectation.fill_(torch.nan)
        self.batch.answers.expectation[:n].copy_(batch.answers.expectation)
        self.batch.state.copy_(batch.state)

    def store(self, batch: Batch) -> None:
        """Copies the answers back."""
        n, width = batch.answers.tokens.shape
        batch.answers.tokens.copy_(self.batch.answers.tokens[:n, :width])
        batch.answers.logprobs.copy_(self.batch.answers.logprobs[:n, :width])
        batch.answers.expectation.copy_(self.batch.answers.expectation[:n])


class GraphDecoder:
    """Keeps graphs by (batch bucket, length bucket, features), the last used ones up to `cache_bytes` of states."""

    def __init__(self, decoder: Decoder, cache_bytes: int):
        self.decoder, self.cache_bytes = decoder, cache_bytes
        self._graphs: OrderedDict[tuple, DecodeGraph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    def decode(self, batch: Batch, length: int, watch: Watch | None) -> None:
        """Draws tokens until every row is finished, as `decoding.decode` does.

        Args:
            length: slots that the longest row may need.
        """
        graph = self._graph(len(batch.rows), length, batch.features)
        graph.load(batch)
        drawn = 1
        while drawn < batch.max_tokens:
            finish(graph.batch, watch)
            if bool(graph.batch.rows.finished.all()):
                break
            steps = min(STEPS_PER_CHECK, batch.max_tokens - drawn)
            for _ in range(steps):
                graph.graph.replay()
            drawn += steps
        graph.store(batch)

    def _graph(self, batch: int, length: int, features: Features) -> DecodeGraph:
        key = (bucket(batch), round_up(length, LENGTH_STEP), features)
        if key not in self._graphs:
            self._make_room(key)
            self._graphs[key] = DecodeGraph(self.decoder, *key, self._pool)
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _make_room(self, key: tuple) -> None:
        needed = key[0] * state_bytes(self.decoder.model, key[1])
        while self._graphs and needed + sum(g.batch.state.nbytes for g in self._graphs.values()) > self.cache_bytes:
            self._graphs.popitem(last=False)


def state_bytes(model, length: int) -> int:
    """Bytes that the decode state of one row of `length` tokens takes."""
    return model.new_state(1, length, device="meta").nbytes


def _idle_rows(batch: int, device) -> Rows:
    def zeros(dtype=torch.int64):
        return torch.zeros(batch, dtype=dtype, device=device)

    settings = Settings(
        zeros(), zeros(torch.float32), zeros(), zeros(torch.float32) + 1, zeros() + 1, zeros(torch.bool)
    )
    row = torch.arange(batch, device=device)
    step = torch.zeros((), dtype=torch.int64, device=device)
    return Rows(settings, row, zeros(), zeros(), torch.ones(batch, dtype=torch.bool, device=device), step)


def _copy_rows(target: Rows, source: Rows, n: int) -> None:
    for field in fields(Settings):
        getattr(target.settings, field.name)[:n].copy_(getattr(source.settings, field.name))
    for name in ("ids", "positions", "finished"):
        getattr(target, name)[:n].copy_(getattr(source, name))
    target.step.copy_(source.step)
