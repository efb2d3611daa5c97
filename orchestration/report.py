"""What a finished (or unfinished) run shows on a terminal: the learning table, an opinion that changed, where to
look next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from nlrl.agents.language import number
from nlrl.orchestration.diary import entries_of
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.stages.evaluation import NAME, RESULTS


def evaluations(folder: RunFolder) -> dict[int, dict[str, Any]]:
    """The metrics of every committed evaluation, by iteration."""
    stages = [stage for stage in folder.stages() if stage.name == NAME and stage.is_committed()]
    return {stage.iteration: stage.load()["metrics"] for stage in stages}


def report(path: str | Path) -> RenderableType:
    """Everything a run prints when it ends."""
    folder = RunFolder(path)
    found = evaluations(folder)
    if not found:
        return Text(f"{path}: no evaluation is committed yet")
    parts: list[RenderableType] = [learning_table(found), other_opponents(found)]
    parts += opinions(entries_of(folder))
    parts.append(
        Text(f"Open the run:  nlrl view {Path(path).parent}    Read the diary:  {Path(path) / 'evaluations.md'}")
    )
    return Group(*parts)


def learning_table(found: dict[int, dict[str, Any]], opponent: str = "random") -> Table:
    """One row an iteration: greedy games against one opponent, readability, and how true the texts are."""
    table = Table(
        title=f"Greedy play against {opponent}, half the games in each seat (95% intervals)",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    headers = ("it", *RESULTS, "exact\nwin", "unread\nturns", "verdict\nerror", "trivial\nerror", "true\nclaims")
    for header in headers:
        table.add_column(header, justify="right")
    for iteration, metrics in sorted(found.items()):
        shares = metrics["sampled"].get("greedy", {}).get(opponent)
        texts = metrics["texts"]
        against = texts.get("against_policy", {})
        trivial = min((row["mae"] for name, row in against.items() if name != "text"), default=None)
        table.add_row(
            str(iteration),
            *(_share(shares[result]) if shares else "" for result in RESULTS),
            f"{metrics['exact']['against'][opponent]['win']:.3f}" if opponent in metrics["exact"]["against"] else "",
            f"{shares['failures_per_turn']:.2%}" if shares else f"{metrics['turns']['failed_first']:.2%}",
            _decimals(against["text"]["mae"] if against else None),
            _decimals(trivial),
            f"{texts['true_claims']:.1%}" if texts.get("true_claims") is not None else "",
        )
    return table


def other_opponents(found: dict[int, dict[str, Any]]) -> Table:
    """Exact results of the greedy actor against every opponent, first and last iteration, and its exploitability."""
    table = Table(title="Exact results of the greedy actor (every game it can get into)")
    for header in ("iteration", "against", *RESULTS, "exploitability"):
        table.add_column(header, justify="right")
    for iteration in sorted({min(found), max(found)}):
        exact = found[iteration]["exact"]
        for name, results in exact["against"].items():
            row = [f"{results[result]:.4f}" for result in RESULTS]
            table.add_row(str(iteration), name, *row, f"{exact['exploitability']:.3f}")
    return table


def opinions(entries: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Two evaluations of one move, before and after: the move about which the critic changed its mind most."""
    iterations = sorted({entry["iteration"] for entry in entries})
    if len(iterations) < 2:
        return []
    first = {e["moves"]: e for e in entries if e["iteration"] == iterations[0]}
    last = {e["moves"]: e for e in entries if e["iteration"] == iterations[-1]}
    changes = [
        (abs(after["verdict"] - before["verdict"]), moves, before, after)
        for moves in first.keys() & last.keys()
        for before, after in zip(first[moves]["evaluations"], last[moves]["evaluations"], strict=True)
        if before["verdict"] is not None and after["verdict"] is not None and after["exact_policy"] is not None
    ]
    if not changes:
        return []
    _, moves, before, after = max(changes, key=lambda change: (change[0], change[1]))
    text = Text()
    text.append(last[moves]["state"] + "\n\n", style="bold")
    text.append(f"move {after['action'] + 1}, iteration {iterations[0]}: ", style="bold").append(f"{before['text']}\n")
    text.append(f"move {after['action'] + 1}, iteration {iterations[-1]}: ", style="bold").append(f"{after['text']}\n")
    text.append(
        f"exact value for the policy it judges: {number(after['exact_policy'])}; under perfect play: "
        f"{number(after['exact_optimal'])}"
    )
    return [Panel(text, title="One move, two opinions", expand=False)]


def _share(share: dict[str, float]) -> str:
    low, high = (f"{share[end]:.3f}".removeprefix("0") for end in ("low", "high"))
    return f"{share['share']:.3f}\n{low}-{high}"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
