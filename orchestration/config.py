"""The one config of a run: a frozen tree of typed fields, read from TOML, overridden on the command line, written
beside the results.

The docstring under a field is its help text. Unknown keys and impossible values are refused before anything starts.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from nlrl.errors import NLRLError
from nlrl.keys import SECRET
from nlrl.orchestration.baseline_config import DPOConfig, GRPOConfig, PPOConfig, RejectionConfig, TabularConfig
from nlrl.orchestration.cluster_config import ClusterConfig
from nlrl.orchestration.league_config import RunLeagueConfig
from nlrl.orchestration.method_config import GPIConfig, NLACConfig, ValueTDConfig
from nlrl.orchestration.model_config import ModelConfig
from nlrl.orchestration.replay import ReplayConfig
from nlrl.orchestration.section import Section
from nlrl.orchestration.store_config import StoreConfig
from nlrl.orchestration.toml_text import toml_text
from nlrl.orchestration.watch_config import WatchConfig

Model = TypeVar("Model", bound=BaseModel)


class GameConfig(Section):
    """The game that is played."""

    name: str = "tictactoe"
    """A registered game (`nlrl.envs.names()`)."""
    params: dict[str, Any] = Field(default_factory=dict)
    """The game's own parameters."""


class RolloutConfig(Section):
    """Games played to see what the policy does."""

    games: int = Field(default=512, gt=0)
    """Games an iteration; half of them in each seat."""
    opponents: tuple[str, ...] = ("random",)
    """One is drawn for each game and each continuation: random, first-move, minimax, minimax(depth),
    mcts(simulations,rollouts), epsilon(p,name), mixture(weight,name,...), self, or a frozen agent: agent(runs/first),
    agent(runs/first,iteration=3), agent(transformer-base,temperature=1). The run's own past: checkpoint(last),
    checkpoint(best), checkpoint(random) (one drawn for each game), checkpoint(3), each with temperature= if it is not
    to be greedy; in the first iteration the untrained base."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the policy in games."""
    explore: float = Field(default=0.0, ge=0, lt=1)
    """Share of the policy's turns on which a uniformly random legal move is played and none asked for: states behind
    moves that the policy has given up are met, and so evaluated and improved, too."""
    samples_per_state: int = Field(default=8, gt=0)
    """Answers sampled for a state; games that meet the state draw among them, so an identical prompt is answered
    once."""
    samples_at_start: int = Field(default=64, gt=0)
    """The same for the first moves, which every game meets; falls by four with each move down to samples_per_state."""
    retries: int = Field(default=1, ge=0)
    """How often an unreadable or illegal answer is asked again before the game is forfeited."""
    workers: int = Field(default=2, gt=0)
    """Actors that play games."""


class TargetConfig(Section):
    """Texts the critic is trained on."""

    kind: Literal["mc", "td", "lambda"] = "mc"
    """mc: G1 over retold games played on from (s, a). td: look-ahead, the critic on where it leads, G2, then G1.
    lambda: the same with look-aheads of different lengths, n times as long with probability (1 - trace) trace^(n-1)."""
    value: Literal["q", "v", "both"] = "q"
    """What the critic learns: texts about moves (q), about positions (v), or both. With v or both, look-aheads end in a
    text about the position they lead to, with q in one about the policy's next move there. With v, candidates are
    evaluated by look-aheads, too."""
    trace: float = Field(default=0.7, ge=0, lt=1)
    """lambda: 0 is td."""
    opponent_aware: bool = False
    """Name the opponent to the critic, so that it learns a value against each. Candidates are then evaluated against
    all that games were played against, and the text nearest to the weighted mean speaks for them."""
    continuations: int = Field(default=8, ge=1, le=9)
    """K: samples that one G1 prompt merges."""
    horizon: Literal["full", "uniform"] = "full"
    """mc: how many moves a game has that is played on. full: the longest game's. uniform: between 1 and those, each as
    likely, and then it is cut; what arrives sooner arrives more often, so detours cost something where the rules take
    nothing for a move."""
    lookahead: int = Field(default=2, ge=1)
    """td, lambda and v: moves played before the critic evaluates, whoever makes them."""
    actions: Literal["legal", "visited"] = "legal"
    """Which actions of a visited state get targets: every legal one (by true reset), or those that were played."""
    states: int = Field(default=0, ge=0)
    """At most so many of the visited states get targets, a seeded sample; 0 for all."""
    texts_min: int = Field(default=2, ge=1)
    """Fewest G1 texts for each (s, a)."""
    texts_max: int = Field(default=8, ge=1)
    """Most G1 texts for each (s, a)."""
    texts_per_visit: float = Field(default=0.75, ge=0)
    """Texts for (s, a) = texts_per_visit * sqrt(visits of s), between the bounds: evidence goes where games go."""

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.texts_min > self.texts_max:
            raise ValueError(f"texts_min ({self.texts_min}) must not exceed texts_max ({self.texts_max})")
        if self.horizon != "full" and (self.kind != "mc" or self.value != "q"):
            raise ValueError(f"horizon {self.horizon} needs games played to their ends: kind = 'mc' and value = 'q'")
        return self


