"""How fast the games are: `nlrl bench envs`, or `python -m nlrl.benchmarks.envs`.

Ours beside OpenSpiel, PettingZoo, TextArena and pgx, as far as they are installed, in one run on one core: every
contest goes in rounds that give each library a turn, and figures are medians over rounds. Then what only we have: exact
tables, the solver (`--solver`) and the moves per second of opponents.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from nlrl import envs
from nlrl.benchmarks import envs_players as players
from nlrl.benchmarks.envs_exact import random_position, solver, tables
from nlrl.benchmarks.figures import Figure, machine, show, versions
from nlrl.benchmarks.timing import Play, interleaved, one_core, ratio
from nlrl.envs.opponents import make_opponent
from nlrl.envs.random import Rng

STOCK = "its stock game has one row of pawns a side below six rows"
OTHER_RULES = "its rules: no diagonal move to an empty cell"
OPPONENTS = ("random", "first-move", "minimax", "minimax(2)", "epsilon(0.25,minimax)", "mcts(10,1)")


@dataclass
class Contest:
    """Programs that do the same work; the first is ours."""

    what: str
    makers: dict[str, Callable[[], Play]]
    at_least: dict[str, float] = field(default_factory=dict)
    """Peer -> the least ratio ours / peer; our own name -> the least steps/s."""
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    rounds: int
    seconds: float
    size: int
    solver: bool


# -- contests ----------------------------------------------------------------------------------------------------------
def with_text(options: Options) -> Iterator[Figure]:
    """One game at a time, with the position's text and that of every legal move."""
    one_row, six_rows = "rows=5,columns=5,pawn_rows=1", "rows=6,columns=5"
    text, spiel = players.ours_with_text, players.openspiel_with_text
    contests = [
        Contest(
            "Tic-Tac-Toe",
            {
                "nlrl": partial(text, "tictactoe"),
                "OpenSpiel": partial(spiel, "tic_tac_toe"),
                "PettingZoo": players.pettingzoo_tictactoe,
                "TextArena": players.textarena_tictactoe,
            },
            {"OpenSpiel": 1.0, "PettingZoo": 10.0},
            {"PettingZoo": "has no text: planes and a mask"},
        ),
        Contest(
            "Breakthrough 5x5, one row of pawns a side",
            {
                "nlrl": partial(text, f"breakthrough({one_row})"),
                "OpenSpiel": partial(spiel, "breakthrough(rows=5,columns=5)"),
            },
            {"OpenSpiel": 1.0},
        ),
        Contest(
            "Breakthrough 6x5, two rows of pawns a side",
            {
                "nlrl": partial(text, f"breakthrough({six_rows})"),
                "OpenSpiel": partial(spiel, f"breakthrough({six_rows})"),
            },
            {"OpenSpiel": 1.0},
        ),
        Contest(
            "Breakthrough 5x5, two rows of pawns a side",
            {
                "nlrl": partial(text, "breakthrough"),
                "OpenSpiel, one row": partial(spiel, "breakthrough(rows=5,columns=5)"),
                "TextArena": partial(players.textarena_breakthrough, 5),
            },
            {"OpenSpiel, one row": 1.0},
            {"OpenSpiel, one row": STOCK, "TextArena": OTHER_RULES},
        ),
    ]
    return hold("text", contests, options)


def without_text(options: Options) -> Iterator[Figure]:
    """One game at a time: legal moves, a choice, a step."""
    specs = {
        "Tic-Tac-Toe": ("tictactoe", "tic_tac_toe"),
        "Breakthrough 5x5, one row of pawns a side": (
            "breakthrough(rows=5,columns=5,pawn_rows=1)",
            "breakthrough(rows=5,columns=5)",
        ),
    }
    contests = [
        Contest(what, {"nlrl": partial(players.ours, ours), "OpenSpiel": partial(players.openspiel, theirs)})
        for what, (ours, theirs) in specs.items()
    ]
    return hold("scalar", contests, options)


