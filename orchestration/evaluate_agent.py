"""`nlrl eval`: how strong any agent is, trained here or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from nlrl.agents.asking import ask
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_json_atomic
from nlrl.orchestration.config import EvaluationConfig, ModelConfig, RolloutConfig
from nlrl.orchestration.exact import Turn, is_small, mixed_results, reachable_turns, worst_case
from nlrl.orchestration.frozen import open_frozen, sources, unopened
from nlrl.orchestration.models import agent_config, open_model
from nlrl.orchestration.players import NONE, RESULTS
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks


def evaluate_agent(
    agent: str,
    spec: str,
    opponents: Sequence[str],
    games: int,
    temperature: float,
    seed: int,
    base_url: str = "",
    out: Path | None = None,
) -> RenderableType:
    """Plays, measures, and returns what to print.

    Raises:
        NLRLError: no such agent, game or opponent; a negative number of games or temperature.
    """
    for field, value in (("games", games), ("temperature", temperature)):
        if value < 0:
            raise NLRLError(f"{field}: {value} is negative; it must be 0 or more")
    game, rollout = make_from_spec(spec), RolloutConfig(samples_per_state=max(games, 1), samples_at_start=max(games, 1))
    if game.num_players == 1:
        opponents = (NONE,)
    for name in set(opponents) - {NONE}:
        make_opponent(name, game, unopened(game, rollout, seed))  # refuses before a model is opened
    config = agent_config(agent, base_url)
    model, frozen = open_model(config), {source: open_frozen(source) for source in sources(opponents)}
    worker = RolloutWorker(spec, model, config.prompt_style, config.max_tokens, rollout, seed, frozen)
    players = {name: worker.opponent(name) for name in opponents if name != NONE}
    knowable = temperature == 0 and config.trainable and is_small(game.spec, EvaluationConfig().exact_states)
    figures = {
        "agent": agent,
        "game": spec,
        "temperature": temperature,
        "sampled": sampled(worker, model.weight_version, opponents, games, temperature, seed),
        "exact": exact(model, config, game, players) if knowable else None,
    }
    if out is not None:
        write_json_atomic(out, figures)
    return Group(*_tables(figures))


def sampled(
    worker: RolloutWorker, version: str, opponents: Sequence[str], games: int, temperature: float, seed: int
) -> dict[str, Any]:
    """Shares of results with intervals, against each opponent."""
    from nlrl.orchestration.stages.evaluation import shares

    figures = {}
    for name in opponents if games else ():
        seats = worker.game.num_players
        tasks = game_tasks("eval", seed, 0, f"eval/{name}", games, (name,), paired=True, seats=seats)
        figures[name] = shares(worker.play(PlayJob(version, temperature, tasks)), seats)
    return figures


def exact(
    model: LanguageModel, config: ModelConfig, game: Game[Any], opponents: Mapping[str, Opponent]
) -> dict[str, Any]:
    """Exact results of greedy play against the opponents that are exact, by asking in every state that can come up."""
    role, sampling = Roles(game, config.prompt_style).policy, Sampling(temperature=0.0, max_tokens=config.max_tokens)
    table: dict[Any, Counter[int | None]] = {}

    def choose(turns: list[Turn]) -> list[Iterable[int | None]]:
        new = [turn.state for turn in turns if turn.state not in table]
        for state, reply in zip(new, ask(model, role, [StateInput(s) for s in new], sampling), strict=True):
            table[state] = Counter([reply.output.action if reply.output else None])
        return [list(table[turn.state]) for turn in turns]

    reachable_turns(game, choose, [Turn(s, seat, 0) for s in game.initial_states() for seat in range(game.num_players)])
    if game.num_players == 1:
        from nlrl.orchestration.stages.evaluation import exact_walks

        return exact_walks(game, table)
    known = {name: opponent for name, opponent in opponents.items() if opponent.exact}
    results = {name: mixed_results(game, table, opponent)._asdict() for name, opponent in known.items()}
    return {"against": results, "exploitability": worst_case(game, table), "states": len(table)}


def _tables(figures: dict[str, Any]) -> list[RenderableType]:
    alone = make_from_spec(figures["game"]).num_players == 1
    results, seats = (RESULTS[1], "") if alone else (RESULTS[2], ", half in each seat")
    table = Table(title=f"{figures['agent']} on {figures['game']}, temperature {figures['temperature']}{seats}")
    for header in ("against", "games", *results, *(["return"] if alone else []), "unreadable turns"):
        table.add_column(header, justify="right")
    for name, row in figures["sampled"].items():
        cells = [f"{row[r]['share']:.3f} [{row[r]['low']:.3f}, {row[r]['high']:.3f}]" for r in results]
        cells += [f"{row['return']['mean']:.3f}"] if alone else []
        table.add_row(name, str(row["games"]), *cells, f"{row['failures_per_turn']:.2%}")
    if figures["exact"] is None:
        return [table]
    last = "optimum" if alone else "exploitability"
    second = Table(title=f"Exactly, over every game; {last} {figures['exact'][last]:.3f}")
    names = ("return", *results) if alone else results
    for header in ("against", *names):
        second.add_column(header, justify="right")
    for name, row in figures["exact"]["against"].items():
        second.add_row(name, *(f"{row[r]:.4f}" for r in names))
    if unknown := [name for name in figures["sampled"] if name not in figures["exact"]["against"]]:
        second.caption = f"known by samples only: {', '.join(unknown)}"
    return [table, second]
