"""Frozen agents as opponents: `agent(runs/first)`, a trained or bundled model that plays and never learns.

    agent(runs/first)                the agent of a finished run; or a model folder, or a bundled name
    agent(runs/first,iteration=3)    the run's actor as it was committed then; the run need not be finished
    agent(runs/first,temperature=1)  sampled answers; without it the greedy one

1. A frozen agent argues and moves with the language policy, in the prompt style of its own model. Each answer is
   asked for once and kept, by state (and number, where it samples).
2. Where it gives no legal move after the retries it forfeits: None in `choose`, and in `policy`.
3. A greedy one is exact: what it does in a state is known once it was asked there. `prepare` asks in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs.game import Game
from nlrl.envs.opponent import Distribution, Opponent, is_number, legal_moves, require_two_players, sampled_only
from nlrl.envs.opponents import Inner, Maker, bound
from nlrl.envs.random import Rng, derive_seed
from nlrl.envs.spec import Call, parse_call
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig, RolloutConfig, load_config
from nlrl.orchestration.models import agent_config, is_run, open_model, place_of, scripted_module
from nlrl.orchestration.players import PolicyPool
from nlrl.orchestration.run_folder import RunFolder

NAME = "agent"
USAGE = "agent(folder_or_name) or agent(folder,temperature=1,iteration=3)"
_STAGE = "actor"


class Source(NamedTuple):
    """Whose weights play."""

    agent: str
    """A run's folder, a model folder or a bundled name."""
    iteration: int | None = None
    """Of a run; None is the end of a finished one."""


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """A model that answers for a frozen agent, and how it is asked."""

    model: LanguageModel
    style: str
    max_tokens: int


class FrozenAgent(Distribution):
    """Plays a language policy whose weights never change.

    Args:
        samples: answers kept for a state, among which each game draws; a greedy agent has one.
        seed: with the state, decides the sampled answers.

    Raises:
        NLRLError: the game is for one player, or the model's prompt style has no language for it.
    """

    def __init__(
        self, name: str, game: Game[Any], frozen: FrozenModel, temperature: float, samples: int, retries: int, seed: int
    ):
        require_two_players(game, name)
        self.name, self.exact, self._game = name, temperature == 0, game
        sampling = Sampling(temperature=temperature, max_tokens=frozen.max_tokens)
        role = Roles(game, frozen.style).policy
        self._pool = PolicyPool(frozen.model, role, sampling, seed, samples, samples_at_start=0, retries=retries)

    def choose(self, states: Sequence[Any], rngs: Sequence[Rng]) -> list[int | None]:
        for state in states:
            legal_moves(self._game, state)
        replies = self._pool.draw(states, [0] * len(states), rngs)
        return [reply.output.action if reply.output else None for reply in replies]

    def policy(self, state: Any) -> dict[Any, float]:
        if not self.exact:
            raise sampled_only(self.name)
        legal_moves(self._game, state)
        (moves,) = self._pool.table([state], [0])
        return {action: count / moves.total() for action, count in moves.items()}

    def prepare(self, states: Sequence[Any]) -> None:
        if self.exact:
            self._pool.table(states, [0] * len(states))


# -- names -------------------------------------------------------------------------------------------------------------
def agent_maker(opened: Callable[[Source], FrozenModel], config: RolloutConfig, seed: int) -> dict[str, Maker]:
    """What `make_opponent` needs to know frozen agents.

    Args:
        opened: gives the model of each agent.
        config: its samples and retries hold for frozen agents, too.
        seed: of sampled answers.
    """

    def make(call: Call, game: Game[Any], inner: Inner) -> Opponent | None:
        read = _read(call)
        if read is None:
            return None
        source, temperature = read
        name = _name(source, temperature)
        own_seed = derive_seed(seed, "opponent", name)
        frozen, samples = opened(source), config.samples_per_state
        return FrozenAgent(name, game, frozen, temperature, samples, config.retries, own_seed)

    return {USAGE: make}


def unopened(game: Game[Any], config: RolloutConfig, seed: int) -> dict[str, Maker]:
    """The same, for trying names before a model is opened: agents that are there and know the game."""

    def described(source: Source) -> FrozenModel:
        require_plays(source, game)
        return describe(source).frozen(None)

    return agent_maker(described, config, seed)


def sources(names: Iterable[str]) -> list[Source]:
    """The frozen agents in opponents' names, also those inside others, once each."""
    return list(dict.fromkeys(source for name in names for source in _sources(name)))


def _sources(name: str) -> Iterator[Source]:
    call = parse_call(name)
    if call.name == NAME:
        read = _read(call)
        if read is not None:
            yield read[0]
    elif call.args:
        for inner in call.args:
            if isinstance(inner, str):
                yield from _sources(inner)


