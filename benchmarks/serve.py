"""Serving: the native engine beside vLLM, in one run: `nlrl bench serve`, or `python -m nlrl.benchmarks.serve`.

Both engines get the same weights, requests and lengths on the same machine, in turns; figures are medians of the rounds
after a first one that does not count, ratios those of rates from the same round. vLLM runs in a process of its own, in
the interpreter of `.venv-vllm` or the one given; without it ours is measured alone. The loads:

  bundled      the bundled control as a Llama (or --layers, --width), 64 requests and one, on a CPU
  h100-small   16M parameters, 512 requests of 512 tokens in and 128 out, and one
  h100-large   1.19B parameters, the same
  game         prompts of a recorded run with shared prefixes, Hymba and Bi-Mamba: served, offline, without reuse
  kl           log-probabilities beside those of the training forward
  start        a fresh process to its first token
  hymba-1.5b   decoding beside the roofline of an H100, random weights
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from nlrl.benchmarks import serve_game, serve_hymba, serve_kl, serve_start, serve_throughput
from nlrl.benchmarks.figures import Figure
from nlrl.benchmarks.serve_throughput import Load, shape
from nlrl.benchmarks.serve_vllm import VLLM, VLLMFailed, interpreter

SMALL, LARGE = shape(8, 384, 4096), shape(24, 2048, 51200, kv_heads=8, feed_forward=5632)
DEFAULT = {"cpu": ("bundled", "game", "kl", "start"), "cuda": ("h100-small", "h100-large", "game", "kl", "hymba-1.5b")}
GAME_REQUESTS = {"cpu": 64, "cuda": 4096}
PLACES = ("json", "run", "vllm_python", "vllm_path")
"""Options that say where things lie on the machine at hand: not written into reports."""


def throughput_loads(layers: int | None, width: int | None) -> dict[str, Load]:
    """The loads of both engines; layers and width: instead of the bundled control's."""
    from nlrl.benchmarks.backbones import CONTROL, pretraining_architectures

    control = {k: v for k, v in pretraining_architectures()[CONTROL].items() if k != "model_type"}
    bundled = shape(layers or 6, width or 192, 1024) if layers or width else control
    loads = [
        Load("bundled", bundled, 64, 64, 64, (3, 0)),
        Load("h100-small", SMALL, 512, 512, 128, (8, 4)),
        Load("h100-large", LARGE, 512, 512, 128, (1, 1.2)),
    ]
    return {load.name: load for load in loads}


def figures(name: str, args: argparse.Namespace, folder: Path, peer: Callable[..., VLLM] | None) -> Iterable[Figure]:
    """Of one load; folder: an empty one."""
    loads = throughput_loads(args.layers, args.width)
    if name in loads:
        given = {"requests": args.requests, "prompt_tokens": args.prompt_tokens, "tokens": args.tokens}
        load = replace(loads[name], **{field: value for field, value in given.items() if value})
        return serve_throughput.compare(load, args.device, args.rounds, folder / "model", peer, args.vllm_eager)
    if name == "start":
        return serve_start.compare(loads["bundled"].fields, args.device, args.rounds, folder / "model", peer)
    if name == "kl":
        return serve_kl.compare(args.device, args.kl_answers, 64)
    if name == "hymba-1.5b":
        return serve_hymba.compare(args.rounds)
    run = args.run or serve_game.record(folder / "run", games=64)
    count = args.game_requests or GAME_REQUESTS[args.device.partition(":")[0]]
    return serve_game.compare(run, args.style, count, args.device, args.rounds)


def show(found: Iterable[Figure]) -> list[Figure]:
    """Prints one load's lines as they come (some figures are far below 1); returns them."""
    what, shown = None, []
    for figure in found:
        shown.append(figure)
        if figure.what != what:
            print(f"  {figure.what}")
        what = figure.what
        number = f"{figure.value:,.0f}" if figure.value >= 100 else f"{figure.value:.3g}"
        ours = "" if figure.ratio is None else f"nlrl is {figure.ratio:.2f}x"
        verdict = "" if figure.met is None else f"{figure.target}: {'met' if figure.met else 'MISSED'}"
        note = f"({figure.note})" if figure.note else ""
        print(f"    {figure.name:18}{number:>10} {figure.unit:9}{ours:17}{verdict:24}{note}".rstrip(), flush=True)
    return shown


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*throughput_loads(None, None), "game", "kl", "start", "hymba-1.5b"]
    parser.add_argument("--loads", nargs="+", choices=names, help=f"what to measure; by default, by device: {DEFAULT}")
    parser.add_argument("--device", default="auto", help="cpu, cuda; auto takes a GPU where there is one")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU, for both engines; 0 is torch's choice")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of the bundled load's model")
    parser.add_argument("--width", type=int, help="of the bundled load's model")
    parser.add_argument("--requests", type=int, help="at once, instead of the load's")
    parser.add_argument("--prompt-tokens", type=int, help="of each, instead of the load's")
    parser.add_argument("--tokens", type=int, help="written for each, instead of the load's")
    parser.add_argument("--run", type=Path, help="game: folder of a run; by default a short one is made")
    parser.add_argument("--style", default="instruct", help="game: style of the prompts")
    parser.add_argument("--game-requests", type=int, help=f"game: by default, by device: {GAME_REQUESTS}")
    parser.add_argument("--kl-answers", type=int, default=128, help="kl: answers sampled, of each model")
    parser.add_argument("--vllm-python", default="", help="an interpreter with vLLM; by default .venv-vllm's")
    parser.add_argument("--vllm-path", default="", help="a folder of packages for it, where vLLM was installed apart")
    parser.add_argument("--vllm-eager", action="store_true", help="vLLM neither compiles nor captures graphs")
    parser.add_argument("--no-vllm", action="store_true", help="ours alone")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


def _peer(args: argparse.Namespace, threads: int) -> Callable[..., VLLM] | None:
    python = None if args.no_vllm else interpreter(args.vllm_python)
    if python is None:
        print("vLLM is not measured: " + ("not wanted" if args.no_vllm else "no interpreter (see --vllm-python)"))
        return None
    return partial(VLLM, python, args.vllm_path, args.device, threads)


def main(argv: Sequence[str] | None = None) -> int:
    import torch

    from nlrl.benchmarks.backbones import where
    from nlrl.orchestration.models import resolve_device, set_threads

    args = _parse(argv)
    set_threads(args.threads)
    args.device = resolve_device(args.device)
    peer = _peer(args, torch.get_num_threads())
    print(where(args.device), flush=True)
    found: list[Figure] = []
    for name in args.loads or DEFAULT[args.device.partition(":")[0]]:
        print(f"\n{name}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            try:
                found += show(figures(name, args, Path(folder), peer))
            except VLLMFailed as error:
                print(f"  {error}", file=sys.stderr)
                return 1
        if args.json:
            args.json.write_text(json.dumps(_report(args, where(args.device), found), indent=1) + "\n")
    return 0


def _report(args: argparse.Namespace, machine: str, found: Sequence[Figure]) -> dict[str, Any]:
    given = {name: str(value) for name, value in vars(args).items() if value is not None and name not in PLACES}
    return {"machine": machine, "options": given, "figures": [asdict(figure) for figure in found]}


if __name__ == "__main__":
    sys.exit(main())
