"""The rollout actor: plays whole games, many at once, and talks to the model in batches."""

from __future__ import annotations

import math
import os
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nlrl.agents.roles import Choice, Roles
from nlrl.backbones.language_model import Completion, LanguageModel, Sampling
from nlrl.envs import make_from_spec
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.random import Rng, derive_seed
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.checkpoints import checkpoint_maker, checkpoints_in, weights_name
from nlrl.orchestration.cluster import was_restarted
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.frozen import FrozenModel, Source, agent_maker
from nlrl.orchestration.game_accounts import GameAccounts
from nlrl.orchestration.lines import kept
from nlrl.orchestration.players import NONE, SELF, Play, PolicyPool, move_or_forfeit, play
from nlrl.orchestration.records import record_key
from nlrl.orchestration.router import WeightNotes
from nlrl.orchestration.timings import Collected, Line, of_play

MOST_DEPTHS = 1000
"""Longer look-aheads are played to the end."""


@dataclass(frozen=True, slots=True)
class GameTask:
    """One game to play: everything its course depends on."""

    key: str
    seat: int
    opponent: str
    seed: int


@dataclass(frozen=True, slots=True)
class ContinuationTask:
    """Games to play on from (state, action), by true reset; without an action, from the state."""

    state: Any
    ply: int
    action: int | None
    count: int
    seed: int
    opponents: tuple[str, ...] = ()
    """Among which one is drawn for each game; empty: the job's."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What followed (state, action): the moves, how the game ended for the player who moved first, or what comes
    next there."""

    actions: tuple[int, ...]
    result: str | None
    """One of `RESULTS`; None where a look-ahead stopped before the end."""
    state: Any = None
    """Stopped: where it stands."""
    next_action: int | None = None
    """Stopped: what the policy plays there, if that was asked for."""
    outcomes: tuple[int, ...] | None = None
    """What chance chose, in games where it has a say."""
    is_cut: bool = False
    """Over because it had no moves left."""


class PlayJob(NamedTuple):
    """Whole games for one worker."""

    version: str
    temperature: float
    tasks: Sequence[GameTask] = ()
    tokens: bool = False
    """Records keep each answer's tokens, with the log-probabilities they were sampled with."""
    explore: float = 0.0
    """As `rollout.explore`."""


class ContinueJob(NamedTuple):
    """Games to play on for one worker; with `steps`, only that far."""

    version: str
    temperature: float
    opponents: Sequence[str]
    tasks: Sequence[ContinuationTask]
    steps: int | None = None
    decay: float = 0.0
    """lambda: a look-ahead is n times `steps` long with probability (1 - lambda) lambda^(n-1)."""
    next_actions: bool = True
    """Ask for the move that the policy would make where a look-ahead stops."""
    horizon: str = "full"
    """As `targets.horizon`."""


class LookAheadJob(NamedTuple):
    """Look-aheads for one worker in which one fixed player makes every move."""

    policy: str
    """As opponents are named."""
    tasks: Sequence[ContinuationTask]
    steps: int


class TableJob(NamedTuple):
    """States whose sampled moves are wanted."""

    version: str
    temperature: float
    states: Sequence[Any]
    plies: Sequence[int]
    samples: int | None = None
    """None: as many as games draw among."""


class Done(NamedTuple):
    """What a worker gives back."""

    result: Any
    spent: list[Entry]
    times: list[Line]
    """How long its answers took."""
    restarted: str = ""
    """Where it runs, in the first answer of a worker that took the place of one that died."""


