"""How quickly the viewer finds games: `nlrl bench viewer`, or `python -m nlrl.benchmarks.viewer`.

1. A run of made-up Tic-Tac-Toe games is written as runs are: through record writers, then committed. Lines of play come
   from random games; every reply is another text, so that columns do not compress better than real ones.
2. A *filter* is timed as the Games page asks: how many games pass, and the first page of fifty in an order.
   The median of several rounds is told, and the first, when nothing was in memory.
3. *Opening* a run is what the page does before anything is chosen: find the stages, open the index, read the values to
   choose from, count, fetch the first page. It is timed for committed games (Parquet) and for ones that are still being
   written (JSONL), each in a new index, and for the whole page as Streamlit's test driver runs it.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from nlrl.benchmarks.figures import machine
from nlrl.benchmarks.timing import seconds_of
from nlrl.envs import make
from nlrl.envs.random import Rng
from nlrl.orchestration.records import SCHEMA, record_key
from nlrl.orchestration.run_folder import RunFolder
from nlrl.ui.games_index import Filters, GamesIndex, sources_of
from nlrl.ui.value_errors import value_errors

ITERATIONS = 10
LINES = 2000
"""Games that are really played; records repeat their moves, not their texts."""
OPPONENTS = ("random", "first-move", "minimax", "epsilon(0.25,minimax)")
CONFIG = 'name = "made up"\nseed = 3\niterations = 10\n[game]\nname = "tictactoe"\n'
FILTERS: tuple[tuple[str, Filters, str], ...] = (
    ("no filter", Filters(), "iteration"),
    ("iterations 4 to 6, lost", Filters(iterations=(4, 6), result=("loss",)), "length"),
    ("seat, opponent and length", Filters(seat=(1,), opponent=("minimax",), lengths=(7, 8)), "opponent"),
    ("only forfeits", Filters(forfeits=True), "iteration"),
    ("only with failed replies", Filters(failures=True), "failures"),
    ("text that 1 in 100 contains", Filters(text="Fork number 17 "), "length"),
    ("text that every game contains", Filters(text="BEST_MOVE"), "length"),
    ("text that no game contains", Filters(text="zugzwang"), "length"),
)
"""What is timed: a name, the filters, the order."""
OPENING = {
    "index_parquet": "index, choices, first page: committed",
    "index_jsonl": "index, choices, first page: being written",
    "page_parquet": "the whole page, as Streamlit runs it: committed",
    "page_jsonl": "the whole page, as Streamlit runs it: being written",
    "value_errors": "value errors of all games, once somebody asks",
}


# -- made-up games -----------------------------------------------------------------------------------------------------
def write_games(folder: Path, games: int, iterations: int = ITERATIONS, commit: bool = True) -> Path:
    """A run of so many games, spread over iterations."""
    lines, choose = list(_lines()), random.Random(0)
    with RunFolder.open(folder, tomllib.loads(CONFIG), CONFIG) as run:
        for iteration in range(1, iterations + 1):
            stage = run.stage(iteration, "rollout")
            with stage.writer("games") as writer:
                numbers = range((iteration - 1) * games // iterations, iteration * games // iterations)
                writer.write_many(_record(iteration, number, choose.choice(lines), choose) for number in numbers)
            if commit:
                stage.commit({})
    return folder


def _lines() -> Iterator[tuple[str, list[int], float]]:
    """Start, moves and the first player's return of random games."""
    game = make("tictactoe")
    for number in range(LINES):
        rng, actions = Rng(number), []
        start = state = game.initial_state(rng)
        while not game.is_terminal(state):
            actions.append(rng.choice(game.legal_actions(state)))
            state = game.apply(state, actions[-1]).state
        yield game.to_text(start), actions, game.returns(state)[0]


def _record(iteration: int, number: int, line: tuple[str, list[int], float], rng: random.Random) -> dict[str, Any]:
    start, actions, value = line
    seat, forfeits = number % 2, rng.random() < 0.01
    value = value if seat == 0 else -value
    moves = actions[: 1 + rng.randrange(len(actions))] if forfeits else actions
    return {
        "schema": SCHEMA,
        "kind": "game",
        "key": record_key("made up", iteration, number),
        "game": "tictactoe",
        "start": start,
        "seat": seat,
        "opponent": rng.choice(OPPONENTS),
        "actions": moves,
        "result": "forfeit" if forfeits else "win" if value > 0 else "loss" if value < 0 else "draw",
        "turns": [_turn(ply, moves[ply], rng) for ply in range(seat, len(moves), 2)],
    }


