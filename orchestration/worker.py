"""The rollout actor: plays whole games, many at once, and talks to the model in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nlrl.agents.roles import Choice, Roles
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs import make_from_spec
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.random import Rng, derive_seed
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.frozen import FrozenModel, Source, agent_maker
from nlrl.orchestration.players import SELF, Play, PolicyPool, play
from nlrl.orchestration.records import record_key


@dataclass(frozen=True, slots=True)
class GameTask:
    """One game to play: everything its course depends on."""

    key: str
    seat: int
    opponent: str
    seed: int


@dataclass(frozen=True, slots=True)
class ContinuationTask:
    """Games to play on from (state, action), by true reset."""

    state: Any
    ply: int
    action: int
    count: int
    seed: int


@dataclass(frozen=True, slots=True)
class Continuation:
    """What followed (state, action): the moves, how the game ended for the player who moved first, or what comes
    next there."""

    actions: tuple[int, ...]
    result: str | None
    """win, draw, loss or forfeit; None where the game was cut off after a look-ahead."""
    state: Any = None
    """Cut off: where it stands."""
    next_action: int | None = None
    """Cut off: what the policy plays there."""


class PlayJob(NamedTuple):
    """Whole games for one worker."""

    version: str
    temperature: float
    tasks: Sequence[GameTask]


class ContinueJob(NamedTuple):
    """Games to play on for one worker; with `steps`, only that far."""

    version: str
    temperature: float
    opponents: Sequence[str]
    tasks: Sequence[ContinuationTask]
    steps: int | None = None


class TableJob(NamedTuple):
    """States whose sampled moves are wanted."""

    version: str
    temperature: float
    states: Sequence[Any]
    plies: Sequence[int]
    samples: int | None = None
    """None: as many as games draw among."""


class RolloutWorker:
    """Plays games with one policy at a time; made inside its actor.

    Args:
        model: answers the policy's prompts (a proxy of the inference actor, or any model).
        run_seed: the run's seed; with the policy's version it decides every answer the policy gives.
        frozen: the models of the frozen agents among the opponents.
    """

    def __init__(
        self,
        spec: str,
        model: LanguageModel,
        style: str,
        max_tokens: int,
        config: RolloutConfig,
        run_seed: int,
        frozen: Mapping[Source, FrozenModel] | None = None,
    ):
        self.game = make_from_spec(spec)
        self._model, self._config, self._seed = model, config, run_seed
        self._role = Roles(self.game, style).policy
        self._max_tokens = max_tokens
        self._agents = agent_maker(dict(frozen or {}).__getitem__, config, run_seed)
        self._opponents: dict[str, Opponent] = {}
        self._pools: dict[tuple[str, float], PolicyPool] = {}

    def set_policy(self, version: str) -> None:
        """Forgets the answers of earlier policies; `version` names the new one."""
        self._pools = {key: pool for key, pool in self._pools.items() if key[0] == version}

    def note_weights(self, name: str, version: str, state: tuple[Any]) -> None:
        """Tells the worker's own copy of the router what was put into the servers; see `Router`."""
        self._model.router.note_weights(name, version, state)  # type: ignore[attr-defined]

    def play(self, job: PlayJob) -> list[dict[str, Any]]:
        """Plays games to their ends; one record each."""
        self.set_policy(job.version)
        plays = []
        for task in job.tasks:
            rng = Rng(task.seed)
            plays.append(Play(self.game.initial_state(rng), task.seat, task.opponent, rng))
        starts = [p.state for p in plays]
        play(self.game, plays, self._pool(job.version, job.temperature), self._opposition({p.opponent for p in plays}))
        return [self._record(task, start, p) for task, start, p in zip(job.tasks, starts, plays, strict=True)]

    def continue_games(self, job: ContinueJob) -> list[list[Continuation]]:
        """Plays `count` games on from each (state, action), each against an opponent drawn from the job's.

        With `steps`, games stop after so many moves, on the policy's turn, with the move it would play there.
        """
        self.set_policy(job.version)
        groups = [[self._start(task, i, job.opponents) for i in range(task.count)] for task in job.tasks]
        flat, pool = [p for group in groups for p in group], self._pool(job.version, job.temperature)
        play(self.game, flat, pool, self._opposition(set(job.opponents)), keep_replies=False, longest=job.steps)
        cut = [p for p in flat if p.forfeited_by is None and not self.game.is_terminal(p.state)]
        replies = pool.draw([p.state for p in cut], [p.ply for p in cut], [p.rng for p in cut])
        following = {id(p): reply.output for p, reply in zip(cut, replies, strict=True)}
        return [[self._continuation(p, following.get(id(p))) for p in group] for group in groups]

    def policy_table(self, job: TableJob) -> list[Counter[int | None]]:
        """The policy's sampled moves in each state, counted; None counts forfeits."""
        self.set_policy(job.version)
        return self._pool(job.version, job.temperature).table(job.states, job.plies, job.samples)

    def opponent(self, name: str) -> Opponent:
        """The opponent of that name, made once."""
        if name not in self._opponents:
            self._opponents[name] = make_opponent(name, self.game, self._agents)
        return self._opponents[name]

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _start(self, task: ContinuationTask, index: int, opponents: Sequence[str]) -> Play:
        rng = Rng(derive_seed(task.seed, index))
        seat = self.game.current_player(task.state)
        p = Play(task.state, seat, rng.choice(opponents), rng, ply=task.ply)
        p.actions.append(task.action)
        p.ply += 1
        p.state = self.game.apply(task.state, task.action, rng).state
        return p

    def _continuation(self, p: Play, following: Choice | None) -> Continuation:
        if p.forfeited_by is not None or self.game.is_terminal(p.state):
            return Continuation(tuple(p.actions), p.result(self.game))
        if following is None:
            return Continuation(tuple(p.actions), "forfeit")
        return Continuation(tuple(p.actions), None, p.state, following.action)

    def _pool(self, version: str, temperature: float) -> PolicyPool:
        key = (version, temperature)
        if key not in self._pools:
            config = self._config
            self._pools[key] = PolicyPool(
                self._model,
                self._role,
                Sampling(temperature=temperature, max_tokens=self._max_tokens),
                derive_seed(self._seed, "policy", version),
                config.samples_per_state,
                config.samples_at_start,
                config.retries,
            )
        return self._pools[key]

    def _opposition(self, names: set[str]) -> dict[str, Opponent]:
        return {name: self.opponent(name) for name in names - {SELF}}

    def _record(self, task: GameTask, start: Any, p: Play) -> dict[str, Any]:
        turns = [
            {
                "ply": ply,
                "reply": reply.completion.text,
                "tokens": len(reply.completion.tokens),
                "failures": [failure.reason for failure in reply.failures],
            }
            for ply, reply in sorted(p.replies.items())
        ]
        return {
            "schema": 1,
            "kind": "game",
            "key": task.key,
            "game": self.game.spec,
            "start": self.game.to_text(start),
            "seat": task.seat,
            "opponent": task.opponent,
            "actions": p.actions,
            "result": p.result(self.game),
            "turns": turns,
        }


def game_tasks(
    run: str, seed: int, iteration: int, purpose: str, games: int, opponents: Sequence[str], paired: bool = False
) -> list[GameTask]:
    """The games of a stage. Seats alternate; opponents are drawn (or, paired, both seats of a pair meet the same
    one on one seed).

    The key of a game is a hash of everything that decides it, so a game played twice is one record.
    """
    tasks = []
    for index in range(games):
        unit = index // 2 if paired else index
        rng = Rng("game", run, seed, iteration, purpose, unit)
        opponent, game_seed, seat = rng.choice(opponents), rng.bits(), index % 2
        key = record_key("game", run, seed, iteration, purpose, index, seat, opponent)
        tasks.append(GameTask(key, seat, opponent, game_seed))
    return tasks