def batched(options: Options) -> Iterator[Figure]:
    """Many games at once, without text; OpenSpiel, which has no batches, one at a time."""
    ours = partial(players.ours_batched, size=options.size)
    contests = [
        Contest(
            "Tic-Tac-Toe",
            {
                "nlrl": partial(ours, "tictactoe"),
                "OpenSpiel": partial(players.openspiel, "tic_tac_toe"),
                "pgx": partial(players.pgx_tictactoe, 2 * options.size),
            },
            {"nlrl": 5e6},
        ),
        Contest(
            "Breakthrough 5x5",
            {
                "nlrl": partial(ours, "breakthrough"),
                "OpenSpiel, one row": partial(players.openspiel, "breakthrough(rows=5,columns=5)"),
            },
            {"nlrl": 1e6},
            {"OpenSpiel, one row": STOCK},
        ),
        Contest("Maze double_t", {"nlrl": partial(ours, "maze")}),
        Contest("FrozenLake 4x4, slippery", {"nlrl": partial(ours, "frozen_lake")}),
    ]
    return hold("batched", contests, options)


def hold(section: str, contests: Sequence[Contest], options: Options) -> Iterator[Figure]:
    """Times each contest among the libraries that are installed."""
    for contest in contests:
        rates = interleaved(_installed(contest), options.rounds, options.seconds)
        ours = next(iter(rates.values()))
        for name, theirs in rates.items():
            figure = Figure(section, contest.what, name, median(theirs), "steps/s", note=contest.notes.get(name, ""))
            figure.ratio = None if theirs is ours else ratio(ours, theirs)
            _judge(figure, contest.at_least.get(name))
            yield figure


def _installed(contest: Contest) -> dict[str, Play]:
    plays: dict[str, Play] = {}
    for name, make in contest.makers.items():
        try:
            plays[name] = make()
        except ImportError as error:
            print(f"    {name} is left out: {error}")
    return plays


def _judge(figure: Figure, least: float | None) -> None:
    if least is not None:
        figure.target = f"at least {least / 1e6:g} M" if figure.ratio is None else f"at least {least:g}x"
        figure.met = (figure.value if figure.ratio is None else figure.ratio) >= least


# -- what only we have -------------------------------------------------------------------------------------------------
def exact(options: Options) -> Iterator[Figure]:
    """Tables and oracles and, if asked for, the solver."""
    yield from tables(options.rounds)
    if options.solver:
        yield from solver()


def opponents(options: Options) -> Iterator[Figure]:
    """Moves of opponents in Tic-Tac-Toe, asked for many positions at once."""
    game = envs.make("tictactoe")
    states = [random_position(game, Rng("bench", i)) for i in range(200)]
    rngs = [Rng(i) for i in range(len(states))]
    for name in OPPONENTS:
        player = make_opponent(name, game)
        play = partial(_choose, player, states, rngs)
        rates = interleaved({name: play}, options.rounds, options.seconds)
        yield Figure("opponents", "Tic-Tac-Toe", name, median(rates[name]), "moves/s")


def _choose(player: Any, states: Sequence[Any], rngs: Sequence[Rng], batches: int) -> int:
    for _ in range(batches):
        player.choose(states, rngs)
    return batches * len(states)


# -- the program -------------------------------------------------------------------------------------------------------
SECTIONS: dict[str, tuple[str, Callable[[Options], Iterator[Figure]]]] = {
    "text": ("one game at a time, with the text of the position and of every legal move", with_text),
    "scalar": ("one game at a time, without text", without_text),
    "batched": ("many games at once, without text", batched),
    "exact": ("exact values", exact),
    "opponents": ("opponents, 200 positions at once", opponents),
}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("nlrl bench envs", description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each library in a contest")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of a turn")
    parser.add_argument("--size", type=int, default=4096, help="games in a batch (pgx: twice as many)")
    parser.add_argument("--solver", action="store_true", help="solve the 5x5 Breakthrough start, too")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    return parser.parse_args(argv)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    options = Options(args.rounds, args.seconds, args.size, args.solver)
    print(f"{machine()}, one used; {', '.join(f'{name} {version}' for name, version in versions().items())}")
    figures: list[Figure] = []
    with one_core():
        for section in args.sections:
            heading, measure = SECTIONS[section]
            print(f"\n{heading}")
            for figure in measure(options):
                show(figure, figures[-1] if figures else None)
                figures.append(figure)
    if args.json:
        report = {"machine": machine(), "versions": versions(), "options": asdict(options)}
        args.json.write_text(json.dumps(report | {"figures": [asdict(figure) for figure in figures]}, indent=1) + "\n")
    missed = [figure for figure in figures if figure.met is False]
    print(f"\n{sum(figure.met is True for figure in figures)} targets met, {len(missed)} missed")
    return 1 if args.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
