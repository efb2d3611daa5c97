"""The lines of `benchmarks/kernels.csv` as a table, with what was asked of our kernels: `nlrl bench kernels -- --read`.

Of each op, size and pass the newest measurement of ours counts, beside what was measured with it in the same run.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import torch

from nlrl.benchmarks.kernels.cases import CASES
from nlrl.benchmarks.kernels.clock import COPY_BYTES, MATMUL_SIZE, Rates, Times
from nlrl.benchmarks.kernels.measure import Measured, words
from nlrl.benchmarks.kernels.peers import PEERS_TIMED
from nlrl.benchmarks.kernels.shapes import SHAPES, TARGETS
from nlrl.benchmarks.kernels.table import best_peer, outcomes
from nlrl.kernels.costs import Cost, Mode, cost
from nlrl.kernels.dispatch import OURS

HEAD = "| op | size | pass | us | beside | times as fast | aims |"
MACHINE = "machine"
"""In place of an op: the rates that shares are of."""


class Group(NamedTuple):
    """What was measured side by side."""

    gpu: str
    rates: Rates
    """Zero where they were not kept."""
    lines: list[Measured]
    """Ours first."""


def rate_lines(rates: Rates) -> list[Measured]:
    """The machine's rates as lines of the file: a copy of 1 GiB and a product of square matrices."""
    copy, product = 2e6 * COPY_BYTES / rates.copy, 2e6 * MATMUL_SIZE**3 / rates.matmul
    return [
        _line("copy", {"bytes": COPY_BYTES}, "uint8", copy),
        _line("matmul", {"size": MATMUL_SIZE}, "bfloat16", product),
    ]


def _line(provider: str, shape: dict[str, int], dtype: str, microseconds: float) -> Measured:
    return Measured(MACHINE, provider, shape, dtype, "forward", Times(*[microseconds] * 3), NO_COST, False)


NO_COST = Cost(0, 0)


def groups(file: Path) -> list[Group]:
    """Of a file that `nlrl bench kernels` wrote; ops that are no more are left out."""
    found: dict[tuple, Group] = {}
    rates: dict[str, Rates] = {}
    for row in _rows(file):
        gpu, shape = (
            row["gpu"],
            {name: int(value) for name, value in (part.split("=") for part in row["shape"].split())},
        )
        if row["kernel"] == MACHINE:
            rates[gpu] = _with(rates.get(gpu, Rates(0, 0)), row)
            continue
        if row["kernel"] not in CASES:
            continue
        line = _measured(row, shape)
        key = (line.op, words(shape), line.dtype, line.mode, gpu)
        if line.provider == OURS:
            found.pop(key, None)
            found[key] = Group(gpu, rates.get(gpu, Rates(0, 0)), [line])
        elif key in found:
            found[key].lines.append(line)
    return sorted(found.values(), key=lambda group: (group.gpu, group.lines[0].op))


def _shape(text: str) -> dict[str, int]:
    """Of `words`."""
    return {name: int(value) for name, value in (part.split("=") for part in text.split())}


def _rows(file: Path) -> Iterator[dict[str, str]]:
    with file.open(newline="") as lines:
        yield from csv.DictReader(lines)


def _with(rates: Rates, row: dict[str, str]) -> Rates:
    seconds = float(row["p50"]) / 1e6
    if row["provider"] == "copy":
        return rates._replace(copy=2 * COPY_BYTES / seconds)
    return rates._replace(matmul=2 * MATMUL_SIZE**3 / seconds)


def _measured(row: dict[str, str], shape: dict[str, int]) -> Measured:
    op, mode, dtype = row["kernel"], row["mode"], row["dtype"]
    assert mode in get_args(Mode), row
    times = Times(*(float(row[name]) for name in ("p20", "p50", "p80")))
    timed = [line for sizes in SHAPES[op].values() for line in sizes if line.shape == shape]
    graph = any(line.graph for line in timed)
    bytes_and_flops = cost(op, mode, getattr(torch, dtype).itemsize, **shape)  # pyright: ignore[reportArgumentType]
    return Measured(op, row["provider"], shape, dtype, mode, times, bytes_and_flops, graph)


def show(file: Path, names: Sequence[str] | None = None) -> None:
    """Prints a table in Markdown for each GPU."""
    before = ""
    for group in groups(file):
        if names and group.lines[0].op not in names:
            continue
        if group.gpu != before:
            print(f"\n{group.gpu}\n\n{HEAD}\n{'|---' * (HEAD.count('|') - 1)}|")
        before = group.gpu
        print(_row(group))


def _row(group: Group) -> str:
    ours = group.lines[0]
    yardsticks = [name for name, peer in PEERS_TIMED.get(ours.op, {}).items() if not peer.same]
    best = best_peer(group.lines, yardsticks)
    aims = [
        f"{outcome.text}: {'met' if outcome.met else '**missed**'}"
        for outcome in outcomes(group.lines, TARGETS.get(ours.op, []), group.rates)
    ]
    beside = [f"{best.provider} {best.times.p50:,.1f}", f"{best.times.p50 / ours.times.p50:.2f}"] if best else ["", ""]
    cells = [ours.op, words(ours.shape), ours.mode, f"{ours.times.p50:,.1f}", *beside, "; ".join(aims)]
    return f"| {' | '.join(cells)} |"
