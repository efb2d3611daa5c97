"""No language at all: a table of action values, learned from games like those that the language agents play.

Games (which also learn), evaluation. Values are of the agent's decisions, from the view of the player to move; its
opponent is part of the environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nlrl.agents.asking import Reply
from nlrl.agents.roles import Choice
from nlrl.envs.game import Game
from nlrl.envs.random import Rng, derive_seed
from nlrl.orchestration.atomic import write_atomic
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.config import TabularConfig
from nlrl.orchestration.exact import FORFEIT_RETURN, Turn
from nlrl.orchestration.lines import kept, replay
from nlrl.orchestration.methods import Method
from nlrl.orchestration.players import NONE, SELF, Play, play
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages.rollout import chunks
from nlrl.orchestration.stages.strength import run_chosen_strength, silent
from nlrl.orchestration.worker import GameTask, game_tasks

NAME = "games"
TABLE_FILE = "table.json"
GAMES_AT_ONCE = 64
"""Games played on one table before it learns from them."""


class QTable:
    """Action values of visited (state, action), and how often each was."""

    def __init__(self, game: Game[Any]):
        self.game = game
        self.values: dict[tuple[Any, int], float] = {}
        self.visits: dict[tuple[Any, int], int] = {}

    def value(self, state: Any, action: int) -> float:
        """0 where nothing is known."""
        return self.values.get((state, action), 0.0)

    def best(self, state: Any) -> float:
        """The value of the best action."""
        return max(self.value(state, action) for action in self.game.legal_actions(state))

    def greedy(self, state: Any, rng: Rng) -> int:
        """The best action; one of them where several are."""
        legal = self.game.legal_actions(state)
        top = max(self.value(state, action) for action in legal)
        return rng.choice([action for action in legal if self.value(state, action) == top])

    def learn(self, state: Any, action: int, target: float, step_size: float) -> None:
        """Moves a value towards a target by `step_size`; by 1 / visits where that is 0."""
        pair = (state, action)
        self.visits[pair] = self.visits.get(pair, 0) + 1
        self.values[pair] = self.value(state, action) + (step_size or 1 / self.visits[pair]) * (
            target - self.value(state, action)
        )

    def rows(self) -> list[list[Any]]:
        """What JSON can hold, in a fixed order."""
        text = self.game.to_text
        return sorted(
            [text(state), action, value, self.visits[state, action]] for (state, action), value in self.values.items()
        )

    def read(self, rows: Sequence[Sequence[Any]]) -> None:
        """The inverse of `rows`."""
        for text, action, value, visits in rows:
            pair = (self.game.parse_text(text), action)
            self.values[pair], self.visits[pair] = value, visits


class EpsilonGreedy:
    """A table at play: what `players.play` asks of a `PolicyPool`."""

    def __init__(self, table: QTable, epsilon: float):
        self.table, self.epsilon = table, epsilon

    def draw(self, states: Sequence[Any], plies: Sequence[int], rngs: Sequence[Rng]) -> list[Reply[Choice]]:
        """One move for each waiting game."""
        return [silent(self._move(state, rng)) for state, rng in zip(states, rngs, strict=True)]

    def _move(self, state: Any, rng: Rng) -> int:
        if rng.random() < self.epsilon:
            return rng.choice(self.table.game.legal_actions(state))
        return self.table.greedy(state, rng)


def run_games(session: Session, iteration: int) -> None:
    """Plays the iteration's games, learns from them, and commits the table."""
    stage = session.folder.stage(iteration, NAME)
    if stage.is_committed():
        return
    config, settings = session.config, session.config.tabular
    table = read_table(session, iteration - 1)
    pool = EpsilonGreedy(table, settings.epsilon * settings.epsilon_decay ** (iteration - 1))
    games, opposition, seats = config.rollout.games, config.rollout.opponents, session.game.num_players
    tasks = game_tasks(config.name, config.seed, iteration, NAME, games, opposition, seats=seats)
    steps, total = 0, 0.0
    for group in chunks(tasks, GAMES_AT_ONCE):
        for start, p in played(session, pool, group):
            total += learn_from(session.game, table, settings, start, p)
            steps += len(p.actions)
    session.meter.note([Entry(derive_seed(NAME, iteration), environment_steps=steps)])
    with stage.file(TABLE_FILE) as path:
        write_atomic(path, json.dumps(table.rows()).encode())
    figures = {"games": len(tasks), "pairs": len(table.values), "epsilon": pool.epsilon, "return": total / len(tasks)}
    stage.commit(figures, [TABLE_FILE])


