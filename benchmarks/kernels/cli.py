"""The command `nlrl bench kernels`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from nlrl import kernels
from nlrl.benchmarks.kernels import report, table
from nlrl.benchmarks.kernels.cases import CASES
from nlrl.benchmarks.kernels.clock import Clock, CudaClock, Once, Rates
from nlrl.benchmarks.kernels.measure import COMPILED, Provider, checked, measure, providers_of
from nlrl.benchmarks.kernels.peers import PEERS_TIMED
from nlrl.benchmarks.kernels.shapes import CHECKS, SHAPES, TARGETS
from nlrl.kernels import devices
from nlrl.kernels.dispatch import OURS, TORCH, Op

LONGEST_COMPILATION = 120
"""Seconds of a provider."""
CSV = Path(__file__).parents[1] / "kernels.csv"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from nlrl.benchmarks import kernels as package

    parser = argparse.ArgumentParser(
        "nlrl bench kernels", description=package.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--op", nargs="+", choices=sorted(CASES), help="these ops; all of them if not given")
    parser.add_argument("--peers", action="store_true", help="other packages too, those that are installed")
    parser.add_argument("--shapes", choices=("small", "paper"), default="paper", help="sizes of which models")
    parser.add_argument("--csv", type=Path, default=CSV, help="where lines are appended")
    parser.add_argument("--record", action="store_true", help="write the dispatcher's table for this device")
    parser.add_argument("--check", action="store_true", help="compare with the reference only, time nothing")
    parser.add_argument("--ahead", type=int, metavar="N", help="compile everything first, N providers at once")
    parser.add_argument("--compile-only", action="store_true", help="call everything once, time nothing")
    parser.add_argument("--read", action="store_true", help="measure nothing, print the CSV file as a table")
    parser.add_argument("--provider", nargs="+", help="these providers only; all that are there if not given")
    parser.add_argument("--without", nargs="+", default=[], metavar="OP/PROVIDER", help="leave these out")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    if args.read:
        report.show(args.csv, args.op)
        return 0
    ops = {name: op for name, op in kernels.ops().items() if name in (args.op or CASES)}
    unknown = sorted(set(kernels.ops()) - set(CASES))
    if unknown and not args.op:
        print(f"no entry in the benchmark yet: {', '.join(unknown)}")
    if args.check:
        return check_all(ops, "cuda") if torch.cuda.is_available() else _check_interpreted(ops)
    if not torch.cuda.is_available():
        print("There is no GPU here, so nothing is timed; --check compares our kernels with the reference.")
        return 1
    if args.compile_only:
        return call_once(ops, args)
    table.refuse_other_header(args.csv)
    if args.ahead:
        args.without += compile_ahead(ops, args)
    return measure_all(ops, args, CudaClock())


def call_once(ops: dict[str, Op], args: argparse.Namespace) -> int:
    """Calls every provider at every size."""
    for name, op in ops.items():
        providers, _ = _providers(name, op, args)
        findings = measure(op, CASES[name], SHAPES[name][args.shapes], CHECKS[name], providers, Once(), "cuda")
        for provider, why in findings.left_out.items():
            print(f"{name}: {provider}: {why}", flush=True)
    return 0


def compile_ahead(ops: dict[str, Op], args: argparse.Namespace) -> list[str]:
    """Fills the caches of compilers, on disk, by a process for each provider of each op: most of the time of a first
    run is theirs. Returns those, op/provider, that did not come to an end and would take as long again."""
    start, options = time.perf_counter(), ["--shapes", args.shapes, *(["--peers"] if args.peers else [])]
    names = [(name, one.name) for name, op in ops.items() for one in _providers(name, op, args)[0]]
    jobs = sorted((job for job in names if job[1] != TORCH), key=lambda job: job[1] != COMPILED)  # long ones first

    def compiled(job: tuple[str, str]) -> tuple[float, tuple[str, str], int | None]:
        begin, silent = time.perf_counter(), subprocess.DEVNULL
        command = [sys.executable, "-m", "nlrl.benchmarks.kernels", "--compile-only", *options]
        command += ["--op", job[0], "--provider", job[1]]
        environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        try:
            done = subprocess.run(
                command, check=False, stdout=silent, stderr=silent, env=environment, timeout=LONGEST_COMPILATION
            )
        except subprocess.TimeoutExpired:
            return time.perf_counter() - begin, job, None
        return time.perf_counter() - begin, job, done.returncode

    with ThreadPoolExecutor(args.ahead) as pool:
        done = sorted(pool.map(compiled, jobs), reverse=True)
    longest = ", ".join(f"{'/'.join(job)} {seconds:.0f} s" for seconds, job, _ in done[:3])
    print(f"compiled ahead in {time.perf_counter() - start:.0f} s ({longest})", flush=True)
    failed = ["/".join(job) for _, job, code in done if code]
    late = ["/".join(job) for _, job, code in done if code is None]
    for names, what in ((failed, "failed"), (late, f"left out, as not compiled within {LONGEST_COMPILATION} s")):
        if names:
            print(f"{what}: {', '.join(names)}", flush=True)
    return late


def _providers(name: str, op: Op, args: argparse.Namespace) -> tuple[list[Provider], list[str]]:
    """Those that are there, of those that are asked for; names of those that are not there."""
    found, absent = providers_of(op, CASES[name], PEERS_TIMED.get(name, {}), args.peers)
    wanted = args.provider or [provider.name for provider in found]
    wanted = [provider for provider in wanted if f"{name}/{provider}" not in args.without]
    return [provider for provider in found if provider.name in wanted], absent


def _check_interpreted(ops: dict[str, Op]) -> int:
    """`check_all` on the CPU. Triton must find its switch when it is imported, which torch may have done already."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return check_all(ops, "cpu")
    print("There is no GPU here: Triton's interpreter runs our kernels, at the sizes of the checks alone.", flush=True)
    command = [sys.executable, "-m", "nlrl.benchmarks.kernels", "--check", "--op", *ops]
    return subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=False).returncode


