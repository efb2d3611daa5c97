"""The scheduler at many actors, simulated from measured service times: `nlrl bench scale_simulation`.

    nlrl bench scale_simulation                        compare with real runs on this machine, then up to 10,000 actors
    nlrl bench scale_simulation -- --no-validate       the simulation alone, from the costs that were measured before
    nlrl bench scale_simulation -- --scale             the comparison alone

Costs come from `nlrl bench scale_costs` (`--costs`). For the comparison, actors play real games for `--seconds` against
a real engine on this machine and against a server that answers at once, whose rates are measured just before; the
simulation, given the same numbers, predicts the requests a second. (An engine's rates are for each second of its
processor; what share of a core it had in the real run is read off that run, as neighbours on the machine decide it.)

The large runs have engines of an 8B model, one on each H100. Their rates are not measured: they are the lower bounds on
time of `nlrl bench memory` (arithmetic and memory traffic). Each way to organise the work is a change on top of the one
before it.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nlrl.backbones.language_model import Request
from nlrl.benchmarks import load
from nlrl.benchmarks.figures import machine
from nlrl.benchmarks.scale_costs import engine_costs, request_costs
from nlrl.benchmarks.scale_events import Plan, Seen, simulate
from nlrl.envs import make_from_spec
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks
from nlrl.testing.by_rules import RuleModel
from nlrl.testing.instant import InstantModel

COSTS = Path(__file__).parent / "results" / "scale_costs_2026-11-22_cpu.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "scale.png"
ROWS = 256
"""Answers that an 8B engine writes at once."""
SATURATED = 0.9
"""Engines that are busy for a smaller share of the time wait for something else."""
SMALL_ROWS = 128


@dataclass(frozen=True)
class Profile:
    """A job of games as a model sees it."""

    games: int
    asked: tuple[int, ...]
    """Requests of each round; equal ones count once."""
    turns: int


class _Counted:
    """A model that notes how many requests each call has."""

    def __init__(self, inner: Any):
        self._inner, self.asked = inner, list[int]()
        self.name, self.reads_expectations, self.weight_version = inner.name, False, inner.weight_version

    def generate(self, requests: Sequence[Request]) -> list[Any]:
        self.asked.append(len(requests))
        return self._inner.generate(requests)


def profile_of(spec: str, games: int) -> Profile:
    """Counted on a job of a model that plays at random."""
    model = _Counted(RuleModel() if spec == "tictactoe" else InstantModel())
    seats = make_from_spec(spec).num_players
    worker = RolloutWorker(spec, model, "plain", 64, RolloutConfig(), 0)  # pyright: ignore[reportArgumentType]
    tasks = game_tasks("profile", 0, 0, "rollout", games, ["random" if seats > 1 else "none"], seats=seats)
    records = worker.play(PlayJob("profile", 1.0, tasks))
    return Profile(games, tuple(model.asked), sum(len(record["turns"]) for record in records))


def base_plan(costs: dict[str, Any], profile: Profile, actors: int, engines: int) -> Plan:
    """The platform as it is, with measured costs; rates of the engine are still to be given."""
    driver, ray, asked = costs["driver"], costs["ray"], sum(profile.asked)
    turn = 1 / costs["actor"]["turns_per_cpu_second"]["median"] * profile.turns / asked
    entries = profile.turns / profile.games + 1  # of a game: its turns, and its moves
    looks = {int(count): seconds for count, seconds in ray["look_s"].items()}
    return Plan(
        actors=actors,
        engines=engines,
        games=profile.games,
        alive=[count / profile.games for count in profile.asked],
        rate={1: 1.0},
        rows=1,
        turn_s=turn,
        call_s=ray["call_alone_s"] / 2,
        game_s=driver["task_s"] + driver["unpack_s"] + driver["write_s"] + entries * driver["note_s"],
        job_s=ray["call_s"],
        look_s=looks[max(looks)] / max(looks),
    )


# -- against real runs -------------------------------------------------------------------------------------------------
def validate(costs: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests a second, measured and predicted, of real small runs."""
    found = []
    for actors in options.actors:
        rates = engine_costs("transformer-base", "tictactoe", options.seconds / 10)["answers_per_cpu_second"]
        found.append(_compared(costs, options, actors, "native", "transformer-base", "tictactoe", rates))
    for actors in options.actors:
        at_once = {1: 1 / request_costs(options.game)}
        found.append(_compared(costs, options, actors, "scripted", "nlrl.testing.instant", options.game, at_once))
    return found


