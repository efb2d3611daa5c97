"""The command `nlrl bench models`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from nlrl.benchmarks.models.configs import CONTROL, SERVED, TRAINED, tiny

PARTS = ("train", "decode", "compare")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from nlrl.benchmarks import models as package
    from nlrl.benchmarks.models.training import KERNELS

    parser = argparse.ArgumentParser(
        "nlrl bench models", description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--models", nargs="+", choices=[*TRAINED, *SERVED], help="these; all of them if not given")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS), help="of training steps")
    parser.add_argument("--compile", action="store_true", help="torch.compile of training steps: a minute a model")
    parser.add_argument("--rows", type=int, default=16, help="texts of 2,048 tokens in a training step")
    parser.add_argument("--tiny", action="store_true", help="toys on the CPU: shows that it runs")
    parser.add_argument("--json", type=Path, help="write the lines here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    import torch

    if not args.tiny and not torch.cuda.is_available():
        print("There is no GPU here; --tiny runs toys on the CPU.")
        return 1
    return _measure(args, "cpu" if args.tiny else "cuda")


def _measure(args: argparse.Namespace, device: str) -> int:
    """Returns 1 if something failed."""
    from nlrl.benchmarks.backbones import where
    from nlrl.benchmarks.models import clock, serving, training
    from nlrl.benchmarks.models.report import Report

    trained, served = (_chosen(known, args.models, args.tiny) for known in (TRAINED, SERVED))
    if trained:
        trained = _chosen(TRAINED, [CONTROL, *trained], args.tiny)
    rates = clock.rates(device)
    header = {"device": where(device), "rates": rates._asdict(), "options": {n: str(v) for n, v in vars(args).items()}}
    report = Report(args.json, header, judges=not args.tiny)
    print(where(device))
    print(f"copy {rates.copy / 1e9:,.0f} GB/s, matrix product {rates.matmul / 1e12:,.3g} TFLOP/s", flush=True)
    if "train" in args.parts:
        load = training.Load(args.rows, compile=args.compile)
        load = training.Load(2, 16, 0.0, args.compile) if args.tiny else load
        training.measure(trained, args.kernels, load, device, rates, report)
    if {"decode", "compare"} & set(args.parts):
        grid = serving.Grid((1, 3), (8, 40), 24, (6, 2), 4, 60, 0.0) if args.tiny else serving.Grid()
        serving.measure(served, args.parts, grid, device, rates, report)
    return int(any(line.failed for line in report.lines))


def _chosen(known: dict, names: Sequence[str] | None, small: bool) -> dict:
    """Those of the names that are known, in the order in which they are known."""
    return {name: tiny(fields) if small else fields for name, fields in known.items() if names is None or name in names}
