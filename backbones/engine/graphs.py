"""Decoding steps as CUDA graphs, one for each number of rows (rounded up) and each set of features.

A model of a few million parameters takes tens of microseconds of GPU time a layer and longer than that to launch from
Python. A graph holds a whole step: model, head, mask, sampler and the bookkeeping of the rows. It works on the first n
rows in place; rows without a sequence are finished and leave no trace. Weights are swapped in place, which keeps the
graphs valid.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nlrl.backbones.engine.runner import Features, Runner

log = logging.getLogger(__name__)
SIZES = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096)
"""Few: each that is met has to be captured first, and idle rows cost little."""


class Graphs:
    """The graphs of one runner, captured when first needed."""

    def __init__(self, runner: Runner):
        self._runner = runner
        self._known: dict[tuple[int, Features], torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._works = True

    @property
    def works(self) -> bool:
        """False once a capture has failed."""
        return self._works

    def replay(self, rows: int, features: Features, steps: int) -> bool:
        """Runs steps for the first `rows` rows at least; False if it cannot: nothing has happened then."""
        if not self._works:
            return False
        size = min(next((size for size in SIZES if size >= rows), rows), self._runner.store.rows)
        try:
            graph = self._known.get((size, features)) or self._capture(size, features)
        except Exception as error:  # whatever a capture trips over, eager steps need none of it
            log.warning("decoding without CUDA graphs from now on: %s: %s", type(error).__name__, error)
            self._works = False
            return False
        for _ in range(steps):
            graph.replay()
        return True

    def _capture(self, size: int, features: Features) -> torch.cuda.CUDAGraph:
        """Two steps are run before the capture, as lazy initialisation must not fall into it. All rows are finished
        meanwhile, and what the steps touch is put back."""
        runner, live = self._runner, slice(0, size)
        rows = runner.rows
        saved = [block.clone() for block in rows.blocks()]
        rows.finished.fill_(True)
        state = runner.store.state.view(live, runner.store.state.length)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(runner.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    rows.column.zero_()
                    runner.step(rows.at(live), state, features)
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            # thread_local: another thread (a data loader's, say) may use the device during the capture.
            with torch.cuda.graph(graph, pool=self._pool, stream=side, capture_error_mode="thread_local"):
                runner.step(rows.at(live), state, features)
        for block, old in zip(rows.blocks(), saved, strict=True):
            block.copy_(old)
        self._known[size, features] = graph
        return graph
