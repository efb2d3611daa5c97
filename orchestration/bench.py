"""`nlrl bench WHAT`: the project's benchmarks, which are programs under `benchmarks/`."""

from __future__ import annotations

from importlib import import_module

import tyro

from nlrl.errors import NLRLError

BENCHMARKS = {
    "asynchrony": "lock-step beside overlapping iterations; rollouts on many servers",
    "backbones": "speed of the architectures",
    "baselines": "every method under one budget",
    "breakthrough_value": "who wins, on exact labels",
    "cache": "bytes of decode states",
    "conformance": "promises of games, ours and others'",
    "cpu_step": "a decoding step on a CPU",
    "envs": "rules, tables, solvers",
    "games": "runs on other games",
    "kernels": "each fused op on a GPU",
    "kills": "whatever dies, nothing is lost",
    "load": "many actors against one engine",
    "memory": "what a run with Hugging Face models takes",
    "mirror": "what keeping a run in a store costs",
    "models": "whole models on a GPU: training, decoding, prompts",
    "scale_bill": "what 10^9 turns need",
    "scale_costs": "what a turn costs the platform",
    "scale_simulation": "ten thousand actors, simulated",
    "serve": "the engine beside vLLM",
    "stages": "what text stages take beside the model",
    "storage": "what int8 weights cost",
    "tictactoe": "runs of Tic-Tac-Toe",
    "threads": "what waiting in spin loops costs processes that share cores",
    "transfer": "new weights on their way to engines",
    "viewer": "finding games among many",
    "viewer_step": "the next move in a browser",
    "watching": "what logs, metrics and times cost",
}
"""Modules of `nlrl.benchmarks`, each with a `main(arguments)`, and what they measure."""


def bench_command(what: tyro.conf.Positional[str], rest: tyro.conf.Positional[tuple[str, ...]] = ()) -> None:
    if what not in BENCHMARKS:
        raise NLRLError(f"there is no benchmark '{what}'; there are: {', '.join(BENCHMARKS)}")
    if code := import_module(f"nlrl.benchmarks.{what}").main(list(rest)):
        raise SystemExit(code)


bench_command.__doc__ = f"""Runs one of the project's benchmarks: ours beside the peers that are installed, in one run.

Args:
    what: {", ".join(f"{name} ({told})" for name, told in BENCHMARKS.items())}.
    rest: its own arguments, after `--`; `nlrl bench envs -- --help` lists them.
"""
