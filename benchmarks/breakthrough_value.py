"""Who wins? The value experiment of the paper (arXiv 2411.14251, section 4.2), on exact labels.

    python benchmarks/breakthrough_value.py                              the baselines on 3,000 held-out positions
    python benchmarks/breakthrough_value.py --states 300                 on 300 of them
    python benchmarks/breakthrough_value.py --model transformer-base     and an agent: a bundled name, a folder, a run
    python benchmarks/breakthrough_value.py --paper-players              positions from games of the paper's 12 players
    python benchmarks/breakthrough_value.py --play "mcts(1000,100)"      and who wins one game of a search with itself
    python benchmarks/breakthrough_value.py --train 2000 --write-train states.jsonl     a training subset, too

Positions come from games of search players of many strengths (`orchestration/state_sets.py`); the solver says who wins
each under perfect play. A method is right where the sign of its verdict is that of the value. A text that cannot be
read is wrong, and so is a verdict of 0.00. Intervals are Wilson's, at 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from nlrl.agents.asking import Reply, ask
from nlrl.agents.roles import ActionInput, Roles, StateInput
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.benchmarks.tictactoe import machine
from nlrl.envs import make_from_spec
from nlrl.envs.breakthrough.baselines import GUESSES
from nlrl.envs.game import Game
from nlrl.envs.opponents import make_opponent
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_json_atomic
from nlrl.orchestration.config import load_config
from nlrl.orchestration.frozen import Described, read_weights
from nlrl.orchestration.models import agent_config, is_run, open_model
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.state_sets import PAPER_PLAYERS, StateSet, StateSetConfig, exact_values, state_set
from nlrl.orchestration.statistics import wilson
from nlrl.orchestration.trainer import WEIGHTS_FILE

AT_ONCE = 1024
"""Positions asked about in one batch."""
HARD = "three rules"
"""The baseline on whose mistakes every method is scored again."""
Verdicts = list[float | None]
"""From the view of the player to move; None where nothing could be read."""


class Agent(NamedTuple):
    """A language model whose V is measured."""

    name: str
    model: LanguageModel
    style: str
    max_tokens: int


# -- verdicts ----------------------------------------------------------------------------------------------------------
def open_agent(name: str, style: str = "auto", max_tokens: int | None = None, base_url: str = "") -> Agent:
    """A bundled name, a model folder, a run's folder (its newest critic, else its agent), or a model at an endpoint.

    Raises:
        NLRLError: there is no such agent.
    """
    described = _critic_of(Path(name)) or Described(agent_config(name, base_url), None)
    config = described.config.model_copy(update={"style": style} if style != "auto" else {})
    model: Any = open_model(config)
    if described.weights is not None:
        model.load_weights(read_weights(described), f"critic of {name}")
    return Agent(name, model, config.prompt_style, max_tokens or config.max_tokens)


def language_verdicts(
    agent: Agent,
    game: Game[Any],
    states: Sequence[Any],
    sampling: Sampling | None = None,
    role: str = "v",
    seed: int = 0,
) -> Verdicts:
    """What an agent says about each state: V, or (`role` "q") the best that Q says of any legal move.

    Args:
        sampling: greedy by default; with `expected_number` a verdict is the expectation itself, where the model has it.
    """
    roles, verdicts = Roles(game, agent.style), []
    how = replace(sampling or Sampling(temperature=0.0), max_tokens=agent.max_tokens)
    for start in range(0, len(states), AT_ONCE):
        part = states[start : start + AT_ONCE]
        if role == "v":
            verdicts += _ask(agent, roles.v, [StateInput(state) for state in part], how, seed + start)
        else:
            pairs = [(state, action) for state in part for action in game.legal_actions(state)]
            said = _ask(agent, roles.q, [ActionInput(*pair) for pair in pairs], how, seed + start)
            verdicts += _best_of_moves(part, pairs, said)
    return verdicts


def _ask(agent: Agent, role: Any, inputs: Sequence[Any], sampling: Sampling, seed: int) -> Verdicts:
    replies = ask(agent.model, role, inputs, sampling, list(range(seed, seed + len(inputs))), retries=0)
    return [_verdict(reply) for reply in replies]


def _verdict(reply: Reply[Any]) -> float | None:
    if reply.output is None:
        return None
    expected = reply.completion.expectation
    return reply.output.verdict if expected is None else expected


def _best_of_moves(states: Sequence[Any], pairs: Sequence[tuple[Any, int]], said: Verdicts) -> Verdicts:
    best: dict[Any, float] = {}
    for (state, _), verdict in zip(pairs, said, strict=True):
        if verdict is not None:
            best[state] = max(verdict, best.get(state, -1.0))
    return [best.get(state) for state in states]


def played(game: Game[Any], states: Sequence[Any], policy: str, seed: int = 0) -> Verdicts:
    """How one game ends from each state, a policy (named as opponents are) playing both sides: what a critic that
    knew this policy's games would say at best."""
    player, verdicts = make_opponent(policy, game), []
    for number, start in enumerate(states):
        state, rng = start, Rng("breakthrough value", seed, number)
        while not game.is_terminal(state):
            (action,) = player.choose([state], [rng])
            assert action is not None
            state = game.apply(state, action, rng).state
        verdicts.append(game.returns(state)[game.current_player(start)])
    return verdicts


