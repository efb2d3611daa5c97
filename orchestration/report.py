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
from nlrl.envs import make
from nlrl.envs.game import Game
from nlrl.orchestration.budget import Budget, spent_by
from nlrl.orchestration.config import load_config
from nlrl.orchestration.diary import entries_of
from nlrl.orchestration.league import RATINGS_FILE, read_ratings
from nlrl.orchestration.league import table as ratings_table
from nlrl.orchestration.players import NONE, RESULTS
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.stages.evaluation import NAME


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
    parts: list[RenderableType] = [*value_tables(found), *other_opponents(found), *sampled_opponents(found)]
    parts += [*text_tables(found), *league_table(folder), *staleness_line(folder)]
    if any(m["sampled"] or m["exact"]["against"] for m in found.values()):
        parts.insert(0, learning_table(found))
    parts += [*opinions(entries_of(folder), _game_of(folder)), *budget_table(folder)]
    parts.append(
        Text(f"Open the run:  nlrl view {Path(path).parent}    Read the diary:  {Path(path) / 'evaluations.md'}")
    )
    return Group(*parts)


def headline(metrics: dict[str, Any]) -> str:
    """An evaluation in one line."""
    exact = metrics["exact"]["against"]
    if values := metrics.get("values"):
        rows = (f"{name} {scores['side_accuracy']:.3f}" for name, scores in _text_first(values) if name != "constant")
        return f"winner named rightly: {', '.join(rows)}"
    if NONE in exact:
        best = metrics["exact"].get("optimum")
        return f"exact return {exact[NONE]['return']:.3f} (best {best:.3f}), won {exact[NONE]['win']:.3f}"
    if exact:
        rows = (f"{name} {r['win']:.3f}/{r['draw']:.3f}/{r['loss']:.3f}" for name, r in exact.items())
        return f"exact win/draw/loss against {', '.join(rows)}"
    sampled = metrics["sampled"].get("greedy", {})
    return ", ".join(f"{row['win']['share']:.3f} won against {name}" for name, row in sampled.items()) or "evaluated"


def shown_opponent(found: dict[int, dict[str, Any]]) -> str:
    """Whom the learning table is about: the random player, or the first there is."""
    names = [name for m in found.values() for name in (*m["sampled"].get("greedy", {}), *m["exact"]["against"]) if name]
    return "random" if "random" in names or not names else names[0]