def _compared(
    costs: dict[str, Any],
    options: argparse.Namespace,
    actors: int,
    kind: str,
    model: str,
    game: str,
    rates: dict[int, float],
) -> dict[str, Any]:
    profile = profile_of(game, options.games)
    given = f"--actors {actors} --games {options.games} --seconds {options.seconds} --kind {kind} --model {model}"
    asked = load.parse([*given.split(), "--game", game, "--rounds", "0", "--straight", "0"])
    with TemporaryDirectory() as folder:
        measured = load.run_load(asked, Path(folder))
    share = _processor(measured) if kind == "native" else 1.0
    seconds = measured.ended - measured.began
    late = [calls for began, _, calls in measured.calls if began > measured.began + load.WARM_UP * seconds]
    rate = sum(late) / (seconds * (1 - load.WARM_UP))
    here = {rows: each * share for rows, each in rates.items()}
    plan = replace(base_plan(costs, profile, actors, 1), rate=here, rows=SMALL_ROWS)
    plan = replace(plan, cores=len(os.sched_getaffinity(0)) - 1)
    predicted = simulate(plan, max(60.0, 4 * options.seconds))
    asked_for = predicted.answered / predicted.seconds
    return {
        "actors": actors,
        "model": model,
        "games": options.games,
        "measured_requests_per_second": rate,
        "predicted_requests_per_second": asked_for,
        "error": asked_for / rate - 1,
        "engine_had_of_a_core": share,
        "predicted_engine_busy": predicted.engine_busy,
    }


def _processor(measured: load.Load) -> float:
    """The share of a core that the engine had while it computed: neighbours had the rest."""
    late = [look for look in measured.looks if measured.began < look["time"] <= measured.ended]
    took = {name: late[-1][name] - late[0][name] for name in ("cpu", "busy_seconds_total")}
    return min(1.0, took["cpu"] / took["busy_seconds_total"])


# -- at size -----------------------------------------------------------------------------------------------------------
Change = Callable[[Plan, dict[str, Any]], Plan]


def _own_shards(plan: Plan, costs: dict[str, Any]) -> Plan:
    """Workers write records and ledger; the driver hears that a job is done."""
    return replace(plan, game_s=costs["driver"]["task_s"])


WAYS: dict[str, Change] = {
    "as it was": lambda plan, costs: plan,
    "an actor knows 4 engines": lambda plan, costs: replace(plan, spread=4),
    "one look for all that is done": lambda plan, costs: replace(plan, batched=True),
    "actors write their own shards": _own_shards,
}
"""Each on top of the ones before it."""


def rates_of_8b(prompt: int, answer: int, share: float) -> dict[int, float]:
    """Answers a second of Llama-3.1-8B on an H100 at best, by answers at once."""
    from nlrl.benchmarks.memory import GPUS, Assumed, seconds_to_answer, size_of

    size, gpu = size_of("Llama-3.1-8B-Instruct"), GPUS["h100"]
    batches = (1, 8, 32, 64, 128, 256)
    return {b: 1 / seconds_to_answer(1, size, 1, gpu, Assumed(prompt, answer, share, b)) for b in batches}