def _critic_of(run: Path) -> Described | None:
    """The newest critic of a run whose model is ours; None if there is none."""
    if not is_run(run):
        return None
    config = load_config(run / "config.toml").model
    stages = [stage for stage in RunFolder(run).stages() if stage.name == "critic" and stage.is_committed()]
    return Described(config, stages[-1].dir / WEIGHTS_FILE) if stages and config.kind == "native" else None


# -- scores ------------------------------------------------------------------------------------------------------------
def scores(verdicts: Verdicts, values: Sequence[float]) -> dict[str, Any]:
    """How often the sign is right, with Wilson's interval; what cannot be read and 0.00 are wrong."""
    right = sum(said is not None and said * value > 0 for said, value in zip(verdicts, values, strict=True))
    low, high = wilson(right, len(values))
    return {
        "states": len(values),
        "right": right,
        "accuracy": right / len(values) if values else None,
        "low": low,
        "high": high,
        "unreadable": sum(said is None for said in verdicts),
        "undecided": sum(said == 0 for said in verdicts),
    }


def measure(found: StateSet, states: int, asked: Sequence[tuple[str, Callable[[], Verdicts]]] = ()) -> dict[str, Any]:
    """All figures on the first `states` held-out positions.

    Args:
        asked: further methods by name, and what gives their verdicts on those positions.
    """
    chosen = found.held_out[:states]
    started = time.monotonic()
    values = exact_values(found.game, chosen)
    solved = time.monotonic() - started
    board = found.game.board  # type: ignore[attr-defined]  # the game is Breakthrough
    methods: dict[str, Verdicts] = {name: [guess(board, s) for s in chosen] for name, guess in GUESSES.items()}
    methods |= {name: verdicts() for name, verdicts in asked}
    wins = sum(value > 0 for value in values)
    constant = [1.0 if 2 * wins >= len(values) else -1.0] * len(values)
    methods = {"majority class": list(constant), **methods}
    hard = [i for i, (said, value) in enumerate(zip(methods[HARD], values, strict=True)) if said != value]
    rows = {name: scores(verdicts, values) for name, verdicts in methods.items()}
    for name, verdicts in methods.items():
        rows[name]["where three rules fail"] = scores([verdicts[i] for i in hard], [values[i] for i in hard])
    return {
        "states": len(chosen),
        "player to move wins": wins,
        "seconds of the solver": round(solved, 1),
        "methods": rows,
    }


def table(figures: dict[str, Any]) -> Table:
    """The scores as a table, best last."""
    title = f"Who wins: {figures['states']:,} held-out positions, exact labels"
    shown = Table(title=title, caption="unreadable and undecided answers are wrong")
    for header in ("method", "right", "95 % interval", "unreadable", "undecided", "right where three rules fail"):
        shown.add_column(header, justify="left" if header == "method" else "right")
    for name, row in sorted(figures["methods"].items(), key=lambda item: item[1]["right"]):
        hard = row["where three rules fail"]
        cells = (
            f"{row['accuracy']:.4f}",
            f"{row['low']:.4f} to {row['high']:.4f}",
            row["unreadable"],
            row["undecided"],
        )
        shown.add_row(name, *map(str, cells), f"{hard['right']} of {hard['states']}")
    return shown


