"""Times of calls that are long beside their launch, and the rates of a machine."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median

import torch

from nlrl.benchmarks.kernels.clock import CudaClock, Rates

MOST = 10


def seconds(call: Callable[[], object], device: str) -> float:
    """Of one call, until the device is done."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def paced(call: Callable[[], object], device: str, budget: float) -> float:
    """The median of as many calls as take about `budget` seconds, one at the least; a first one, which may compile,
    does not count."""
    call()
    found = [seconds(call, device)]
    while sum(found) < budget and len(found) < MOST:
        found.append(seconds(call, device))
    return median(found)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def free(device: str) -> None:
    """Gives a GPU's memory back that nobody holds any more; graphs and their runners hold each other."""
    if device.startswith("cuda"):
        gc.collect()
        torch.cuda.empty_cache()


def rates(device: str) -> Rates:
    """Of copies and of matrix products; on a CPU a rough idea, which toys need."""
    if device.startswith("cuda"):
        return CudaClock().rates()
    a, b = torch.randn(2, 256, 256)
    copy, product = (paced(call, device, 0.01) for call in (lambda: b.copy_(a), lambda: a @ b))
    return Rates(2 * a.nbytes / copy, 2 * 256**3 / product)
