"""Times of kernels on a CUDA device, in microseconds, and the rates that they are held to.

Long calls: one after the other, the L2 cache flushed in between, each between two events. Calls that are shorter than
their launch: many of them in a CUDA graph that is replayed, with inputs that take turns, so that together they do not
fit into the L2 cache.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

WARMUP_MS, MEASURE_MS = 25, 200
QUANTILES = (0.2, 0.5, 0.8)
REPLAYS, CALLS_IN_GRAPH = 40, 24
COPY_BYTES, MATMUL_SIZE = 1 << 30, 8192
FEWEST_SETS, MOST_SETS, CACHES = 3, 64, 3
"""Sets of inputs that take turns: as many as fill the L2 cache three times, within these bounds."""


class Times(NamedTuple):
    """Quantiles over calls, microseconds."""

    p20: float
    p50: float
    p80: float


class Rates(NamedTuple):
    """What this machine does at its best, measured."""

    copy: float
    """Bytes a second, read and written."""
    matmul: float
    """FLOP a second, bfloat16."""


class Clock(Protocol):
    """Times calls. The tests have one that needs no device."""

    def queued(self, call: Callable[[], object]) -> Times: ...

    def replayed(self, calls: Sequence[Callable[[], object]]) -> Times: ...

    def rates(self) -> Rates: ...


class CudaClock:
    """The clock of the current CUDA device."""

    def queued(self, call: Callable[[], object]) -> Times:
        from triton.testing import do_bench

        times = do_bench(call, warmup=WARMUP_MS, rep=MEASURE_MS, quantiles=list(QUANTILES))
        return Times(*(1e3 * ms for ms in times))  # pyright: ignore[reportOptionalIterable]

    def replayed(self, calls: Sequence[Callable[[], object]]) -> Times:
        turns = -(-CALLS_IN_GRAPH // len(calls))
        graph = _captured(calls, turns)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPLAYS)]
        graph.replay()
        for start, end in events:
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize()
        per_call = [1e3 * start.elapsed_time(end) / (turns * len(calls)) for start, end in events]
        return Times(*torch.tensor(per_call).quantile(torch.tensor(QUANTILES)).tolist())

    def rates(self) -> Rates:
        source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda").random_()
        target = torch.empty_like(source)
        copy = 2 * COPY_BYTES / self.queued(lambda: target.copy_(source)).p50 * 1e6
        a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        matmul = 2 * MATMUL_SIZE**3 / self.queued(lambda: a @ b).p50 * 1e6
        return Rates(copy, matmul)


class Once:
    """No clock: every call is made once, which compiles what it needs."""

    def queued(self, call: Callable[[], object]) -> Times:
        call()
        return Times(0.0, 0.0, 0.0)

    def replayed(self, calls: Sequence[Callable[[], object]]) -> Times:
        return self.queued(calls[0])

    def rates(self) -> Rates:
        return Rates(1.0, 1.0)


def _captured(calls: Sequence[Callable[[], object]], turns: int) -> torch.cuda.CUDAGraph:
    """All calls, some turns; the first turn, outside, compiles what has to be compiled."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(turns):
            for call in calls:
                call()
    return graph


def sets_wanted(bytes_of_call: float, cache: int) -> int:
    """How many sets of inputs take turns."""
    return min(MOST_SETS, max(FEWEST_SETS, int(-(-CACHES * cache // max(1, bytes_of_call)))))
