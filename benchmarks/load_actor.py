"""One rollout actor without a model's time: turns a second with records and ledger written, beside the rules alone.

The scripted model answers at once, so what is left is the platform: prompts, parsing, keys, records, ledger. The rules
alone play games of the same length, both sides at random. Rounds go in turns on one core; a turn is an answer of the
policy that was drawn for a game, a move is one of either side.
"""

from __future__ import annotations

import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from nlrl.benchmarks.timing import one_core
from nlrl.envs import make_from_spec
from nlrl.envs.random import Rng
from nlrl.orchestration.budget import LEDGER_FILE, Meter
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.records import RecordWriter
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks
from nlrl.testing.instant import InstantModel


class Did(NamedTuple):
    """What one piece of work was, and what it took."""

    turns: int
    moves: int
    seconds: float
    cpu_seconds: float


class Actor:
    """A rollout worker in this process, with the driver's part in what it does: records and ledger on disk.

    Args:
        folder: for the files.
    """

    def __init__(self, spec: str, games: int, folder: Path):
        self._worker = RolloutWorker(spec, InstantModel(), "plain", 64, RolloutConfig(), 0)
        self._games, self._numbers, self.folder = games, count(), folder
        self._seats = make_from_spec(spec).num_players

    def play(self) -> Did:
        """Plays one job, whose policy is a new one, and writes what it gave."""
        number, meter = next(self._numbers), Meter()
        opponents = ["random" if self._seats > 1 else "none"]
        job = PlayJob(
            f"load@{number}",
            1.0,
            game_tasks("load", 0, number, "rollout", self._games, opponents, seats=self._seats),
        )
        meter.open(self.folder)
        with RecordWriter(self.folder / "games.jsonl") as writer:
            wall, cpu = time.perf_counter(), time.process_time()
            done = self._worker.metered(("play", job, {}))
            meter.note(done.spent)
            writer.write_many(done.result)
            writer.flush()
            took = time.perf_counter() - wall, time.process_time() - cpu
        meter.close()
        return Did(sum(len(r["turns"]) for r in done.result), sum(len(r["actions"]) for r in done.result), *took)


def play_rules(spec: str, games: int, seed: int) -> Did:
    """Plays games of both sides at random, by the rules alone."""
    game, moves = make_from_spec(spec), 0
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(games):
        rng = Rng("rules", seed, number)
        state = game.initial_state(rng)
        while not game.is_terminal(state):
            state = game.apply(state, rng.choice(game.legal_actions(state)), rng).state
            moves += 1
    return Did(0, moves, time.perf_counter() - wall, time.process_time() - cpu)


def measure_actor(spec: str, games: int, rounds: int) -> dict[str, Any]:
    """Rates of both, and the bytes of a turn."""
    found: list[tuple[Did, Did]] = []
    with one_core(), tempfile.TemporaryDirectory() as folder:
        actor = Actor(spec, games, Path(folder))
        actor.play()  # tables of the rules are filled, regular expressions compiled
        for number in range(rounds):
            found.append((actor.play(), play_rules(spec, games, number)))
        turns = sum(did.turns for did, _ in found)
        written = {name: (Path(folder) / name).stat().st_size for name in ("games.jsonl", LEDGER_FILE)}
        share = rounds / (rounds + 1)  # the files hold the first job, too
    return {
        "game": spec,
        "games": games,
        "rounds": rounds,
        "turns": turns,
        "turns_per_second": _middle([did.turns / did.seconds for did, _ in found]),
        "turns_per_cpu_second": _middle([did.turns / did.cpu_seconds for did, _ in found]),
        "moves_per_cpu_second": _middle([did.moves / did.cpu_seconds for did, _ in found]),
        "rules_moves_per_cpu_second": _middle([did.moves / did.cpu_seconds for _, did in found]),
        "rules_over_actor": median(
            (rules.moves / rules.cpu_seconds) / (did.moves / did.cpu_seconds) for did, rules in found
        ),
        "record_bytes_per_turn": written["games.jsonl"] * share / turns,
        "ledger_bytes_per_turn": written[LEDGER_FILE] * share / turns,
    }


def _middle(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "most": max(values)}


def show_actor(found: dict[str, Any]) -> None:
    print(f"one actor, {found['game']}, {found['games']} games at a time, a model that takes no time:")
    for name in ("turns_per_second", "turns_per_cpu_second"):
        rate = found[name]
        what = name.replace("_per_", "/").replace("_", " ")
        print(f"  {rate['median']:,.0f} {what} ({rate['least']:,.0f} to {rate['most']:,.0f})")
    print(
        f"  the rules alone make {found['rules_over_actor']:.1f} times as many moves; "
        f"{found['record_bytes_per_turn']:.0f} + {found['ledger_bytes_per_turn']:.0f} bytes a turn (records, ledger)"
    )