def _read(call: Call) -> tuple[Source, float] | None:
    """The source and the temperature; None where the arguments do not fit."""
    given = bound(call, ("agent",), ("temperature", "iteration"))
    if given is None:
        return None
    temperature, iteration = given.get("temperature", 0), given.get("iteration")
    source = Source(str(given["agent"]), iteration)
    name = _name(source, temperature)
    if not is_number(temperature) or not 0 <= temperature < float("inf"):
        raise NLRLError(f"{name!r}: temperature must be a number of at least 0, not {temperature!r}")
    if iteration is not None and (isinstance(iteration, bool) or not isinstance(iteration, int) or iteration < 1):
        raise NLRLError(f"{name!r}: iteration must be an integer of at least 1, not {iteration!r}")
    return source, float(temperature)


def _name(source: Source, temperature: Any) -> str:
    more = "" if temperature == 0 else f",temperature={temperature:g}" if is_number(temperature) else f",{temperature}"
    return f"{NAME}({source.agent}{more}{'' if source.iteration is None else f',iteration={source.iteration}'})"


# -- models ------------------------------------------------------------------------------------------------------------
class Described(NamedTuple):
    """What has to be opened for an agent."""

    config: ModelConfig
    weights: Path | None
    """A committed actor's, to be put into that model; None where the model is the agent."""

    def frozen(self, model: Any) -> FrozenModel:
        return FrozenModel(model, self.config.prompt_style, self.config.max_tokens)


def describe(source: Source) -> Described:
    """Finds an agent, without opening it.

    Raises:
        NLRLError: there is no such run, folder or bundled model; the run is not that far.
    """
    folder = place_of(source.agent, source.iteration)
    if is_run(folder):
        return _of_run(folder, source.iteration)
    if source.iteration is not None:
        raise NLRLError(f"{source.agent} is not a run's folder (no config.toml in it), so it has no iteration")
    if not (folder / "config.json").is_file():
        from nlrl.backbones.loading import bundled_names

        if source.agent not in bundled_names():
            raise NLRLError(
                f"there is no agent '{source.agent}': it must be a run's folder, a model folder, or one of "
                f"{', '.join(bundled_names())}"
            )
    return Described(agent_config(source.agent), None)


def require_plays(source: Source, game: Game[Any]) -> None:
    """Refuses agents of runs that were not trained to play a game.

    Raises:
        NLRLError: the run is about another game, or has made no player.
    """
    folder = place_of(source.agent, source.iteration)
    if not is_run(folder):
        return
    from nlrl.orchestration.methods import method_of

    config = load_config(folder / "config.toml")
    if config.game.name != game.name:
        raise NLRLError(f"{source.agent} was trained on {config.game.name} and cannot play {game.spec}")
    if method_of(config).exports != _STAGE:
        raise NLRLError(f"{source.agent}: method '{config.method}' trains no actor, so there is no agent to play")


def _of_run(folder: Path, iteration: int | None) -> Described:
    stages = [stage for stage in RunFolder(folder).stages() if stage.name == _STAGE and stage.is_committed()]
    committed = {stage.iteration: stage for stage in stages}
    if iteration is None:
        try:
            return Described(agent_config(str(folder)), None)
        except NLRLError as error:
            hint = f", or name what there is: {_name(Source(str(folder), max(committed)), 0)}" if committed else ""
            raise NLRLError(f"{error}{hint}") from None
    if iteration not in committed:
        there = f"; there is 1 to {max(committed)}" if committed else ""
        raise NLRLError(f"{folder}: this run has not trained an actor in iteration {iteration}{there}")
    from nlrl.orchestration.trainer import WEIGHTS_FILE

    return Described(load_config(folder / "config.toml").model, committed[iteration].dir / WEIGHTS_FILE)


def open_frozen(source: Source) -> FrozenModel:
    """Opens an agent in this process.

    Raises:
        NLRLError: as `describe`; or the model cannot be opened.
    """
    described = describe(source)
    model: Any = open_model(described.config)
    if described.weights is not None:
        model.load_weights(read_weights(described), f"{_STAGE}@{source.iteration}")
    return described.frozen(model)


def read_weights(described: Described) -> Any:
    """What `load_weights` of the agent's model takes.

    Raises:
        NLRLError: the file is missing or torn.
    """
    path = str(described.weights)
    if described.config.kind == "scripted":
        trainer = scripted_module(described.config.name).make_trainer()
        trainer.load(_STAGE, path)
        return trainer.weights(_STAGE)
    if described.config.kind == "vllm":
        from nlrl.backbones.tuning.weights import TunedWeights

        return TunedWeights.read(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise NLRLError(f"{path} cannot be read: {error}") from None
