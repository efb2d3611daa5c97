"""Every method under one budget, in one table: exact strength of what each has learned from the same number of moves.

    nlrl bench baselines -- --steps 1000000 --seeds 0 1 2 --out FILE
    nlrl bench baselines -- --methods grpo ppo actor_critic --opponents random minimax self
    nlrl bench baselines -- --read FILE...             prints the table of figures measured before
    nlrl bench baselines -- --read FILE... --curve     win against random at shares of the budget

A method spends *environment steps* (moves made in games, by whomever) and *tokens* (read in prompts, generated, trained
on). A run begins no iteration once its budget is spent, and is judged by the last one that it finished within it; a
first iteration that costs more than all of it is marked with `>`. Measuring costs nothing. Each run is a process of its
own; options that are not named here go to `nlrl run` (`--cluster.servers 3 --rollout.workers 12`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from nlrl.benchmarks.tictactoe import machine
from nlrl.orchestration.budget import Budget, spent_by
from nlrl.orchestration.report import evaluations
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.statistics import mean_interval

CONFIGS = Path("configs/baselines")
METHODS = (
    "actor_critic", "prompted", "teacher_only", "rejection_sampling", "grpo", "ppo", "dpo", "scalar_q", "tabular",
)  # fmt: skip
ITERATIONS = 100_000
"""More than any budget pays for, for methods that learn."""
SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Of the budget, for `--curve`."""
Result = dict[str, Any]


# -- measuring ---------------------------------------------------------------------------------------------------------
def measure(method: str, seed: int, options: argparse.Namespace, extra: Sequence[str]) -> Result:
    """Runs one method with one seed and returns its figures by iteration."""
    out = options.runs / f"{method}-seed{seed}"
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(options.configs / f"tictactoe_{method}.toml")]
    command += ["--seed", str(seed), "--out", str(out), "--budget.environment-steps", str(options.steps)]
    command += ["--budget.tokens", str(options.tokens)] if options.tokens else []
    command += ["--rollout.opponents", *options.opponents]
    command += ["--iterations", str(ITERATIONS if method != "prompted" else 1), "--trackers", *extra]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    limits = {"steps": options.steps, "tokens": options.tokens, "opponents": list(options.opponents)}
    return figures(out) | limits | {"method": method, "seed": seed, "seconds": time.monotonic() - started}


def figures(out: Path) -> Result:
    """What a run says of itself, after every iteration."""
    folder, rows = RunFolder(out), {}
    stages = list(folder.stages())
    for iteration, metrics in sorted(evaluations(folder).items()):
        rows[str(iteration)] = {
            "exact": metrics["exact"]["against"],
            "exploitability": metrics["exact"]["exploitability"],
            "forfeits": metrics["turns"]["forfeits"],
            "spent": spent_by(stages, iteration)._asdict(),
        }
        if "argmax" in metrics:
            rows[str(iteration)]["argmax"] = metrics["argmax"]
    return {"iterations": rows}


# -- reading -----------------------------------------------------------------------------------------------------------
def tokens_of(budget: Budget) -> int:
    """All tokens: read, generated, trained on."""
    return sum(budget) - budget.environment_steps


def within(result: Result, share: float = 1.0) -> tuple[int, bool]:
    """The last iteration that ended within a share of the budget, and whether there is one besides the untrained 0;
    without one the first iteration."""
    steps, tokens = result["steps"] * share, result["tokens"] and result["tokens"] * share
    learned = sorted(int(iteration) for iteration in result["iterations"] if int(iteration) > 0)
    paid = [i for i in learned if _fits(Budget(**result["iterations"][str(i)]["spent"]), steps, tokens)]
    return (paid[-1], True) if paid else (learned[0], False)


def _fits(spent: Budget, steps: float, tokens: float | None) -> bool:
    return spent.environment_steps <= steps and (not tokens or tokens_of(spent) <= tokens)


def rows_of(result: Result, share: float = 1.0) -> Iterable[tuple[str, Result]]:
    """What a run contributes to the table: its actor, and for a scalar critic its own choice, too."""
    iteration, paid = within(result, share)
    row = result["iterations"][str(iteration)]
    shared = {"iteration": iteration, "paid": paid, "seed": result["seed"], "seconds": result["seconds"]}
    yield result["method"], row | shared
    if "argmax" in row:
        found = {"exact": row["argmax"]["against"], "exploitability": row["argmax"]["exploitability"], "forfeits": 0.0}
        yield f"{result['method']}, argmax", row | found | shared