class TrainConfig(Section):
    """Supervised fine-tuning of one network (critic or actor)."""

    learning_rate: float = Field(default=7e-4, gt=0)
    """Constant; AdamW."""
    batch_size: int = Field(default=256, gt=0)
    """Texts a step."""
    epochs: int = Field(default=1, gt=0)
    """Passes over the buffer each iteration."""
    first_epochs: int = Field(default=2, gt=0)
    """The same in the first iteration, when the network still knows nothing."""
    buffer_iterations: int = Field(default=4, gt=0)
    """Sets of this many last iterations are trained on, once the policy has settled."""
    short_buffer_until: int = Field(default=2, ge=0)
    """Up to this iteration only the newest set is used, and sets from before it are never used again: while the
    policy changes fast, older sets are about another policy."""
    replay_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of corpus examples (reading, counting, choosing; never playing) mixed in, so that the language does not
    drift."""
    visit_weight: float = Field(default=0.0, ge=0)
    """An example weighs visits ** visit_weight (at most 4)."""
    replay: ReplayConfig = ReplayConfig()
    """Which sets are trained on."""
    keep_optimizer: bool = False
    """Go on with the optimizer's moments in the next iteration instead of a fresh optimizer (native models). They are
    committed beside the weights: two numbers for each weight."""
    save_every: int = Field(default=0, ge=0)
    """Steps after which a round of training is saved beside its stage, so that a run that was killed goes on from there
    (native models); 0: it trains the round again."""


class ImprovementConfig(Section):
    """The improvement operator I."""

    states: int = Field(default=0, ge=0)
    """At most so many of the visited states are improved, a seeded sample; 0 for all."""
    candidates: Literal["legal", "sampled"] = "legal"
    """legal: every legal move. sampled: the action-selection mask, the most frequent of the policy's own samples."""
    mask_samples: int = Field(default=10, gt=0)
    """sampled: answers drawn from the policy."""
    mask_keep: int = Field(default=10, gt=0)
    """sampled: the most frequent ones that stay candidates."""
    offered: int = Field(default=9, gt=1)
    """I sees at most so many candidates, those that the critic evaluates best: bundled models have not seen more."""
    verdict: Literal["expectation", "greedy", "mean"] = "expectation"
    """How the critic is read: the expectation under its own distribution (with a text that agrees with it), its
    greedy text, or the text nearest to the mean of several samples."""
    mean_samples: int = Field(default=8, gt=1)
    """mean: samples drawn."""


class EvaluationConfig(Section):
    """What is measured after every iteration."""

    games: int = Field(default=400, ge=0)
    """Sampled games against each opponent, in seat-swapped pairs on shared seeds; greedy, and again at the
    rollout's temperature."""
    opponents: tuple[str, ...] = ("random", "first-move", "minimax")
    """As in rollout.opponents, without self. Exact outcomes are computed, too, against each whose moves have known
    probabilities: not against mcts, nor agents with a temperature."""
    exact_states: int = Field(default=20_000, ge=0)
    """A game with at most so many positions is small: every position that the actor can meet is asked about, and
    results and values are exact. A larger game is measured by games and, where it has a solver, by that."""
    value_states: int = Field(default=400, ge=0)
    """Positions whose critic texts are compared with exact values; 0 for all that were visited."""
    probes: tuple[str, ...] = ()
    """Moves that lead to the positions of the diary, e.g. "1 5" or "move down, move left"; empty for the game's own
    list."""


class BudgetConfig(Section):
    """What a run may spend before it stops; the method's own limit comes first where it is lower (`iterations`)."""

    environment_steps: int | None = Field(default=None, gt=0)
    """Start no further iteration once so many moves were made in games, by whomever; measuring does not count."""
    tokens: int | None = Field(default=None, gt=0)
    """The same for tokens: read in prompts, generated, and trained on."""


Control = Literal["none", "shuffled_g1", "shuffled_evaluations"]


MethodName = Literal[
    "actor_critic",
    "gpi",
    "value_td",
    "nlac",
    "prompted",
    "rejection_sampling",
    "grpo",
    "ppo",
    "dpo",
    "scalar_q",
    "teacher_only",
    "tabular",
]


OWN_GAMES = ("rejection_sampling", "grpo", "ppo", "dpo", "tabular")
"""Methods for which the games of the rollout are the evidence; the others play on from their positions."""