class RolloutWorker:
    """Plays games with one policy at a time; made inside its actor.

    Its answers depend on its arguments and its calls alone, so it may be made anew and asked again at any time.

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
        self._agents |= checkpoint_maker(self._checkpoint, config, run_seed)
        self._style = style
        self._opponents: dict[str, Opponent] = {}
        self._pools: dict[tuple[str, float], PolicyPool] = {}
        self._steps: list[Entry] = []
        self.timings = Collected()
        self._accounts = GameAccounts()
        self._restarted = f"process {os.getpid()} on {socket.gethostname()}" if was_restarted() else ""

    def metered(self, call: tuple[str, Any, WeightNotes]) -> Done:
        """The result of one of the methods below, by name, with what it cost and how long its answers took.

        Args:
            call: method, its job, and the weights that are in the servers now: a worker that was made anew has to be
                told again.
        """
        method, job, weights = call
        for name, noted in weights.items():
            self.note_weights(name, *noted)
        self._steps.clear()
        for pool in self._pools.values():
            pool.spent.clear()
        result = getattr(self, method)(job)
        spent = [entry for pool in self._pools.values() for entry in pool.spent.values()]
        restarted, self._restarted = self._restarted, ""
        return Done(result, self._steps + spent, self.timings.take(), restarted)

    def set_policy(self, version: str) -> None:
        """Forgets the answers of earlier policies; `version` names the new one."""
        self._pools = {key: pool for key, pool in self._pools.items() if key[0] == version}

    def note_weights(self, name: str, version: str, state: tuple[Any]) -> None:
        """Tells the worker's own copy of the router what was put into the servers; see `Router`."""
        self._model.router.note_weights(name, version, state)  # type: ignore[attr-defined]

    def forget_weights(self, name: str) -> None:
        """The same of what was dropped, with the answers of the opponents that played with it."""
        self._model.router.forget_weights(name)  # type: ignore[attr-defined]
        self._opponents = {known: one for known, one in self._opponents.items() if not checkpoints_in([known])}

    def play(self, job: PlayJob) -> list[dict[str, Any]]:
        """Plays games to their ends; one record each."""
        self.set_policy(job.version)
        plays = []
        for task in job.tasks:
            rng = Rng(task.seed)
            plays.append(Play(self.game.initial_state(rng), task.seat, task.opponent, rng, explore=job.explore))
        starts = [p.state for p in plays]
        play(self.game, plays, self._pool(job.version, job.temperature), self._opposition({p.opponent for p in plays}))
        self._steps += [Entry(derive_seed(task.key), len(p.actions)) for task, p in zip(job.tasks, plays, strict=True)]
        self.timings.note(of_play(task.key, p) for task, p in zip(job.tasks, plays, strict=True))
        records = [
            play_record(self.game, task.key, start, p, job.tokens) | {"weights": job.version}
            for task, start, p in zip(job.tasks, starts, plays, strict=True)
        ]
        self._accounts.note(records, plays)
        return records

    def continue_games(self, job: ContinueJob) -> list[list[Continuation]]:
        """Plays `count` games on from each (state, action), each against an opponent drawn from the job's.

        With `steps`, games stop after so many moves, on the policy's turn, with the move it would play there.
        """
        self.set_policy(job.version)
        groups = [[self._start(task, i, job) for i in range(task.count)] for task in job.tasks]
        flat, pool = [p for group in groups for p in group], self._pool(job.version, job.temperature)
        play(self.game, flat, pool, self._opposition({p.opponent for p in flat}), keep_replies=False)
        for task, group in zip(job.tasks, groups, strict=True):
            self._steps.append(Entry(task.seed, sum(len(p.actions) for p in group)))
        following: dict[int, Choice | None] = {}
        if job.next_actions and (stopped := [p for p in flat if not p.is_over(self.game)]):
            replies = pool.draw([p.state for p in stopped], [p.ply for p in stopped], [p.rng for p in stopped])
            following = {id(p): reply.output for p, reply in zip(stopped, replies, strict=True)}
        return [[self._continuation(p, job.next_actions, following.get(id(p))) for p in group] for group in groups]

    def look_ahead(self, job: LookAheadJob) -> list[list[Continuation]]:
        """Plays `count` games on from each state, at most `steps` moves, every move by the job's player."""
        groups = [[self._start(task, i, None) for i in range(task.count)] for task in job.tasks]
        flat, player = [p for group in groups for p in group], self.opponent(job.policy)
        while waiting := [p for p in flat if len(p.actions) < job.steps and not p.is_over(self.game)]:
            moves = player.choose([p.state for p in waiting], [p.rng for p in waiting])
            for p, move in zip(waiting, moves, strict=True):
                move_or_forfeit(self.game, p, move)
        for task, group in zip(job.tasks, groups, strict=True):
            self._steps.append(Entry(task.seed, sum(len(p.actions) for p in group)))
        return [[self._continuation(p, False, None) for p in group] for group in groups]

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
    def _checkpoint(self, iteration: int) -> FrozenModel:
        model = self._model.with_weights(weights_name(iteration))  # type: ignore[attr-defined]
        return FrozenModel(model, self._style, self._max_tokens)

    def _start(self, task: ContinuationTask, index: int, job: ContinueJob | None) -> Play:
        rng = Rng(derive_seed(task.seed, index))
        seat = self.game.current_player(task.state)
        opponent = rng.choice(task.opponents or job.opponents) if job else ""
        p = Play(task.state, seat, opponent, rng, ply=task.ply)
        if job and job.steps is not None:
            p.longest = job.steps * depth(job.decay, task.seed, index)
        if job and job.horizon == "uniform":
            p.horizon = horizon(self.game.max_length, task.seed, index)
        if task.action is not None:
            move_or_forfeit(self.game, p, task.action)
        return p

    def _continuation(self, p: Play, wants_action: bool, following: Choice | None) -> Continuation:
        outcomes = kept(p.outcomes)
        if p.is_over(self.game):
            return Continuation(tuple(p.actions), p.result(self.game), outcomes=outcomes, is_cut=p.is_cut(self.game))
        if not wants_action:
            return Continuation(tuple(p.actions), None, p.state, outcomes=outcomes)
        if following is None:
            return Continuation(tuple(p.actions), "forfeit", outcomes=outcomes)
        return Continuation(tuple(p.actions), None, p.state, following.action, outcomes)

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
        return {name: self.opponent(name) for name in names - {SELF, NONE}}


