"""The Tic-Tac-Toe table: every config, every seed, exact results of the final greedy actor.

    python benchmarks/tictactoe.py configs/tictactoe_gpu.toml configs/tictactoe_pool_gpu.toml --seeds 0 1 2 --out FILE
    python benchmarks/tictactoe.py --read FILE...                   prints the table of figures measured before
    python benchmarks/tictactoe.py --read FILE... --until 6         the same, without what came after iteration 6
    python benchmarks/tictactoe.py --read FILE... --each            every run by itself
    python benchmarks/tictactoe.py --read FILE... --by-iteration    win against random after every iteration

Each run is a process of its own (`nlrl run CONFIG --seed S`), so a run's seconds hold its start, too.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nlrl.benchmarks.figures import machine as processor
from nlrl.orchestration.config import load_config
from nlrl.orchestration.report import evaluations
from nlrl.orchestration.run_folder import RunFolder


def measure(config: Path, seed: int, runs: Path, extra: list[str]) -> dict[str, Any]:
    """Runs one config with one seed and returns its figures by iteration."""
    out = runs / f"{config.stem}-seed{seed}"
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(config)]
    command += ["--seed", str(seed), "--out", str(out), "--trackers", *extra]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return figures(out) | {"config": str(config), "seed": seed, "seconds": time.monotonic() - started}


def figures(out: Path) -> dict[str, Any]:
    """What a finished run says of itself."""
    found = evaluations(RunFolder(out))
    rows = {}
    for iteration, metrics in sorted(found.items()):
        texts = metrics["texts"].get("against_policy", {}).get("text", {})
        rows[iteration] = {
            "exact": metrics["exact"]["against"],
            "exploitability": metrics["exact"]["exploitability"],
            "forfeits": metrics["turns"]["forfeits"],
            "failed_first": metrics["turns"]["failed_first"],
            "verdict_mae": texts.get("mae"),
            "verdict_bias": texts.get("bias"),
            "order_accuracy": texts.get("order_accuracy"),
            "words_agree": metrics["texts"].get("words_agree"),
            "true_claims": metrics["texts"].get("true_claims"),
        }
    return {"model": load_config(out / "config.toml").model.name, "iterations": rows, "ends": iteration_ends(out)}


def collect(run: Path) -> dict[str, Any]:
    """The same of a run that somebody else made."""
    config = load_config(run / "config.toml")
    return figures(run) | {"config": config.name, "seed": config.seed, "seconds": None}


def write(results: list[dict[str, Any]], out: Path | None) -> None:
    """The figures so far, if they are to be written."""
    if out and results:
        document = {"machine": machine(), "command": " ".join(sys.argv), "results": results}
        out.write_text(json.dumps(document, indent=1) + "\n")


def iteration_ends(out: Path) -> dict[str, float]:
    """Iteration -> seconds from the run's first measurement (of the untrained agent) to its own."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    times = {
        str(line["step"]): line["time"]
        for line in lines
        if "evaluation/exact/exploitability" in line.get("metrics", {})
    }
    return {step: round(time - min(times.values()), 1) for step, time in times.items()}


def machine() -> dict[str, str]:
    """Where the figures come from."""
    import ray
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "ray": ray.__version__}
    return {"gpu": gpu, "python": platform.python_version(), "cpu": processor()} | versions


def table(results: list[dict[str, Any]]) -> str:
    """Mean over seeds of the first and the last iteration, as Markdown."""
    lines = [
        "| config | seeds | iterations | win against random: start | after 1 | at the end | loss against minimax "
        "| can be beaten | forfeits | seconds | of these in iterations |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(_name(result) for result in results):
        lines.append("| " + " | ".join(_row(name, [result for result in results if _name(result) == name])) + " |")
    return "\n".join(lines)


def by_iteration(results: list[dict[str, Any]]) -> str:
    """Win against random after every iteration, as Markdown: mean and deviation over the seeds that got so far, and how
    many they are where some did not."""
    last = max(int(iteration) for result in results for iteration in result["iterations"])
    lines = ["| config | " + " | ".join(map(str, range(last + 1))) + " |", "|---" * (last + 2) + "|"]
    for name in dict.fromkeys(_name(result) for result in results):
        runs = [_numbered(result) for result in results if _name(result) == name]
        means = [[run[i]["exact"]["random"]["win"] for run in runs if i in run] for i in range(last + 1)]
        lines.append(f"| {name} | " + " | ".join(_seeds_so_far(wins, len(runs)) for wins in means) + " |")
    return "\n".join(lines)


def _seeds_so_far(values: list[float], all_seeds: int) -> str:
    if not values:
        return ""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation}" + (f" ({len(values)})" if len(values) < all_seeds else "")


def until(results: list[dict[str, Any]], last: int) -> list[dict[str, Any]]:
    """The results without what came after iteration `last`; a run that was cut has no seconds."""
    cut = []
    for result in results:
        kept = {i: row for i, row in result["iterations"].items() if int(i) <= last}
        seconds = result.get("seconds") if len(kept) == len(result["iterations"]) else None
        cut.append(result | {"iterations": kept, "seconds": seconds})
    return cut


def _numbered(result: dict[str, Any]) -> dict[int, Any]:
    return {int(i): row for i, row in sorted(result["iterations"].items(), key=lambda item: int(item[0]))}


def _name(result: dict[str, Any]) -> str:
    return f"{Path(result['config']).stem}, {result['model']}"


def _row(name: str, group: list[dict[str, Any]]) -> list[str]:
    runs = [list(_numbered(result).items()) for result in group]
    ends = [run[-1][1] for run in runs]
    first = [dict(run).get(1, run[-1][1]) for run in runs]
    seconds = [result["seconds"] for result in group if result.get("seconds")]
    return [
        name,
        " ".join(str(result["seed"]) for result in group),
        "/".join(str(run[-1][0]) for run in runs),
        _spread([run[0][1]["exact"]["random"]["win"] for run in runs]),
        _spread([row["exact"]["random"]["win"] for row in first]),
        _spread([row["exact"]["random"]["win"] for row in ends]),
        _spread([row["exact"]["minimax"]["loss"] for row in ends]),
        _spread([row["exploitability"] for row in ends]),
        _spread([row["forfeits"] for row in ends]),
        "/".join(f"{value:.0f}" for value in seconds),
        "/".join(
            f"{result['ends'][str(run[-1][0])]:.0f}"
            for result, run in zip(group, runs, strict=True)
            if "ends" in result
        ),
    ]


def _spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark"), help="where the run folders go")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--read", type=Path, nargs="+", help="print the table of earlier figures instead of measuring")
    parser.add_argument("--collect", type=Path, nargs="+", help="take figures from finished run folders")
    parser.add_argument("--until", type=int, help="with --read: only iterations up to this one")
    parser.add_argument("--each", action="store_true", help="with --read: every run in a row of its own")
    parser.add_argument("--by-iteration", action="store_true", help="with --read: win against random by iteration")
    arguments, extra = parser.parse_known_args(argv)
    if arguments.read:
        results = [result for path in arguments.read for result in json.loads(path.read_text())["results"]]
        results = results if arguments.until is None else until(results, arguments.until)
        show = by_iteration if arguments.by_iteration else table
        for group in [[result] for result in results] if arguments.each else [results]:
            print(show(group))
        return
    results = [collect(path) for path in arguments.collect or []]
    write(results, arguments.out)
    for config in arguments.configs:
        for seed in arguments.seeds:
            results.append(measure(config, seed, arguments.runs, extra))
            write(results, arguments.out)
    print(table(results))


if __name__ == "__main__":
    main()