def learning_table(found: dict[int, dict[str, Any]]) -> Table:
    """One row an iteration: greedy games against one opponent, readability, and how true the texts are."""
    opponent = shown_opponent(found)
    alone = opponent == NONE
    how = "Greedy walks" if alone else f"Greedy play against {opponent}, half the games in each seat"
    results = RESULTS[1 if alone else 2]
    table = Table(title=f"{how} (95% intervals)", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    headers = ("it", *results, "return" if alone else "", "exact\nreturn" if alone else "exact\nwin")
    headers += ("unread\nturns", "verdict\nerror", "trivial\nerror", "true\nclaims")
    for header in filter(None, headers):
        table.add_column(header, justify="right")
    for iteration, metrics in sorted(found.items()):
        shares = metrics["sampled"].get("greedy", {}).get(opponent)
        exact = metrics["exact"]["against"].get(opponent)
        texts = metrics["texts"]
        against = texts.get("against_policy", {})
        trivial = min((row["mae"] for name, row in against.items() if name != "text"), default=None)
        table.add_row(
            str(iteration),
            *(_share(shares[result]) if shares else "" for result in results),
            *([_mean(shares["return"]) if shares else ""] if alone else []),
            f"{exact['return' if alone else 'win']:.3f}" if exact else "",
            f"{shares['failures_per_turn']:.2%}" if shares else _percent(metrics["turns"].get("failed_first")),
            _decimals(against["text"]["mae"] if against else None),
            _decimals(trivial),
            f"{texts['true_claims']:.1%}" if texts.get("true_claims") is not None else "",
        )
    return table


def other_opponents(found: dict[int, dict[str, Any]]) -> list[Table]:
    """Exact results of the greedy actor, first and last iteration: against every opponent, and its exploitability; of a
    player alone, beside the best possible."""
    rows = {iteration: found[iteration]["exact"] for iteration in sorted({min(found), max(found)})}
    if not any(exact["against"] for exact in rows.values()):
        return []
    alone = any(NONE in exact["against"] for exact in rows.values())
    names, last = (("return", *RESULTS[1]), "optimum") if alone else (RESULTS[2], "exploitability")
    table = Table(title="Exact results of the greedy actor (every game it can get into)")
    for header in ("iteration", "against", *names, last):
        table.add_column(header, justify="right")
    for iteration, exact in rows.items():
        for name, results in exact["against"].items():
            row = [f"{results[result]:.4f}" for result in names]
            table.add_row(str(iteration), name, *row, _decimals(exact.get(last)))
    return [table]


def sampled_opponents(found: dict[int, dict[str, Any]]) -> list[Table]:
    """Greedy games, first and last iteration, against opponents whose exact results are not known and that the learning
    table is not about."""
    table = Table(title="Greedy games against others, half of them in each seat (95% intervals)")
    for header in ("iteration", "against", "games", *RESULTS[2]):
        table.add_column(header, justify="right")
    for iteration in sorted({min(found), max(found)}):
        exact, sampled = found[iteration]["exact"]["against"], found[iteration]["sampled"].get("greedy", {})
        for name in [name for name in sampled if name not in exact and name not in (NONE, shown_opponent(found))]:
            shares = [_share(sampled[name][result]).replace("\n", " ") for result in RESULTS[2]]
            table.add_row(str(iteration), name, str(sampled[name]["games"]), *shares)
    return [table] if table.row_count else []


def value_tables(found: dict[int, dict[str, Any]]) -> list[Table]:
    """How often the winner of a held-out position is named rightly: by the critic, and by guesses that need no
    training."""
    rows = {iteration: metrics["values"] for iteration, metrics in sorted(found.items()) if metrics.get("values")}
    shown = {i: {name: _side(name, row) for name, row in _text_first(values)} for i, values in rows.items()}
    title = "Winner of a held-out position named rightly (95% intervals), unreadable answers counted as wrong"
    return [_rows(title, shown)] if shown else []


def _text_first(rows: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted(rows.items(), key=lambda row: row[0] != "text")


def _side(name: str, row: dict[str, float | None]) -> str:
    accuracy, low, high = (row[key] for key in ("side_accuracy", "side_low", "side_high"))
    if accuracy is None or low is None or high is None:
        return ""
    return f"{accuracy:.3f}" if name == "constant" else f"{accuracy:.3f}\n{low:.3f}-{high:.3f}"


def league_table(folder: RunFolder) -> list[Table]:
    """Everybody's ratings after the newest round of the run's league."""
    rounds = [stage for stage in folder.stages() if stage.name == "league" and stage.is_committed()]
    if not rounds:
        return []
    title = f"League after iteration {rounds[-1].iteration}, ratings on Elo's scale"
    return [ratings_table(read_ratings(rounds[-1].dir / RATINGS_FILE), title)]


def budget_table(folder: RunFolder) -> list[Table]:
    """What the run spent, and what measuring it did."""
    stages = [stage for stage in folder.stages() if stage.is_committed()]
    rows = {"learning": spent_by(stages), "measuring": spent_by(stages, measuring=True)}
    if not any(map(sum, rows.values())):
        return []
    table = Table(title="Spent", box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in ("on", *(name.replace("_", " ") for name in Budget._fields)):
        table.add_column(header, justify="right")
    for name, spent in rows.items():
        table.add_row(name, *(f"{count:,}" for count in spent))
    return [table]


def staleness_line(folder: RunFolder) -> list[Text]:
    """How much older than in lock-step the weights were that gathered each set, where iterations overlapped."""
    found: dict[int, int] = {}
    for stage in folder.stages():
        if stage.is_committed() and (staleness := stage.load()["metrics"].get("staleness")) is not None:
            found[stage.iteration] = staleness
    shown = ", ".join(f"{iteration}: {staleness}" for iteration, staleness in found.items())
    return [Text(f"Staleness of the weights that gathered each iteration's sets: {shown}\n")] if found else []


def text_tables(found: dict[int, dict[str, Any]]) -> list[Table]:
    """Two rows of figures about the texts: verdicts beside exact values, and words beside rules and numbers."""
    texts = {iteration: metrics["texts"] for iteration, metrics in sorted(found.items()) if metrics.get("texts")}
    known = "against_policy" if any(one.get("against_policy") for one in texts.values()) else "against_optimal"
    whose = "the policy they judge" if known == "against_policy" else "best play"
    tables = [
        _rows(
            f"Verdicts against exact values of {whose}",
            {i: _verdict_row(t, known) for i, t in texts.items()},
        ),
        _rows(
            "The texts against the rules and their own verdicts",
            {i: _faithful_row(t, found[i].get("turns", {})) for i, t in texts.items()},
        ),
    ]
    return [table for table in tables if table.row_count]


def _rows(title: str, rows: dict[int, dict[str, str]]) -> Table:
    """A table of the rows that hold anything, by iteration."""
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    held = {iteration: row for iteration, row in rows.items() if any(row.values())}
    table.add_column("it", justify="right")
    for header in next(iter(held.values()), ()):
        table.add_column(header, justify="right")
    for iteration, row in held.items():
        table.add_row(str(iteration), *row.values())
    return table


def _verdict_row(texts: dict[str, Any], known: str) -> dict[str, str]:
    scores = texts.get(known, {}).get("text", {})
    choices = texts.get("choices", {}).get(known.removeprefix("against_"), {})
    return {
        "read-\nable": _percent(scores.get("coverage")),
        "right\nsign": _percent(scores.get("sign_accuracy")),
        "right\nside": _percent(scores.get("side_accuracy")),
        "ECE": _decimals(scores.get("ece")),
        "Brier": _decimals(scores.get("brier")),
        "rank\ncorr.": _decimals(scores.get("rank_correlation")),
        "pairs in\norder": _percent(scores.get("order_accuracy")),
        "positi-\nvity": _decimals(scores.get("positivity_bias")),
        "regret\nof I": _decimals(choices.get("regret")),
        "random\nregret": _decimals(choices.get("random_regret")),
    }


def _faithful_row(texts: dict[str, Any], turns: dict[str, Any]) -> dict[str, str]:
    return {
        "true\nclaims": _percent(texts.get("true_claims")),
        "leaks": _percent(texts.get("leaks")),
        "illegal\nadvice": _percent(texts.get("illegal")),
        "words\nagree": _percent(texts.get("words_agree")),
        "numbers\nagree": _percent(texts.get("numbers_agree")),
        "actor's\ntrue claims": _percent(turns.get("actor_true_claims")),
        "actor's\nleaks": _percent(turns.get("actor_leaks")),
        "actor's\nillegal advice": _percent(turns.get("actor_illegal")),
    }


def _game_of(folder: RunFolder) -> Game[Any]:
    config = load_config(folder.path / CONFIG_FILE)
    return make(config.game.name, **config.game.params)


def opinions(entries: Sequence[dict[str, Any]], game: Game[Any]) -> list[RenderableType]:
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
    move = game.action_text(game.parse_text(last[moves]["state"]), after["action"])
    text.append(last[moves]["state"] + "\n\n", style="bold")
    text.append(f"move {move}, iteration {iterations[0]}: ", style="bold").append(f"{before['text']}\n")
    text.append(f"move {move}, iteration {iterations[-1]}: ", style="bold").append(f"{after['text']}\n")
    text.append(f"exact value for the policy it judges: {number(after['exact_policy'])}")
    if after["exact_optimal"] is not None:
        text.append(f"; under perfect play: {number(after['exact_optimal'])}")
    return [Panel(text, title="One move, two opinions", expand=False)]


def _share(share: dict[str, float]) -> str:
    low, high = (f"{share[end]:.3f}".removeprefix("0") for end in ("low", "high"))
    return f"{share['share']:.3f}\n{low}-{high}"


def _mean(row: dict[str, float | None]) -> str:
    if row["low"] is None:
        return _decimals(row["mean"])
    return f"{row['mean']:.3f}\n{row['low']:.2f} to {row['high']:.2f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
