"""What measurements become: printed lines, verdicts on targets, lines of a CSV file, and the dispatcher's table."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from importlib import metadata
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from nlrl.benchmarks.kernels.clock import Rates
from nlrl.benchmarks.kernels.measure import Findings, Measured, groups, words
from nlrl.benchmarks.kernels.shapes import Target
from nlrl.kernels.dispatch import OURS, TORCH

HEADER = ("kernel", "provider", "shape", "dtype", "mode", "p20", "p50", "p80", "gpu", "versions")
PACKAGES = (
    "torch", "triton", "mamba_ssm", "causal_conv1d", "flash-linear-attention", "fla-core", "liger_kernel", "vllm",
)  # fmt: skip
OURS_TOO = "composed"
"""PyTorch's attention between passes of ours: a target may be met by either, as the dispatcher may choose either."""
GENERAL = (OURS, OURS_TOO, TORCH, "torch.compile")
"""Providers that are no peers: no other package."""


class Outcome(NamedTuple):
    """A target and what became of it."""

    text: str
    met: bool


def versions() -> str:
    """`torch=2.11.0 triton=3.6.0 ...`, of what is installed."""
    found = []
    for package in PACKAGES:
        try:
            found.append(f"{package}={metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return " ".join(found)


def best_peer(lines: Sequence[Measured], yardsticks: Iterable[str] = ()) -> Measured | None:
    """The fastest of other packages, or of eager and compiled torch where there is none."""
    others = [line for line in lines if line.provider not in (OURS, OURS_TOO) and line.provider not in yardsticks]
    peers = [line for line in others if line.provider not in GENERAL] or others
    return min(peers, key=lambda line: line.times.p50, default=None)


def outcomes(lines: Sequence[Measured], targets: Sequence[Target], rates: Rates) -> list[Outcome]:
    """Of our line's targets, those that can be told from these lines and rates; lines are of one op, shape and mode."""
    by_provider = {line.provider: line for line in lines}
    if OURS not in by_provider:
        return []
    ours = min((by_provider[name] for name in (OURS, OURS_TOO) if name in by_provider), key=lambda line: line.times.p50)
    by, found = f" ({OURS_TOO})" if ours.provider == OURS_TOO else "", []
    for target in targets:
        if ours.mode not in target.modes or target.graph not in (None, ours.graph):
            continue
        if any(ours.shape.get(name) != number for name, number in target.only):
            continue
        if target.of == "copy":
            if not rates.copy:
                continue
            share = ours.bytes_per_second / rates.copy
            text = f"{share:.0%} of copy{by}, target >= {target.at_least:.0%}"
            found.append(Outcome(text, share >= target.at_least))
            continue
        beside = [by_provider[name] for name in target.of.split(",") if name in by_provider]
        if beside:
            best = min(beside, key=lambda line: line.times.p50)
            ratio = best.times.p50 / ours.times.p50
            text = f"{ratio:.2f}x {best.provider}{by}, target >= {target.at_least:.2f}x"
            found.append(Outcome(text, ratio >= target.at_least))
    return found


def show(findings: Findings, targets: Sequence[Target], rates: Rates, yardsticks: Iterable[str] = ()) -> None:
    """Prints all lines of an op."""
    print(f"\n{findings.op}")
    for lines in groups(findings.measured):
        first = lines[0]
        how = ", graph replay" if first.graph else ""
        print(f"  {words(first.shape)}, {first.dtype}, {first.mode}{how}")
        for line in lines:
            print(f"    {_figures(line, rates)}")
        ours, best = next((line for line in lines if line.provider == OURS), None), best_peer(lines, yardsticks)
        if ours is not None and best is not None:
            print(f"    {OURS} is {best.times.p50 / ours.times.p50:.2f}x {best.provider}")
        for outcome in outcomes(lines, targets, rates):
            print(f"    {outcome.text}: {'met' if outcome.met else 'MISSED'}")
    for provider, why in findings.left_out.items():
        print(f"  {provider}: {why}")


def _figures(line: Measured, rates: Rates) -> str:
    times, moved, done = line.times, line.bytes_per_second, line.flops_per_second
    return (
        f"{line.provider:20}{times.p50:11,.1f} us ({times.p20:,.1f} to {times.p80:,.1f})"
        f"{moved / 1e9:10,.0f} GB/s {moved / rates.copy:5.0%} of copy"
        f"{done / 1e12:9.2f} TFLOP/s {done / rates.matmul:5.1%} of matmul"
    )


def append(file: Path, measured: Iterable[Measured], gpu: str) -> None:
    """Adds lines to the CSV file, which gets its header if it is new.

    Raises:
        ValueError: the file has another header.
    """
    new = not file.exists() or not file.stat().st_size
    if not new:
        refuse_other_header(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        if new:
            writer.writerow(HEADER)
        for line in measured:
            quantiles = (f"{value:.3f}" for value in line.times)
            writer.writerow(
                (line.op, line.provider, words(line.shape), line.dtype, line.mode, *quantiles, gpu, versions())
            )


def refuse_other_header(file: Path) -> None:
    """Raises: ValueError: the file is there and is no file of ours."""
    if file.exists() and file.stat().st_size:
        header = file.read_text().splitlines()[0]
        if header != ",".join(HEADER):
            raise ValueError(f"{file} begins with {header!r}, not with {','.join(HEADER)!r}")


def fastest(measured: Sequence[Measured], servers: Sequence[str]) -> dict[str, Any] | None:
    """What the dispatcher's table says of an op: `provider` and `relative`, mean times over those of the baseline, and
    `forward`, the fastest one for calls without gradients where these were measured too and it is another one.

    A provider that cannot do a size leaves it to ours, and counts as ours there.

    Args:
        measured: lines of one op.
        servers: providers that can take its place.
    """
    found = list(groups(measured))
    relative = _relative([lines for lines in found if _counts(lines[0], measured)], servers)
    if not relative:
        return None
    entry: dict[str, Any] = {"provider": _least(relative), "relative": relative}
    forward = _relative([lines for lines in found if lines[0].mode == "forward"], servers)
    if forward and _least(forward) != entry["provider"]:
        entry["forward"] = _least(forward)
    return entry


def _relative(lines: Sequence[Sequence[Measured]], servers: Sequence[str]) -> dict[str, float]:
    """Mean times over those of ours, or of PyTorch where ours has none."""
    servers = [name for name in servers if any(line.provider == name for group in lines for line in group)]
    if not servers:
        return {}
    baseline = OURS if OURS in servers else TORCH if TORCH in servers else servers[0]
    ratios: dict[str, list[float]] = {name: [] for name in servers}
    for group in lines:
        times = {line.provider: line.times.p50 for line in group}
        if baseline in times:
            for name in servers:
                ratios[name].append(log(times.get(name, times[baseline]) / times[baseline]))
    return {name: round(exp(mean(logs)), 3) for name, logs in ratios.items() if logs}


def _least(relative: dict[str, float]) -> str:
    return min(relative, key=lambda name: (relative[name], name != OURS))


def _counts(line: Measured, measured: Sequence[Measured]) -> bool:
    """A call in training is one forward and one backward: the halves do not count where both were measured."""
    shape = [other for other in measured if other.shape == line.shape and other.dtype == line.dtype]
    return line.mode == "both" or not any(other.mode == "both" for other in shape)