# -- command line ------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    defaults = StateSetConfig()
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", action="append", default=[], help="an agent; may be given several times")
    options.add_argument("--play", action="append", default=[], help="a policy that plays both sides; several times")
    options.add_argument("--base-url", default="", help="of an OpenAI-compatible endpoint that has the models")
    options.add_argument("--style", choices=("auto", "plain", "instruct"), default="auto", help="of the prompts")
    options.add_argument("--role", choices=("v", "q"), default="v", help="q: the best that Q says of any move")
    options.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; the paper sampled once at 1.0")
    options.add_argument("--expected", action="store_true", help="verdicts are expectations, where the model has them")
    options.add_argument("--max-tokens", type=int, help="longest answer; the model's own by default")
    options.add_argument("--states", type=int, help="held-out positions to score; all by default")
    options.add_argument("--held-out", type=int, default=defaults.held_out, help="positions that are never trained on")
    options.add_argument("--split-seed", type=int, default=defaults.split_seed)
    options.add_argument("--players", nargs="+", help="opponents by name, instead of the small grid of searches")
    options.add_argument("--paper-players", action="store_true", help="the paper's 12: up to 1000 simulations")
    options.add_argument("--games-per-pair", type=int, default=defaults.games_per_pair)
    options.add_argument("--seed", type=int, default=0, help="of the games, and of sampled answers")
    options.add_argument("--train", type=int, help="training positions; the paper's subsets: 400 2000 10000 45000")
    options.add_argument("--write-train", type=Path, help="write the training positions here, a JSON string a line")
    options.add_argument("--game", default="breakthrough(rows=5,columns=5)")
    options.add_argument("--folder", type=Path, default=Path("runs"), help="where sets of positions are kept")
    options.add_argument("--workers", type=int, default=1, help="processes that play")
    options.add_argument("--out", type=Path, help="write the figures here, as JSON")
    return options


def main(argv: list[str] | None = None) -> None:
    given = parser().parse_args(argv)
    players = tuple(given.players or ()) or (PAPER_PLAYERS if given.paper_players else StateSetConfig().players)
    config = StateSetConfig(
        players=players,
        games_per_pair=given.games_per_pair,
        seed=given.seed,
        held_out=given.held_out,
        split_seed=given.split_seed,
        train=given.train,
    )
    given.states = given.held_out if given.states is None else given.states
    if not 1 <= given.states <= given.held_out:
        raise NLRLError(f"--states must be from 1 to --held-out ({given.held_out}), not {given.states}")
    if make_from_spec(given.game).name != "breakthrough":
        raise NLRLError(f"--game: the baselines are Breakthrough's, not those of {given.game}")
    found = state_set(given.game, config, given.folder, given.workers)
    if given.write_train:
        lines = (json.dumps(found.game.to_text(state)) for state in found.train)
        given.write_train.write_text("".join(f"{line}\n" for line in lines))
    asked = [(name, _asker(given, name, found)) for name in given.model]
    asked += [(f"a game of {name}", _player(given, name, found)) for name in given.play]
    figures = measure(found, given.states, asked)
    figures |= {
        "set": {
            "game": found.game.spec,
            **config.model_dump(mode="json"),
            "file": found.path.name,
            "games": found.games,
            "moves": found.plies,
            "training positions": len(found.train),
        },
        "asked": {name: getattr(given, name) for name in ("role", "temperature", "expected", "style", "max_tokens")},
        "machine": machine(),
        "command": " ".join(sys.argv),
    }
    if given.out:
        write_json_atomic(given.out, figures)
    Console(width=None if sys.stdout.isatty() else 160).print(table(figures))


def _asker(given: argparse.Namespace, name: str, found: StateSet) -> Callable[[], Verdicts]:
    def verdicts() -> Verdicts:
        agent = open_agent(name, given.style, given.max_tokens, given.base_url)
        states = found.held_out[: given.states]
        sampling = Sampling(temperature=given.temperature, expected_number=given.expected)
        return language_verdicts(agent, found.game, states, sampling, given.role, given.seed)

    return verdicts


def _player(given: argparse.Namespace, name: str, found: StateSet) -> Callable[[], Verdicts]:
    return lambda: played(found.game, found.held_out[: given.states], name, given.seed)


if __name__ == "__main__":
    try:
        main()
    except NLRLError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