def _turn(ply: int, action: int, rng: random.Random) -> dict[str, Any]:
    cells = " ".join(str(cell) for cell in rng.sample(range(1, 10), 3))
    said = f"X wins at {cells}; O wins at none. Fork number {rng.randrange(400)} of {rng.randrange(10**9)} is a plan."
    return {
        "ply": ply,
        "reply": f"{said} I prefer {action + 1} at {rng.uniform(-1, 1):+.2f}.\nbest_move: {action + 1}",
        "tokens": rng.randrange(20, 60),
        "failures": ["illegal"] if rng.random() < 0.01 else [],
    }


# -- timing ------------------------------------------------------------------------------------------------------------
def time_filters(run: Path, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of each filter, and how many games pass it."""
    index = GamesIndex(sources_of(run.name, run))
    out = []
    for name, filters, order in FILTERS:
        found = [1000 * seconds_of(partial(index.page, filters, order)) for _ in range(rounds)]
        took = {"median_ms": round(median(found), 1), "first_ms": round(found[0], 1)}
        out.append({"filter": name, "games": index.count(filters), **took})
    return out


def open_index(run: Path) -> None:
    """What the Games page does of a run before anything is chosen."""
    index = GamesIndex(sources_of(run.name, run))
    index.choices()
    index.ranges()
    index.page()


def open_page(folder: Path) -> None:
    """The Games page of a folder of runs, with nothing in memory.

    Raises:
        RuntimeError: the page failed.
    """
    import streamlit as st
    from streamlit.testing.v1 import AppTest

    st.cache_data.clear()
    st.cache_resource.clear()
    script = f"from pathlib import Path\nfrom nlrl.ui.pages.games import show\nshow(Path({str(folder)!r}))"
    page = AppTest.from_string(script, default_timeout=120).run()
    if page.exception or not page.dataframe:
        raise RuntimeError(f"the Games page failed: {page.exception}")


def time_opening(folder: Path, games: int, rounds: int) -> dict[str, float]:
    """Milliseconds of opening a run of so many games, and of comparing what their players say with best play."""
    committed, growing = folder / "committed" / "run", folder / "growing" / "run"
    write_games(committed, games)
    write_games(growing, games, commit=False)
    open_page(committed.parent)  # the first one imports what a viewer that runs has imported
    calls: dict[str, Callable[[], object]] = {
        "index_parquet": partial(open_index, committed),
        "index_jsonl": partial(open_index, growing),
        "page_parquet": partial(open_page, committed.parent),
        "page_jsonl": partial(open_page, growing.parent),
        "value_errors": partial(value_errors, sources_of("run", committed)),
    }
    return {name: round(median(1000 * seconds_of(call) for _ in range(rounds)), 1) for name, call in calls.items()}


# -- printing ----------------------------------------------------------------------------------------------------------
def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def measure(games: int, opened: int, rounds: int) -> dict[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as place:
        many = Path(place) / "many"
        written = seconds_of(partial(write_games, many, games))
        sizes = {form: _bytes(many.rglob(f"*.{form}")) for form in ("jsonl", "parquet")}
        return {
            "machine": machine(),
            "games": games,
            "rounds": rounds,
            "bytes": sizes,
            "written_s": round(written, 1),
            "filters": time_filters(many, rounds),
            "opened_games": opened,
            "opening_ms": time_opening(Path(place), opened, rounds),
        }


def show(found: dict[str, Any]) -> None:
    """The tables."""
    size = found["bytes"]
    print(f"{found['machine']}; median of {found['rounds']} rounds")
    megabytes = f"{size['jsonl'] / 1e6:.0f} MB of records, {size['parquet'] / 1e6:.0f} MB of rows to search in"
    print(f"\n{found['games']:,} games ({megabytes}), made, written and committed in {found['written_s']:.0f} s")
    print(f"  {'filter (count and first page)':42}{'games':>9}{'median':>10}{'first':>10}")
    for row in found["filters"]:
        print(f"  {row['filter']:42}{row['games']:>9,}{row['median_ms']:>7.0f} ms{row['first_ms']:>7.0f} ms")
    print(f"\nopening a run of {found['opened_games']:,} games")
    for name, took in found["opening_ms"].items():
        print(f"  {OPENING[name]:55}{took:>8.0f} ms")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "nlrl bench viewer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--games", type=int, default=100_000, help="that are filtered")
    parser.add_argument("--opened", type=int, default=10_000, help="games of the run that is opened")
    parser.add_argument("--rounds", type=int, default=7, help="whose median is told")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    found = measure(args.games, args.opened, args.rounds)
    show(found)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
