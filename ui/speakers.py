"""Agents that the Lab and Play pages can ask: bundled models, runs as they are now, and runs as they were.

1. An agent has three voices: an actor, which argues and moves, a critic, which evaluates, and the base it came from.
   Where a run trained no critic, and for models on their own, one voice plays all parts.
2. The base of an agent on its own, such as a finished run's, is that agent: it has not kept what it came from.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nlrl.agents.asking import Reply, ask
from nlrl.agents.metrics.claims import Claim, check_claims
from nlrl.agents.roles import ActionInput, Choice, Role, Roles, StateInput
from nlrl.backbones.language_model import Completion, LanguageModel, Message, Request, Sampling
from nlrl.backbones.registry import bundled_bases
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.frozen import Described, Source, describe, read_weights
from nlrl.orchestration.models import open_model
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.weight_sets import BASE, PARTS, WeightSets, weight_sets_of
from nlrl.ui.reading import find_runs, game_spec

ACTOR, CRITIC = PARTS
ENDPOINTS = "NLRL_VIEW_ENDPOINTS"
"""Environment variable that lets the viewer send keys to the endpoints of runs."""
RULES = "nlrl.testing.by_rules"
"""Answers Tic-Tac-Toe by rules, at once."""
RoleName = Literal["policy", "V", "Q"]
ROLES: tuple[RoleName, ...] = ("policy", "V", "Q")


class Speaker(NamedTuple):
    """An agent that may be asked, unopened."""

    label: str
    source: Source
    scripted: bool = False


@dataclass
class Voice:
    """One weight set of an opened model: a `LanguageModel`."""

    sets: WeightSets
    weights: str
    name: str
    reads_expectations: bool

    @property
    def weight_version(self) -> str:
        return self.sets.find(self.weights)[1]

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return self.sets.generate(self.sets.find(self.weights)[0], requests)


@dataclass(frozen=True)
class Opened:
    """An agent that answers."""

    actor: LanguageModel
    critic: LanguageModel
    base: LanguageModel
    style: str
    max_tokens: int
    config: ModelConfig


@dataclass(frozen=True)
class Answer:
    """What an agent said in one role."""

    reply: Reply[Any]
    text: str
    move: str
    """The move it names; empty where it names none, or is not asked for one."""
    verdict: float | None
    failures: tuple[str, ...]
    tokens: int
    seconds: float
    weights: str
    prompt: tuple[Message, ...]
    claims: tuple[Claim, ...]


# -- who there is ------------------------------------------------------------------------------------------------------
def speakers(folder: Path, game_name: str) -> dict[str, Speaker]:
    """The agents by their labels: bundled models, then runs about this game, the newest iteration of each first."""
    found = [Speaker(name, Source(name)) for name in bundled_bases().values()]
    for run in (run for run in find_runs(folder) if (game_spec(run) or ("",))[0] == game_name):
        found += of_run(run, run.relative_to(folder).as_posix())
    if game_name == "tictactoe":
        found.append(Speaker("by rules (scripted)", Source(RULES), scripted=True))
    return {one.label: one for one in found}


def of_run(run: Path, name: str) -> list[Speaker]:
    """A run's finished agent, and its actors, the newest first."""
    name = run.name if name == "." else name
    actors = [stage.iteration for stage in RunFolder(run).stages() if stage.name == ACTOR and stage.is_committed()]
    finished = [Speaker(name, Source(str(run)))] if (run / "agent").is_dir() else []
    return finished + [Speaker(f"{name}, iteration {n}", Source(str(run), n)) for n in sorted(actors, reverse=True)]


# -- opening -----------------------------------------------------------------------------------------------------------
def open_speaker(speaker: Speaker) -> Opened:
    """Opens an agent in this process.

    Raises:
        NLRLError: there is no such agent any more, or its model cannot be opened.
    """
    if speaker.scripted:
        return open_voices(ModelConfig(kind="scripted", name=speaker.source.agent))
    described = describe(speaker.source)
    _require_harmless(described.config)
    return open_voices(described.config, described.weights, critic_weights(speaker.source))


