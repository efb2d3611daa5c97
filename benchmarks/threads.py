"""What spinning at barriers costs processes that share cores: `nlrl bench threads`.

    nlrl bench threads                                   one process alone, and two side by side, a thread a core each
    nlrl bench threads -- --spins default 2000 1000 passive --json FILE

Every process trains the bundled Transformer on made-up texts for some seconds and says how many tokens a second went
through. `--spins`: GNU OpenMP's `GOMP_SPINCOUNT` (how often a thread that waits for others looks before it sleeps),
"default" for its own choice, "passive" for `OMP_WAIT_POLICY=PASSIVE`. The order is repeated, medians are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from nlrl.benchmarks.figures import machine

BATCH, PROMPT, ANSWER, VOCABULARY = 32, 40, 40, 500
"""Of made-up examples: how many a step, and their tokens."""


def environment(spins: str) -> dict[str, str]:
    """Of a process that is to wait so."""
    kept = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    if spins == "default":
        return kept
    return kept | ({"OMP_WAIT_POLICY": "PASSIVE"} if spins == "passive" else {"GOMP_SPINCOUNT": spins})


def train(threads: int, seconds: float, model: str) -> float:
    """Tokens a second of this process; a step that began in time is counted, however long it takes."""
    import torch

    from nlrl.backbones.loading import load_trainable
    from nlrl.backbones.packing import TokenExample
    from nlrl.backbones.training import Trainer

    torch.set_num_threads(threads)
    draw = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(5, VOCABULARY) for _ in range(count))

    examples = [TokenExample(tokens(PROMPT), tokens(ANSWER), 1.0) for _ in range(BATCH)]
    trainer = Trainer(load_trainable(model)[0], 1e-4)
    trainer.fit(examples, 1, BATCH)
    start, done = time.monotonic(), 0
    while time.monotonic() - start < seconds:
        trainer.fit(examples, 1, BATCH)
        done += sum(map(len, examples))
    return done / (time.monotonic() - start)


def measure(spins: str, processes: int, args: argparse.Namespace) -> list[float]:
    """Of processes that begin at once."""
    command = [sys.executable, "-m", "nlrl.benchmarks.threads", "--child", "--threads", str(args.threads)]
    command += ["--seconds", str(args.seconds), "--model", args.model]
    started = [
        subprocess.Popen(command, env=environment(spins), stdout=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("a process failed; what it said stands above")
    return [float(line) for line in said]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        "nlrl bench threads", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spins", nargs="+", default=["default", "2000"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of each process")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="transformer-base")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        print(train(args.threads, args.seconds, args.model))
        return
    found: dict[str, dict[str, list[list[float]]]] = {spins: {"1": [], "2": []} for spins in args.spins}
    for _ in range(args.rounds):
        for spins in args.spins:
            for processes in (1, 2):
                found[spins][str(processes)].append(measure(spins, processes, args))
    base = median(sum(rates) for rates in found[args.spins[0]]["1"])
    print(
        f"{machine()}, {args.threads} threads a process; alone with {args.spins[0]} spins is 1 ({base:,.0f} tokens/s)"
    )
    for spins, of in found.items():
        alone, both = (median(sum(rates) for rates in of[n]) / base for n in ("1", "2"))
        print(f"  {spins:>8} spins: alone {alone:.2f}, two together {both:.2f}")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": machine(), "threads": args.threads, "tokens_per_second": found}, indent=1)
        )


if __name__ == "__main__":
    main(sys.argv[1:])
