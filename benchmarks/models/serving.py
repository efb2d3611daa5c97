"""Decoding steps and prompts of models of published sizes, through the engine's own runner and memory."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass

import numpy as np
import torch

from nlrl.backbones.engine.engine import CHUNK_TOKENS
from nlrl.backbones.engine.runner import Features, Runner
from nlrl.backbones.engine.scheduler import Chunk
from nlrl.backbones.engine.sequence import Sequence, Ticket
from nlrl.backbones.engine.store import Store, pages_for
from nlrl.backbones.language_model import Sampling
from nlrl.benchmarks.cache import HYMBA, LLAMA
from nlrl.benchmarks.kernels.clock import Rates
from nlrl.benchmarks.models.clock import free, paced
from nlrl.benchmarks.models.configs import BIMAMBA, Fields, random_model
from nlrl.benchmarks.models.report import Line, Report
from nlrl.benchmarks.models.roofline import decoding_rate, reading_rate

DECODE, PREFILL, COMPARE = "decode", "prefill", "compare"
SHARE = 0.6
"""Of the roofline, wanted of decoding."""
FASTER = 6.0
"""Hymba beside Llama, wanted; the paper has 3.49 on an A100."""
ONE_TOKEN = 222e-6
"""Seconds of a token of Bi-Mamba-2.7B, one sequence, by its bytes at 3.0 TB/s with states of 16 bits."""
LARGEST = (1024, 768, 640, 512, 448, 384, 320, 256, 192, 128, 96, 80, 72, 64, 48, 32, 16, 8, 4, 2, 1)
"""Batches of the comparison: the first that fits."""
SPARE = 6 << 30
"""Bytes for activations and graphs."""


@dataclass(frozen=True)
class Grid:
    """What is measured of each model."""

    batches: tuple[int, ...] = (1, 32, 128)
    contexts: tuple[int, ...] = (1024, 8192)
    compared: int = 8000
    """Tokens before the steps of the comparison."""
    largest: tuple[int, ...] = LARGEST
    steps: int = 32
    """Of a burst that is timed; sequences grow by as many."""
    prompt_tokens: int = 32768
    """Read at once; more are read pass after pass, no faster."""
    budget: float = 0.6
    """Seconds of timed bursts, of timed readings."""


class DoesNotFit(RuntimeError):
    """The device's memory holds fewer sequences."""


def measure(models: dict[str, Fields], parts: Many[str], grid: Grid, device: str, rates: Rates, report: Report) -> None:
    """Every model is made once; parts: of "decode" (with prompts) and "compare"."""
    largest: dict[str, tuple[float, int]] = {}
    for name, fields in models.items():
        with report.attempt(DECODE, name, "the model"), torch.no_grad():
            _one(name, fields, parts, grid, device, rates, report, largest)
        free(device)
    if HYMBA in largest and LLAMA in largest:
        _compare(largest, report)