def played(session: Session, pool: EpsilonGreedy, tasks: Sequence[GameTask]) -> list[tuple[Any, Play]]:
    """Each task's game, from its start to its end."""
    names = session.config.rollout.opponents
    opponents = {name: session.opponent(name) for name in names if name not in (SELF, NONE)}
    rngs = [Rng(task.seed) for task in tasks]
    starts = [session.game.initial_state(rng) for rng in rngs]
    plays = [Play(s, task.seat, task.opponent, rng) for s, task, rng in zip(starts, tasks, rngs, strict=True)]
    play(session.game, plays, pool, opponents)  # type: ignore[arg-type]
    return list(zip(starts, plays, strict=True))


def learn_from(game: Game[Any], table: QTable, settings: TabularConfig, start: Any, p: Play) -> float:
    """Updates the table with one game, last decision first; returns what the agent earned."""
    decided, total = decisions_of(game, start, p), 0.0
    for at in reversed(range(len(decided))):
        state, action, reward = decided[at]
        total += reward
        best = table.best(decided[at + 1][0]) if at + 1 < len(decided) else 0.0
        table.learn(state, action, total if settings.kind == "monte_carlo" else reward + best, settings.step_size)
    return total


def decisions_of(game: Game[Any], start: Any, p: Play) -> list[tuple[Any, int, float]]:
    """(state, action, what was earned up to the next decision) of the agent in a finished game: where the opponent's
    move ends it, the agent's last decision has earned the result."""
    line, found = replay(game, start, p.actions, kept(p.outcomes)), list[tuple[Any, int, float]]()
    for state, action, outcome in zip(line.states[:-1], line.actions, p.outcomes, strict=True):
        reward = game.transitions(state, action)[outcome or 0].rewards[p.seat]
        if game.current_player(state) == p.seat:
            found.append((state, action, reward))
        elif found:
            found[-1] = (*found[-1][:2], found[-1][2] + reward)
    if found:
        found[-1] = (*found[-1][:2], found[-1][2] + _last_reward(game, p))
    return found


def _last_reward(game: Game[Any], p: Play) -> float:
    """What ends a game that its rules do not end: an opponent's forfeit, or the longest length."""
    if p.forfeited_by is not None:
        return -FORFEIT_RETURN
    return p.total(game) - p.paid


def read_table(session: Session, iteration: int) -> QTable:
    """The table as an iteration left it; an empty one before the first."""
    table = QTable(session.game)
    if iteration > 0:
        table.read(json.loads((session.folder.stage(iteration, NAME).dir / TABLE_FILE).read_bytes()))
    return table


def run_evaluation(session: Session, iteration: int) -> dict[str, Any]:
    """Exact results of the greedy table; where it knows nothing better, one fixed move drawn at random."""
    table = read_table(session, iteration)

    def choose(turns: list[Turn]) -> list[Reply[Choice]]:
        rngs = [Rng(session.seed("ties", session.game.to_text(turn.state))) for turn in turns]
        return [silent(table.greedy(turn.state, rng)) for turn, rng in zip(turns, rngs, strict=True)]

    return run_chosen_strength(session, iteration, choose)


METHOD = Method(
    stages=((NAME, run_games), ("evaluation", run_evaluation)),
    first=(("evaluation", run_evaluation),),
    exports=None,
)
