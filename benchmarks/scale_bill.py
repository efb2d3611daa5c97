"""What a run of many turns with an 8B actor and a 70B teacher takes: `nlrl bench scale_bill`.

    nlrl bench scale_bill                                    10^9 turns in 30 days
    nlrl bench scale_bill -- --turns 1e8 --days 7 --price 2

A turn is an answer of the policy. What else is asked for each turn (critic, evaluation, teacher) is counted on the
config's games, played by chance (`nlrl bench memory` has the same counts). Seconds on GPUs are lower bounds from
arithmetic and memory traffic. Bytes and seconds of the platform are those that `nlrl bench scale_costs` measured, and
those of the viewer come from `nlrl bench viewer`. The price of a GPU hour is whatever you say it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from nlrl.benchmarks.answers import Answers, plan
from nlrl.benchmarks.memory import GPUS, Assumed, seconds_to_answer, seconds_to_train, size_of
from nlrl.benchmarks.scale_simulation import COSTS
from nlrl.envs.random import Rng
from nlrl.orchestration.config import RunConfig, load_config

RESULTS = Path(__file__).parent / "results"
CONFIG = Path(__file__).parents[1] / "configs" / "llama_8b_70b.toml"
STAGES, FILES = 7, 4
"""Of an iteration; of a stage: records, manifest, the games' table, and the shard that was there before."""
INSTANT_TEXT = 65
"""Characters of a reply in the records that were measured."""
PART = 8 << 20
"""Bytes of a part of an upload."""
CHARACTERS = 4
"""Of a token."""


def gpu_hours(turns: float, config: RunConfig, answers: Answers, card: str, assumed: Assumed) -> dict[str, float]:
    """Lower bounds for each part of the work."""
    gpu, teacher = GPUS[card], config.teacher or config.model
    student_size, teacher_size = size_of(config.model.name), size_of(teacher.name)
    cards = int(teacher.options.get("tensor_parallel_size", 1))
    share = turns / answers.policy
    asked = {"policy": answers.policy, "critic": answers.critic, "evaluation": answers.evaluation}
    hours = {
        f"8B: {name}": seconds_to_answer(round(count * share), student_size, 1, gpu, assumed) / 3600
        for name, count in asked.items()
    }
    taught = round((answers.g1 + answers.improvement) * share)
    hours["70B: G1 and I"] = seconds_to_answer(taught, teacher_size, cards, gpu, assumed) * cards / 3600
    for name, train, texts in (
        ("critic", config.critic, answers.critic_texts * config.critic.buffer_iterations),
        ("actor", config.actor, answers.actor_texts * config.actor.buffer_iterations),
    ):
        if config.model.tuning is not None:
            tokens = texts * share * (assumed.prompt + assumed.answer) * train.epochs
            seconds = seconds_to_train(tokens, config.model, student_size, gpu, assumed)
            hours[f"training of the {name}"] = seconds * config.model.tuning.workers / 3600
    return hours


def turn_bytes(costs: dict[str, Any], answer: int) -> dict[str, float]:
    """Bytes of a turn on disk."""
    rng = Rng("bytes")
    sampled = {
        "sampled": [rng.below(128_000) for _ in range(answer)],
        "logprobs": [round(-rng.random(), 6) for _ in range(answer)],
    }
    return {
        "record": costs["actor"]["record_bytes_per_turn"] - INSTANT_TEXT + answer * CHARACTERS,
        "tokens and their log-probabilities, if kept": float(len(orjson.dumps(sampled))),
        "ledger, until the stage is committed": costs["actor"]["ledger_bytes_per_turn"],
    }


def storage(turns: float, costs: dict[str, Any], answers: Answers, answer: int) -> dict[str, Any]:
    """Bytes, files and requests of a run."""
    each = turn_bytes(costs, answer)
    records, iterations = turns * each["record"], turns / answers.policy
    viewer = json.loads((RESULTS / "viewer_2026-11-22_cpu.json").read_text())["bytes"]
    files = iterations * STAGES * FILES
    return {
        "bytes of a turn": each,
        "records, TB": records / 1e12,
        "games' tables, TB": records * viewer["parquet"] / viewer["jsonl"] / 1e12,
        "with tokens, TB": turns * sum(list(each.values())[:2]) / 1e12,
        "iterations of this config": iterations,
        "files, at most": files,
        "uploads of files and parts, at most": files + records / PART,
    }