def _one(name: str, fields: Fields, parts, grid: Grid, device: str, rates: Rates, report: Report, largest) -> None:
    """Everything of one model; its largest batch is noted in `largest`."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = random_model(fields, device).to(dtype).eval()
    if "decode" in parts:
        _decode(name, model, grid, device, rates, report)
        _prefill(name, model, grid, device, rates, report)
    if "compare" in parts and name in (HYMBA, LLAMA):
        with report.attempt(COMPARE, name, "largest batch"):
            largest[name] = _largest(name, model, grid, device, rates, report)


def _decode(name: str, model, grid: Grid, device: str, rates: Rates, report: Report) -> None:
    for context in grid.contexts:
        for batch in grid.batches:
            what = f"batch {batch}, {context:,} tokens"
            with report.attempt(DECODE, name, what, DoesNotFit):
                report.add(_decoded(DECODE, name, model, batch, context, grid, device, rates))
            free(device)


def _decoded(part: str, name: str, model, batch: int, context: int, grid: Grid, device: str, rates: Rates) -> Line:
    """One figure of decoding as a line."""
    rate, graph = decode_rate(model, batch, context, device, grid.steps, grid.budget)
    best, what = (
        decoding_rate(model, batch, context + grid.steps // 2, rates.copy),
        f"batch {batch}, {context:,} tokens",
    )
    beside = {"of roofline": rate / best}
    if name == BIMAMBA and batch == 1:
        beside |= {"us a token": 1e6 / rate, "x 222 us": 1 / rate / ONE_TOKEN}
    note = f"roofline {best:,.0f}{'' if graph else '; without CUDA graphs'}"
    return Line(part, name, what, rate, "tokens/s", beside, f"at least {SHARE:.0%}", rate >= SHARE * best, note)


def _prefill(name: str, model, grid: Grid, device: str, rates: Rates, report: Report) -> None:
    """One prompt, and as many as make `prompt_tokens`."""
    for context in grid.contexts:
        for batch in sorted({1, max(1, min(grid.prompt_tokens // context, max(grid.batches)))}):
            what = f"batch {batch}, {context:,} tokens"
            with report.attempt(PREFILL, name, what, DoesNotFit):
                rate = prefill_rate(model, batch, context, device, grid.budget)
                best = reading_rate(model, context, rates.matmul)
                beside = {"of roofline": rate / best}
                report.add(Line(PREFILL, name, what, rate, beside=beside, note=f"roofline {best:,.0f}"))
            free(device)


def _largest(name: str, model, grid: Grid, device: str, rates: Rates, report: Report) -> tuple[float, int]:
    """Tokens a second at the largest batch that fits, and that batch."""
    for batch in grid.largest:
        try:
            line = _decoded(COMPARE, name, model, batch, grid.compared, grid, device, rates)
        except (DoesNotFit, torch.OutOfMemoryError):
            free(device)
            continue
        report.add(line)
        assert line.value is not None
        return line.value, batch
    raise DoesNotFit("not even one sequence")


def _compare(largest: dict[str, tuple[float, int]], report: Report) -> None:
    (hymba, many), (llama, few) = largest[HYMBA], largest[LLAMA]
    times, note = hymba / llama, f"batches {many} and {few}; the paper: 3.49x on an A100"
    what, target = f"x {LLAMA}, largest batches", f"at least {FASTER:g}x"
    beside = {"x": times}
    report.add(Line(COMPARE, HYMBA, what, hymba, "tokens/s", beside, target, times >= FASTER, note))


# -- the engine's parts ------------------------------------------------------------------------------------------------
def decode_rate(model, batch: int, context: int, device: str, steps: int, budget: float) -> tuple[float, bool]:
    """Tokens a second of bursts of so many of the engine's steps, of `batch` sequences that hold `context` tokens
    each; and whether the steps were a CUDA graph.

    Raises:
        DoesNotFit: the device's memory does not hold them.
    """
    runner = new_runner(model, batch, context + steps, device, steps)
    rows, live = runner.rows, np.arange(batch)
    rows.seeds.copy_(torch.arange(batch))
    rows.ids.random_(5, model.config.vocab_size)
    rows.temperature.fill_(1.0)
    rows.limit.fill_(1 << 40)
    rows.ignores_end.fill_(True)
    rows.finished.fill_(False)

    def burst() -> None:
        rows.positions.fill_(context)
        runner.burst(live, context + steps, Features(), steps)

    took = paced(burst, device, budget)
    return batch * steps / took, runner.replays


def prefill_rate(model, batch: int, context: int, device: str, budget: float) -> float:
    """Tokens a second of reading prompts, in the engine's chunks; the first token's logits are among it.

    Raises:
        DoesNotFit: the device's memory does not hold them.
    """
    runner = new_runner(model, batch, context, device)
    draw = np.random.default_rng(0)
    prompts = draw.integers(5, model.config.vocab_size, (batch, context))
    sequences = [Sequence(tuple(prompt.tolist()), Sampling(), 0, Ticket(lambda _: None)) for prompt in prompts]
    for row, sequence in enumerate(sequences):
        sequence.row = row
    size = CHUNK_TOKENS[torch.device(device).type]

    def read() -> None:
        for start in range(0, context, size):
            runner.read([Chunk(sequence, start, min(start + size, context)) for sequence in sequences])

    return batch * context / paced(read, device, budget)


def new_runner(model, batch: int, length: int, device: str, burst: int = 1) -> Runner:
    """A runner whose rows all have pages for `length` tokens, and random states.

    Raises:
        DoesNotFit: the device's memory does not hold them.
    """
    memory, pages = _memory(model, batch, length, device), pages_for(length)
    store = Store(model, batch, length, memory, torch.device(device))
    if store.rows < batch or (store.has_pages and store.pages.total < batch * pages):
        raise DoesNotFit(f"{batch} sequences of {length:,} tokens")
    for row in range(batch if store.has_pages else 0):
        store.hold(row, store.pages.take(pages))
    store.flush()
    _fill(store.state)
    return Runner(model, store, frozenset(), None, burst, True, None)


def _memory(model, batch: int, length: int, device: str) -> int:
    """Bytes with which the engine's memory has room for so many sequences: their rows take half of it at most, and the
    states that it keeps a quarter.

    Raises:
        DoesNotFit: the device has not so many.
    """
    one = Store(model, 1, length, 1, torch.device(device))
    rows, pages = batch * one.row_nbytes, (batch * pages_for(length) + 2) * one.page_nbytes
    del one
    free(device)
    memory = int(2.2 * rows + (1.34 if rows else 1.0) * pages) + 1
    if device.startswith("cuda") and memory > torch.cuda.mem_get_info()[0] - SPARE:
        raise DoesNotFit(f"{batch} sequences of {length:,} tokens would take {memory / 1e9:.0f} GB")
    return memory


def _fill(state) -> None:
    """Random numbers wherever texts leave something."""
    for name in state.AXES:
        part = getattr(state, name)
        if part is not None and part.is_floating_point() and not name.startswith("meta"):
            part.normal_()