class RunConfig(Section):
    """A run: a game, a model, and a method that makes an agent of it."""

    name: str = "run"
    """Names the run in tables; part of every random key."""
    method: MethodName = "actor_critic"
    """What an iteration does; docs/how_it_works.md has a table of the methods."""
    out: str = "runs/run"
    """The run's folder, or a URL in a store such as s3://bucket/runs/run (docs/storage.md). Running the same config on
    the same folder resumes it."""
    seed: int = Field(default=0, ge=0)
    """Every random number of the run derives from it."""
    iterations: int = Field(default=6, gt=0)
    """Language policy iterations."""
    staleness: int = Field(default=0, ge=0, le=2)
    """0: iterations one after the other. 1, 2: games and targets of so many further iterations are made while networks
    learn, with weights that are so many iterations older; see docs/asynchrony.md."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Start no further iteration that would, at the pace so far, end later than this."""
    control: Control = "none"
    """A broken pipeline, to show what carries the result: G1 labels shuffled among (s, a), or evaluations shuffled
    among candidates."""
    game: GameConfig = GameConfig()
    model: ModelConfig = ModelConfig()
    """The student: the base that becomes actor and critic. An endpoint, or vLLM without tuning, only plays."""
    teacher: ModelConfig | None = None
    """Who answers G1, G2 and I; the untrained student if not given."""
    rollout: RolloutConfig = RolloutConfig()
    targets: TargetConfig = TargetConfig()
    critic: TrainConfig = TrainConfig()
    actor: TrainConfig = TrainConfig(learning_rate=5e-4, batch_size=128, epochs=3, first_epochs=6, buffer_iterations=3)
    improvement: ImprovementConfig = ImprovementConfig()
    gpi: GPIConfig = GPIConfig()
    value_td: ValueTDConfig = ValueTDConfig()
    nlac: NLACConfig = NLACConfig()
    rejection_sampling: RejectionConfig = RejectionConfig()
    grpo: GRPOConfig = GRPOConfig()
    ppo: PPOConfig = PPOConfig()
    dpo: DPOConfig = DPOConfig()
    tabular: TabularConfig = TabularConfig()
    budget: BudgetConfig = BudgetConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    league: RunLeagueConfig = RunLeagueConfig()
    cluster: ClusterConfig = ClusterConfig()
    watch: WatchConfig = WatchConfig()
    store: StoreConfig = StoreConfig()
    """Of a run whose `out` is a URL."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    """Where metrics go besides the run folder."""

    @model_validator(mode="after")
    def _exploration(self) -> Self:
        if self.rollout.explore and self.method in OWN_GAMES:
            raise ValueError(f"rollout.explore must be 0: {self.method} learns from how its own games ended")
        return self

    @field_validator("out", mode="before")
    @classmethod
    def _place(cls, out: Any) -> Any:
        return str(out) if isinstance(out, Path) else out

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not name or "/" in name:
            raise ValueError("name must be a plain word without '/'")
        return name


VOLATILE = (
    "out", "cluster", "trackers", "iterations", "max_minutes", "budget", "model.device", "model.gpus",
    "model.max_transfer_kl", "model.tuning.storage", "model.tuning.gpus_per_worker", "rollout.workers", "watch",
    "critic.save_every", "actor.save_every", "store",
)  # fmt: skip
"""Fields that do not change what a run computes: a folder may be resumed with other values of these."""


def load_config(path: Path) -> RunConfig:
    """Reads a run's config.

    Raises:
        NLRLError: the file is missing or not TOML, or a field is unknown or impossible (all of them are named).
    """
    return validated(RunConfig, read_toml(path), str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        NLRLError: no such file, or not TOML, with the line.
    """
    if not path.exists():
        raise NLRLError(f"config file {path} does not exist")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NLRLError(f"config file {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # also no UTF-8, a number of thousands of digits, tables too deep
        raise NLRLError(f"{path} is not valid TOML: {error}") from None


def validated(model: type[Model], values: dict[str, Any], source: str) -> Model:
    """Builds a config, turning every complaint into one line that names the field and what would be right."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise NLRLError(f"{source}: {complaints(model, error)}") from None


def complaints(model: type[BaseModel], error: ValidationError, within: str = "") -> str:
    """What is wrong, field by field, in one line; `within` is where the model stands in the whole config."""
    return "; ".join(_complaint(model, each, within) for each in error.errors())


def _complaint(model: type[BaseModel], error: Any, within: str) -> str:
    field = ".".join(str(part) for part in (within, *error["loc"]) if part != "")
    if error["type"] == "extra_forbidden":
        return f"unknown key '{field}'; known here: {', '.join(sorted(_fields_at(model, error['loc'][:-1])))}"
    given = "" if isinstance(error["input"], dict) or error["type"] == SECRET else f" (got {error['input']!r})"
    return f"{field or 'config'}: {error['msg']}{given}"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    current: Any = model
    for part in path:
        annotation = current.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        current = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), current)
    return list(current.model_fields)


def to_toml(config: BaseModel) -> str:
    """The resolved config as TOML text that reads back equal."""
    return toml_text(config.model_dump(mode="json", exclude_none=True))
