"""The other games' table: every config, every seed, the figure that its game is judged by, after every iteration.

    python benchmarks/games.py configs/maze_double_t.toml configs/frozen_lake_slippery.toml --seeds 0 1 2 --out FILE
    python benchmarks/games.py --collect runs/a runs/b --out FILE      of runs made before; NAME=RUN names one otherwise
    python benchmarks/games.py --read FILE...                          prints the table of figures measured before

The figure: the exact return of the greedy actor where the game can be solved for it, the mean return of its walks where
a method plans, the share of held-out positions whose winner is named rightly where only values are learned, else the
win rate against each opponent. Each run is a process of its own, and `--` passes options on to `nlrl run`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nlrl.benchmarks.tictactoe import iteration_ends, machine
from nlrl.orchestration.config import load_config
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics

PREFIX = "evaluation/"
TEXTS = {
    "right sign": "texts/against_policy/text/sign_accuracy",
    "right side": "texts/against_policy/text/side_accuracy",
    "ECE": "texts/against_policy/text/ece",
    "failed first": "turns/failed_first",
    "leaks": "texts/leaks",
    "actor's illegal": "turns/actor_illegal",
}
"""What else is kept of an evaluation, where it has it: the actor-critics' figures about their texts."""
WINNER = "values/text/side_accuracy"
EXACT, OPTIMUM = "exact/against/none/return", "exact/optimum"
WALKS = "sampled/greedy/none/return/mean"


def figures_of(numbers: Mapping[str, Any]) -> dict[str, float]:
    """What a game is judged by, of the metrics of one evaluation: name -> value."""
    for name, title in ((WINNER, "winner named"), (EXACT, "exact return"), (WALKS, "mean return")):
        if PREFIX + name in numbers:
            return {title: numbers[PREFIX + name]}
    wins = {name: value for name, value in numbers.items() if name.startswith(PREFIX + "sampled/greedy/")}
    suffix = "/win/share"
    return {
        f"won against {name.split('/')[-3]}": value for name, value in sorted(wins.items()) if name.endswith(suffix)
    }


def collect(run: Path, name: str = "") -> dict[str, Any]:
    """The figures of a run by iteration, read from its metrics; seconds since the first evaluation."""
    config = load_config(run / "config.toml")
    entries = [entry for entry in read_metrics(run / METRICS_FILE) if figures_of(entry["metrics"])]
    ends = iteration_ends(run)
    rows = {
        str(entry["step"]): {
            "figures": figures_of(entry["metrics"]),
            "texts": {what: entry["metrics"].get(PREFIX + key) for what, key in TEXTS.items()},
            "seconds": ends.get(str(entry["step"])),
        }
        for entry in entries
    }
    optimum = entries[-1]["metrics"].get(PREFIX + OPTIMUM) if entries else None
    named = name or config.name
    return {"name": named, "model": config.model.name, "seed": config.seed, "optimum": optimum, "iterations": rows}


def measure(config: Path, seed: int, runs: Path, extra: Sequence[str]) -> dict[str, Any]:
    """Runs one config with one seed."""
    out = runs / f"{config.stem}-seed{seed}"
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(config), "--seed", str(seed)]
    subprocess.run([*command, "--out", str(out), "--trackers", *extra], check=True, stdout=subprocess.DEVNULL)
    return collect(out)


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each config and figure, a column for each iteration: mean and deviation over its seeds, and
    how many got so far where some did not."""
    last = max(int(i) for result in results for i in result["iterations"])
    lines = ["| config | seeds | figure | best | " + " | ".join(map(str, range(last + 1))) + " |"]
    lines.append("|---" * (last + 5) + "|")
    for name in dict.fromkeys(result["name"] for result in results):
        runs = [result for result in results if result["name"] == name]
        seeds = " ".join(str(run["seed"]) for run in runs)
        optimum = runs[0].get("optimum")
        best = "" if optimum is None else f"{optimum:.3f}"
        for figure in runs[0]["iterations"][max(runs[0]["iterations"], key=int)]["figures"]:
            cells = [_cell(_at(runs, str(i), figure), len(runs)) for i in range(last + 1)]
            lines.append(f"| {name} | {seeds} | {figure} | {best} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _at(runs: Sequence[Mapping[str, Any]], iteration: str, figure: str) -> list[float]:
    rows = [run["iterations"][iteration]["figures"] for run in runs if iteration in run["iterations"]]
    return [row[figure] for row in rows if row.get(figure) is not None]


def _cell(values: Sequence[float], seeds: int) -> str:
    if not values:
        return ""
    deviation = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):.3f}{deviation}" + (f" ({len(values)})" if len(values) < seeds else "")


def texts_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: what the texts of each run's last iteration are like."""
    lines = ["| config | seed | iteration | " + " | ".join(TEXTS) + " |", "|---" * (len(TEXTS) + 3) + "|"]
    for result in results:
        last = max(result["iterations"], key=int)
        found = [result["iterations"][last]["texts"].get(name) for name in TEXTS]
        cells = ["" if value is None else f"{value:.4f}" for value in found]
        if any(cells):
            lines.append(f"| {result['name']} | {result['seed']} | {last} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder for the runs")
    parser.add_argument("--collect", nargs="+", default=[], metavar="[NAME=]RUN", help="runs that were made before")
    parser.add_argument("--read", nargs="+", type=Path, default=[], help="files of figures")
    parser.add_argument("--texts", action="store_true", help="the figures about the texts, too")
    parser.add_argument("--out", type=Path, help="write the figures here")
    own, _, extra = " ".join(argv).partition(" -- ")
    return parser.parse_args(own.split()), extra.split()


def main(argv: Sequence[str] | None = None) -> None:
    given, extra = _parse(sys.argv[1:] if argv is None else argv)
    results = [result for path in given.read for result in json.loads(path.read_text())["results"]]
    for named in given.collect:
        name, _, run = named.rpartition("=")
        results.append(collect(Path(run), name))
    for config in given.configs:
        results += [measure(config, seed, given.runs, extra) for seed in given.seeds]
    if given.out:
        document = {"machine": machine(), "command": " ".join(sys.argv), "results": results}
        given.out.write_text(json.dumps(document, separators=(",", ":")) + "\n")
    if results:
        print(table(results))
        if given.texts:
            print("\n" + texts_table(results))


if __name__ == "__main__":
    main()