def play_record(game: Game[Any], key: str, start: Any, p: Play, tokens: bool = False) -> dict[str, Any]:
    """The record of a game that is over. tokens: keep those of the policy's answers."""
    turns = [
        {
            "ply": ply,
            "reply": reply.completion.text,
            "tokens": len(reply.completion.tokens),
            "failures": [failure.reason for failure in reply.failures],
        }
        | (sampled(reply.completion) if tokens else {})
        for ply, reply in sorted(p.replies.items())
    ]
    alone = {"return": p.total(game)} if game.num_players == 1 else {}
    outcomes = kept(p.outcomes)
    return {
        "schema": 1,
        "kind": "game",
        "key": key,
        "game": game.spec,
        "start": game.to_text(start),
        "seat": p.seat,
        "opponent": p.opponent,
        "actions": p.actions,
        "result": p.result(game),
        "turns": turns,
        **alone,
        **({} if outcomes is None else {"outcomes": outcomes}),
        **({"explored": p.explored} if p.explored else {}),
    }


def sampled(completion: Completion) -> dict[str, Any]:
    """What a record keeps of an answer, so that it can be trained on as it was sampled."""
    return {"sampled": list(completion.tokens), "logprobs": [round(value, 6) for value in completion.logprobs]}


def depth(decay: float, seed: int, index: int) -> int:
    """The n of a look-ahead, n = 1, 2, ... with probability (1 - decay) decay^(n-1): the mean over such samples is the
    lambda-return, which mixes n-step returns with these weights (Sutton 1988)."""
    if decay <= 0:
        return 1
    rng, n = Rng("depth", seed, index), 1
    while n < MOST_DEPTHS and rng.random() < decay:
        n += 1
    return n


def horizon(longest: int, seed: int, index: int) -> int:
    """How many moves the `index`-th game of a task has: 1 to `longest`, each as often as another.

    Steps of the golden ratio from a random place, so that few games are spread over all numbers, too (a Kronecker
    sequence): their mean is nearer to the mean over all numbers than that of independent draws.
    """
    at = Rng("horizon", seed).random() + index * (math.sqrt(5) - 1) / 2
    return 1 + int(longest * (at % 1))


def game_tasks(
    run: str,
    seed: int,
    iteration: int,
    purpose: str,
    games: int,
    opponents: Sequence[str],
    paired: bool = False,
    seats: int = 2,
) -> list[GameTask]:
    """The games of a stage. Seats alternate; opponents are drawn (or, paired, both seats of a pair meet the same
    one on one seed).

    The key of a game is a hash of everything that decides it, so a game played twice is one record.
    """
    tasks = []
    for index in range(games):
        unit = index // seats if paired else index
        rng = Rng("game", run, seed, iteration, purpose, unit)
        opponent, game_seed, seat = rng.choice(opponents), rng.bits(), index % seats
        key = record_key("game", run, seed, iteration, purpose, index, seat, opponent)
        tasks.append(GameTask(key, seat, opponent, game_seed))
    return tasks