def _require_harmless(config: ModelConfig) -> None:
    """A run's folder may come from anybody, and people open it here to look: its config must neither have a module of
    its choice imported nor a key of this environment sent to an address of its choice.

    Raises:
        NLRLError: it would.
    """
    if config.kind == "scripted" and not config.name.startswith("nlrl.testing."):
        raise NLRLError(
            f"model.name: the run's config has the module {config.name!r} imported, which the viewer does not do for a "
            "folder; ask it with `nlrl play` or `nlrl eval` if you trust it"
        )
    if config.kind == "openai" and os.environ.get(config.api_key_env) and os.environ.get(ENDPOINTS) != "1":
        raise NLRLError(
            f"model.base_url: the run's config has the key in {config.api_key_env} sent to {config.base_url}; start "
            f"the viewer with {ENDPOINTS}=1 in its environment if you trust every run that it shows"
        )


def critic_weights(source: Source) -> Path | None:
    """The critic of a run's iteration, or of its last one; None where none was trained."""
    from nlrl.orchestration.trainer import WEIGHTS_FILE

    run = Path(source.agent)
    if not (run / "iterations").is_dir():
        return None
    found = [
        stage
        for stage in RunFolder(run).stages()
        if stage.name == CRITIC and stage.is_committed() and source.iteration in (None, stage.iteration)
    ]
    path = found[-1].dir / WEIGHTS_FILE if found else None
    return path if path is not None and path.is_file() else None


def open_voices(config: ModelConfig, actor: Path | None = None, critic: Path | None = None) -> Opened:
    """A model with the weight files of its actor and its critic; where there is none, the base answers.

    Raises:
        NLRLError: the model cannot be opened, or a file cannot be read.
    """
    model: Any = open_model(config)
    sets = weight_sets_of(model)
    for name, path in ((ACTOR, actor), (CRITIC, critic)):
        if path is not None:
            sets.put(name, f"{name}@{int(path.parent.parent.name)}", read_weights(Described(config, path)))

    def voice(weights: str) -> Voice:
        return Voice(sets, weights, model.name, model.reads_expectations)

    return Opened(voice(ACTOR), voice(CRITIC), voice(BASE), config.prompt_style, config.max_tokens, config)


# -- asking ------------------------------------------------------------------------------------------------------------
def ask_in_role(
    opened: Opened,
    game: Game[Any],
    role: RoleName,
    state: Any,
    action: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
) -> Answer:
    """One answer about a position.

    Args:
        action: the move that Q is asked about.
        temperature: 0 is the greedy answer, for which evaluations are read as expectations where the model can.

    Raises:
        NLRLError: Q without a move, the game is over, or the model cannot answer.
    """
    if game.is_terminal(state):
        raise NLRLError("the game is over here: there is nothing to ask")
    if role == "Q" and action is None:
        raise NLRLError("Q is asked about a move: choose one")
    roles = Roles(game, opened.style)
    asked: tuple[Role[Any, Any], Any] = {
        "policy": (roles.policy, StateInput(state)),
        "V": (roles.v, StateInput(state)),
        "Q": (roles.q, ActionInput(state, action if action is not None else -1)),
    }[role]
    model = opened.actor if role == "policy" else opened.critic
    expected = role != "policy" and temperature == 0 and model.reads_expectations
    sampling = Sampling(temperature=temperature, max_tokens=opened.max_tokens, expected_number=expected)
    began = time.perf_counter()
    reply = ask(model, asked[0], [asked[1]], sampling, seed)[0]
    text, output = reply.completion.text, reply.output
    return Answer(
        reply=reply,
        text=text,
        move=game.action_text(state, output.action) if isinstance(output, Choice) else "",
        verdict=None if output is None or isinstance(output, Choice) else output.verdict,
        failures=tuple(failure.reason for failure in reply.failures),
        tokens=reply.generated_tokens,
        seconds=time.perf_counter() - began,
        weights=reply.completion.weight_version,
        prompt=asked[0].messages(asked[1]),
        claims=tuple(check_claims(text, game, state, action if role == "Q" else None)),
    )