def check_all(ops: dict[str, Op], device: str) -> int:
    """Holds our kernel and the eager implementation of every op to the reference. Returns how many are wrong."""
    dtypes = [torch.float32] if device == "cpu" else [torch.float32, torch.bfloat16]
    wrong = 0
    for name, op in ops.items():
        providers = [Provider(TORCH, op.eager)]
        if op.available()[OURS]:
            providers.insert(0, Provider(OURS, op.provider(OURS), 1.5))
        else:
            print(f"{name:16} {OURS:6} absent: Triton is not installed")
        for provider in providers:
            wide = [torch.float32] if name == "adam_normalise" else dtypes
            verdict = checked(op, CASES[name], provider, CHECKS[name], wide, device)
            wrong += not verdict.right
            print(f"{name:16} {provider.name:6} {'right' if verdict.right else 'WRONG'}: {verdict.worst}", flush=True)
    return min(wrong, 1)


def measure_all(ops: dict[str, Op], args: argparse.Namespace, clock: Clock) -> int:
    """Measures, prints and writes op by op, so that what was measured is kept if a later one ends the program."""
    gpu, rates = devices.current(), clock.rates()
    print(f"{gpu}; {table.versions()}")
    print(f"copy {rates.copy / 1e9:,.0f} GB/s, matrix product {rates.matmul / 1e12:,.0f} TFLOP/s")
    table.append(args.csv, report.rate_lines(rates), gpu)
    wrong, left = False, list(ops)
    while left:
        name = left.pop(0)
        try:
            wrong |= not _measure_op(name, ops[name], args, clock, rates, gpu)
        except torch.AcceleratorError as error:  # a wrong address: nothing runs on the device in this process any more
            print(f"\n{name}: {str(error).splitlines()[0]}; nothing of it is kept", flush=True)
            return _go_on(left, args) or 1
    return int(wrong)


def _go_on(left: Sequence[str], args: argparse.Namespace) -> int:
    """The other ops, in a new process."""
    if not left:
        return 0
    switches = [f"--{name}" for name in ("peers", "record") if getattr(args, name)]
    chosen = ["--provider", *args.provider] if args.provider else []
    chosen += ["--without", *args.without] if args.without else []
    command = [sys.executable, "-m", "nlrl.benchmarks.kernels", "--shapes", args.shapes, "--csv", str(args.csv)]
    return subprocess.run([*command, *switches, *chosen, "--op", *left], check=False).returncode


def _measure_op(name: str, op: Op, args: argparse.Namespace, clock: Clock, rates: Rates, gpu: str) -> bool:
    """Returns whether our kernel was right."""
    peers = PEERS_TIMED.get(name, {})
    providers, absent = _providers(name, op, args)
    findings = measure(op, CASES[name], SHAPES[name][args.shapes], CHECKS[name], providers, clock, "cuda")
    yardsticks = [peer for peer, spec in peers.items() if not spec.same]
    table.show(findings, TARGETS.get(name, []), rates, yardsticks)
    if absent:
        print(f"  absent: {', '.join(absent)}")
    table.append(args.csv, findings.measured, gpu)
    entry = table.fastest(findings.measured, (OURS, TORCH, *op.peers))
    right = OURS not in findings.left_out
    if args.record and entry is not None and right:
        file = devices.write(gpu, table.versions(), {name: entry})
        print(f"  recorded in {file}: {entry['provider']}, forward {entry.get('forward', entry['provider'])}")
    elif args.record and not right:
        print("  not recorded, as ours is not right at all sizes")
    return right