def limits(costs: dict[str, Any], card_memory: float, patience: float, turns_per_game: float) -> dict[str, Any]:
    """Where one process is full.

    Args:
        card_memory: bytes of the driver's machine.
        patience: seconds that somebody waits.
    """
    driver = costs["driver"]
    game = driver["task_s"] + driver["unpack_s"] + driver["write_s"]
    turn = game / turns_per_game + driver["note_s"] * (1 + 1 / turns_per_game)
    viewer = json.loads((RESULTS / "viewer_2026-11-22_cpu.json").read_text())
    search = max(one["median_ms"] for one in viewer["filters"]) / 1e3 / viewer["games"]
    return {
        "driver: turns/s that it can take in": 1 / turn,
        "driver: hours of one core for 10^9 turns": 1e9 * turn / 3600,
        "commit: turns of a stage that fit in memory": card_memory / driver["commit_peak_bytes"] * turns_per_game,
        "commit: turns of a stage that take an hour": 3600 / driver["commit_s"] * turns_per_game,
        "ledger: turns of a stage that fit in memory": card_memory / driver["read_ledger_peak_bytes"],
        "ledger: turns of a stage that take an hour": 3600 / driver["read_ledger_s"],
        "resuming: turns of a stage whose records are read in an hour": 3600 / driver["owed_s"] * turns_per_game,
        "viewer: turns that are searched within patience": patience / search * turns_per_game,
    }


def report(options: argparse.Namespace) -> dict[str, Any]:
    config, costs = load_config(options.config), json.loads(options.costs.read_text())
    answers = plan(config)
    hours = gpu_hours(
        options.turns,
        config,
        answers,
        options.gpu,
        Assumed(options.prompt, options.answer, options.share, options.batch),
    )
    total, per_game = sum(hours.values()), costs["driver"]["turns_per_game"]
    rate = options.turns / (options.days * 86_400)
    return {
        "turns": options.turns,
        "days": options.days,
        "card": options.gpu,
        "asked for each turn": {
            "critic": answers.critic / answers.policy,
            "evaluation": answers.evaluation / answers.policy,
            "teacher": (answers.g1 + answers.improvement) / answers.policy,
        },
        "GPU hours, at least": hours | {"all": total},
        "GPUs for that many days": total / (24 * options.days),
        "cost at the price": {"a GPU hour": options.price, "all": total * options.price},
        "turns a second": rate,
        "rollout actors for that": rate / costs["actor"]["turns_per_cpu_second"]["median"],
        "storage": storage(options.turns, costs, answers, options.answer),
        "where one process is full": limits(costs, options.memory, options.patience, per_game),
    }


def show(found: dict[str, Any], depth: int = 0) -> None:
    for name, value in found.items():
        if isinstance(value, dict):
            print(f"{'  ' * depth}{name}")
            show(value, depth + 1)
        else:
            number = value if isinstance(value, str) else f"{value:,.3g}" if value < 100 else f"{value:,.0f}"
            print(f"{'  ' * depth}{name:<{62 - 2 * depth}} {number:>18}")


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    found = report(options)
    show(found)
    if options.json:
        options.json.write_text(json.dumps({"costs": options.costs.name, **found}, indent=1) + "\n")
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench scale_bill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=float, default=1e9)
    parser.add_argument("--days", type=float, default=30.0, help="in which it is to be done")
    parser.add_argument("--price", type=float, default=1.0, help="of a GPU hour, in your currency")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100")
    parser.add_argument("--prompt", type=int, default=286, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=120, help="tokens of an answer")
    parser.add_argument("--share", type=float, default=0.4, help="of the card's peak, in training and reading")
    parser.add_argument("--batch", type=int, default=128, help="answers written at once")
    parser.add_argument("--memory", type=float, default=64e9, help="bytes of the driver's machine")
    parser.add_argument("--patience", type=float, default=2.0, help="seconds that a reader of the viewer waits")
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--costs", type=Path, default=COSTS, help="what `nlrl bench scale_costs` has written")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
