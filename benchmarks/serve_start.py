"""Seconds from nothing to the first token, in a fresh process; a part of `nlrl bench serve`.

The clock starts before the interpreter does. Both engines start once untimed: the files are in memory then, and the
extension for the CPU, which takes a compiler's time once on every machine, has been built. vLLM starts in its quicker
way, without compiling.

As a program (`python -m nlrl.benchmarks.serve_start FOLDER DEVICE`): writes one token, and ends.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from nlrl.benchmarks.figures import Figure
from nlrl.benchmarks.serve_throughput import export, vllm_settings
from nlrl.benchmarks.serve_vllm import VLLM
from nlrl.benchmarks.timing import ratio

PROMPT = list(range(5, 37))
TARGET = 3.0


def compare(
    fields: dict[str, Any], device: str, rounds: int, folder: Path, peer: Callable[..., VLLM] | None
) -> list[Figure]:
    """Figures of one checkpoint, of the config's shape."""
    dtype = "float32" if device == "cpu" else "bfloat16"
    export(fields, folder, 1024, dtype)
    starts: dict[str, Callable[[], float]] = {"nlrl": lambda: _ours(folder, device)}
    if peer is not None:
        settings = vllm_settings(folder, 1024, 16, dtype, device, eager=True)
        starts["vLLM"] = lambda: _theirs(peer, settings)
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    for number in range(rounds + 1):
        for name, start in starts.items():
            took = start()
            seconds[name] += [took] if number else []
    what, own = f"start of a process to its first token, {device}", median(seconds["nlrl"])
    target = {"target": f"under {TARGET:g} s", "met": own < TARGET} if device == "cpu" else {}
    figures = [Figure("start", what, "nlrl", own, "s", **target)]
    if peer is not None:
        times = ratio(seconds["vLLM"], seconds["nlrl"])
        figures.append(Figure("start", what, "vLLM", median(seconds["vLLM"]), "s", times, note="ratio: of times"))
    return figures


def _ours(folder: Path, device: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-m", "nlrl.benchmarks.serve_start", str(folder), device]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - start
    if line != "first token\n":
        raise RuntimeError(f"{' '.join(command)} ended with code {process.returncode}")
    return seconds


def _theirs(peer: Callable[..., VLLM], settings: dict[str, Any]) -> float:
    start = time.perf_counter()
    with peer(**settings) as vllm:
        vllm.version()
        vllm.generate([PROMPT], 1)
        return time.perf_counter() - start


def main(folder: str, device: str) -> None:
    import torch

    from nlrl.backbones import load_network
    from nlrl.backbones.engine import Engine
    from nlrl.backbones.language_model import Request, Sampling

    model, tokenizer = load_network(folder)
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    with Engine(model.to(device=device, dtype=dtype), tokenizer, max_rows=16) as engine:
        engine.generate([Request(tokens=tuple(PROMPT), sampling=Sampling(temperature=0.0, max_tokens=1))])
        print("first token", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