def at_size(costs: dict[str, Any], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of every way and number of actors."""
    profile, rates = profile_of(options.game, options.job_games), rates_of_8b(286, 120, 0.4)
    found = []
    for actors in options.scale:
        plan = base_plan(costs, profile, actors, max(1, actors // options.actors_per_engine))
        plan = replace(plan, rate=rates, rows=ROWS)
        for name, change in WAYS.items():
            plan = change(plan, costs)
            seen = simulate(plan, options.simulated)
            found.append(_row(name, plan, seen))
            _show_row(found[-1])
    return found


def _row(way: str, plan: Plan, seen: Seen) -> dict[str, Any]:
    kept = {name: value for name, value in asdict(seen).items() if name != "queues"}
    best = plan.engines * plan.rate[ROWS]
    return {
        "way": way,
        "actors": plan.actors,
        "engines": plan.engines,
        "answers_per_second": seen.answered / seen.seconds,
        "of_the_engines_best": seen.answered / seen.seconds / best,
        "calls_per_second": seen.engine_calls / seen.seconds,
        **kept,
        "queues": seen.queues[:: max(1, len(seen.queues) // 20)],
    }


def saturation(costs: dict[str, Any], options: argparse.Namespace) -> dict[str, float]:
    """Actors that one driver can keep busy, for each way: at which its own work takes all of its time."""
    profile, rates = profile_of(options.game, options.job_games), rates_of_8b(286, 120, 0.4)
    job = sum(profile.asked) * options.actors_per_engine / rates[ROWS]
    found, plan = {}, base_plan(costs, profile, 1, 1)
    for name, change in WAYS.items():
        plan = change(plan, costs)
        work, look = plan.job_s + plan.games * plan.game_s, 0.0 if plan.batched else plan.look_s
        # actors * (work + look * actors) = seconds of a job
        found[name] = job / work if not look else (-work + (work**2 + 4 * look * job) ** 0.5) / (2 * look)
    return found


# -- printing ----------------------------------------------------------------------------------------------------------
def _show_row(row: dict[str, Any]) -> None:
    print(
        f"  {row['actors']:6} actors, {row['engines']:5} engines, {row['way']:30} {row['answers_per_second']:9,.0f} "
        f"answers/s ({row['of_the_engines_best']:6.1%} of the best), driver {row['driver_busy']:6.1%} busy, "
        f"at most {row['longest_driver_queue']:5} jobs wait, {row['job_wait_s']:7.2f} s a job, "
        f"{row['calls_per_second']:9,.0f} calls/s",
        flush=True,
    )


def _show_validation(row: dict[str, Any]) -> None:
    measured, predicted = (row[f"{how}_requests_per_second"] for how in ("measured", "predicted"))
    print(
        f"  {row['actors']:3} actors x {row['games']} games, {row['model']}: measured {measured:8,.0f} requests/s, "
        f"predicted {predicted:8,.0f} ({row['error']:+.1%})"
    )


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """What the engines reach of their best, and how busy the driver is, by the number of actors."""
    import altair as alt

    from nlrl.benchmarks.replications.figures import COLOURS, SCALE

    panels = {"of_the_engines_best": "engines: share of their best rate", "driver_busy": "driver: share of time busy"}
    colour = alt.Color("way", type="nominal", title=None, sort=list(WAYS), scale=alt.Scale(range=list(COLOURS)))
    values = [{name: row[name] for name in ("way", "actors", *panels)} for row in rows]
    charts = [
        alt.Chart(alt.Data(values=values), width=330, height=230)
        .mark_line(point=True, strokeWidth=2)
        .encode(
            x=alt.X("actors", type="quantitative", title="actors", scale=alt.Scale(type="log")),
            y=alt.Y(field, type="quantitative", title=title, scale=alt.Scale(domain=[0, 1]), axis=alt.Axis(format="%")),
            color=colour,
        )
        for field, title in panels.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    alt.hconcat(*charts).configure_legend(orient="bottom", columns=2, labelLimit=0).save(path, scale_factor=SCALE)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    costs = json.loads(options.costs.read_text())
    report: dict[str, Any] = {"machine": machine(), "costs": options.costs.name, "load_average": os.getloadavg()}
    print(f"{machine()}; costs of {options.costs.name}, {costs['machine']}")
    if options.validate:
        report["validation"] = validate(costs, options)
        for row in report["validation"]:
            _show_validation(row)
    report["driver_is_full_at_actors"] = saturation(costs, options)
    for name, actors in report["driver_is_full_at_actors"].items():
        print(f"  one driver is full at {actors:9,.0f} actors: {name}")
    report["at_size"] = at_size(costs, options)
    report["options"] = {n: v for n, v in vars(options).items() if n not in ("json", "costs", "picture")}
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.picture and report["at_size"]:
        draw(report["at_size"], options.picture)
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench scale_simulation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--costs", type=Path, default=COSTS, help="what `nlrl bench scale_costs` has written")
    parser.add_argument("--validate", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--actors", type=int, nargs="+", default=[4, 8], help="of the real runs")
    parser.add_argument("--games", type=int, default=64, help="of an actor in the real runs")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each real run")
    parser.add_argument("--game", default="breakthrough(columns=5,rows=5)", help="of the large runs, as a spec")
    parser.add_argument("--scale", type=int, nargs="*", default=[100, 1000, 3000, 10_000], help="actors simulated")
    parser.add_argument("--job-games", type=int, default=32, help="of an actor at size")
    parser.add_argument("--actors-per-engine", type=int, default=12, help="at size")
    parser.add_argument("--simulated", type=float, default=100.0, help="seconds that are simulated at size")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--picture", type=Path, help=f"draw them here, such as {PICTURE.name}")
    return parser.parse_args(argv)


if __name__ == "__main__":
    raise SystemExit(main())
