"""`nlrl eval`: how strong any agent is, trained here or not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from nlrl.agents.asking import ask
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs import make_from_spec
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_json_atomic
from nlrl.orchestration.config import ModelConfig, RolloutConfig, load_config
from nlrl.orchestration.exact import Turn, mixed_results, reachable_turns, worst_case
from nlrl.orchestration.models import open_model
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks

RESULTS = ("win", "draw", "loss", "forfeit")


def agent_config(agent: str, base_url: str = "") -> ModelConfig:
    """The model config of an agent named on the command line.

    Raises:
        NLRLError: a run's folder without a finished agent.
    """
    if base_url:
        return ModelConfig(kind="openai", name=agent, base_url=base_url)
    folder = Path(agent)
    if (folder / "config.toml").exists():
        if not (folder / "agent").exists():
            raise NLRLError(
                f"{agent}: this run has no finished agent yet; finish it with `nlrl run {agent}/config.toml`"
            )
        model, trained = load_config(folder / "config.toml").model, str(folder / "agent")
        scripted = model.kind == "scripted"  # such a model is a module, told where its weights are
        place = {"options": model.options | {"agent": trained}} if scripted else {"name": trained}
        return model.model_copy(update=place)
    return ModelConfig(name=agent)


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
    config = agent_config(agent, base_url)
    model = open_model(config)
    figures = {
        "agent": agent,
        "game": spec,
        "temperature": temperature,
        "sampled": sampled(model, config, spec, opponents, games, temperature, seed),
        "exact": exact(model, config, spec, opponents) if temperature == 0 and config.trainable else None,
    }
    if out is not None:
        write_json_atomic(out, figures)
    return Group(*_tables(figures))


def sampled(
    model: LanguageModel,
    config: ModelConfig,
    spec: str,
    opponents: Sequence[str],
    games: int,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """Shares of results with intervals, against each opponent."""
    from nlrl.orchestration.stages.evaluation import shares

    rollout = RolloutConfig(samples_per_state=max(games, 1), samples_at_start=max(games, 1))
    worker = RolloutWorker(spec, model, config.prompt_style, config.max_tokens, rollout, seed)
    figures = {}
    for name in opponents if games else ():
        tasks = game_tasks("eval", seed, 0, f"eval/{name}", games, (name,), paired=True)
        figures[name] = shares(worker.play(PlayJob(model.weight_version, temperature, tasks)))
    return figures


def exact(model: LanguageModel, config: ModelConfig, spec: str, opponents: Sequence[str]) -> dict[str, Any]:
    """Exact results of greedy play, by asking in every state that can come up."""
    game = make_from_spec(spec)
    role, sampling = Roles(game, config.prompt_style).policy, Sampling(temperature=0.0, max_tokens=config.max_tokens)
    table: dict[Any, Counter[int | None]] = {}

    def choose(turns: list[Turn]) -> list[Iterable[int | None]]:
        new = [turn.state for turn in turns if turn.state not in table]
        for state, reply in zip(new, ask(model, role, [StateInput(s) for s in new], sampling), strict=True):
            table[state] = Counter([reply.output.action if reply.output else None])
        return [list(table[turn.state]) for turn in turns]

    reachable_turns(game, choose, [Turn(s, seat, 0) for s in game.initial_states() for seat in range(game.num_players)])
    results = {name: mixed_results(game, table, make_opponent(name, game))._asdict() for name in opponents}
    return {"against": results, "exploitability": worst_case(game, table), "states": len(table)}


def _tables(figures: dict[str, Any]) -> list[RenderableType]:
    table = Table(
        title=f"{figures['agent']} on {figures['game']}, temperature {figures['temperature']}, half in each seat"
    )
    for header in ("against", "games", *RESULTS, "unreadable turns"):
        table.add_column(header, justify="right")
    for name, row in figures["sampled"].items():
        cells = [f"{row[r]['share']:.3f} [{row[r]['low']:.3f}, {row[r]['high']:.3f}]" for r in RESULTS]
        table.add_row(name, str(row["games"]), *cells, f"{row['failures_per_turn']:.2%}")
    if figures["exact"] is None:
        return [table]
    second = Table(title=f"Exactly, over every game; exploitability {figures['exact']['exploitability']:.3f}")
    for header in ("against", *RESULTS):
        second.add_column(header, justify="right")
    for name, row in figures["exact"]["against"].items():
        second.add_row(name, *(f"{row[r]:.4f}" for r in RESULTS))
    return [table, second]