def grouped(results: Sequence[Result], share: float = 1.0) -> dict[str, list[Result]]:
    """Rows by name, in the order of `METHODS`."""
    groups: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: (METHODS.index(result["method"]), result["seed"])):
        for name, row in rows_of(result, share):
            groups.setdefault(name, []).append(row)
    return groups


# -- printing ----------------------------------------------------------------------------------------------------------
def table(results: Sequence[Result]) -> str:
    """Means over seeds with 95% intervals (Student's t over seeds), as Markdown."""
    columns: list[tuple[str, Callable[[list[Result]], str]]] = [
        ("seeds", lambda rows: " ".join(str(row["seed"]) for row in rows)),
        ("iterations", lambda rows: "/".join(str(row["iteration"]) for row in rows)),
        ("steps", lambda rows: _spent(rows, "environment_steps")),
        ("tokens read", lambda rows: _spent(rows, "prompt_tokens")),
        ("generated", lambda rows: _spent(rows, "generated_tokens")),
        ("trained", lambda rows: _spent(rows, "trained_tokens")),
        *((f"{key} against random", _outcome("random", key)) for key in ("win", "draw", "loss")),
        ("win against first-move", _outcome("first-move", "win")),
        ("loss against minimax", _outcome("minimax", "loss")),
        ("exploitability", lambda rows: _mean([row["exploitability"] for row in rows])),
        ("forfeits", lambda rows: _mean([row["forfeits"] for row in rows])),
        ("minutes", lambda rows: "/".join(f"{row['seconds'] / 60:.1f}" for row in rows)),
    ]
    lines = ["| method | " + " | ".join(name for name, _ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, rows in grouped(results).items():
        lines.append(f"| {name} | " + " | ".join(show(rows) for _, show in columns) + " |")
    return "\n".join(lines)


def _outcome(opponent: str, key: str) -> Callable[[list[Result]], str]:
    def show(rows: list[Result]) -> str:
        known = [row["exact"][opponent][key] for row in rows if opponent in row["exact"]]
        return _mean(known) if known else ""

    return show


def _spent(rows: list[Result], what: str) -> str:
    mark = "" if all(row["paid"] for row in rows) else "> "
    return f"{mark}{mean(row['spent'][what] for row in rows):,.0f}"


def _mean(values: list[float]) -> str:
    low, high = mean_interval(values)
    return f"{mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if len(values) > 1 else "")


def curve(results: Sequence[Result]) -> str:
    """Win against random at shares of the budget, mean over the seeds that had finished an iteration by then."""
    lines = ["| method | untrained | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |"]
    lines.append("|---" * (len(SHARES) + 2) + "|")
    for method in dict.fromkeys(result["method"] for result in sorted(results, key=_place)):
        runs = [result for result in results if result["method"] == method]
        cells = [f"{mean(_win(run['iterations']['0']) for run in runs):.3f}"]
        for share in SHARES:
            places = [(run, within(run, share)) for run in runs]
            wins = [_win(run["iterations"][str(iteration)]) for run, (iteration, paid) in places if paid]
            cells.append(f"{mean(wins):.3f}" if wins else "")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _place(result: Result) -> int:
    return METHODS.index(result["method"])


def _win(row: Result) -> float:
    return row["exact"]["random"]["win"]


def best(results: Sequence[Result]) -> str:
    """Who wins most against random, in a sentence."""
    means = {name: mean(_win(row) for row in rows) for name, rows in grouped(results).items()}
    ranked = sorted(means, key=means.__getitem__, reverse=True)
    return "Most wins against random: " + ", ".join(f"{name} {means[name]:.3f}" for name in ranked[:3]) + "."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1_000_000, help="environment steps of each run")
    parser.add_argument("--tokens", type=int, help="tokens of each run, of all kinds; what is spent first ends it")
    parser.add_argument("--opponents", nargs="+", default=["random"], help="whom all of them learn against")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder with a tictactoe_METHOD.toml for each")
    parser.add_argument("--runs", type=Path, default=Path("runs/baselines"), help="where the run folders go")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON, after every run")
    parser.add_argument("--read", type=Path, nargs="+", help="print the table of earlier figures instead of measuring")
    parser.add_argument("--curve", action="store_true", help="print win against random at shares of the budget, too")
    options, extra = parser.parse_known_args(argv)
    results = [result for path in options.read or [] for result in json.loads(path.read_text())["results"]]
    for method in options.methods if not options.read else []:
        for seed in options.seeds:
            results.append(measure(method, seed, options, extra))
            if options.out:
                document = {"machine": machine(), "command": " ".join(sys.argv), "results": results}
                options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(table(results), best(results), *([curve(results)] if options.curve else []), sep="\n\n")


if __name__ == "__main__":
    main()
