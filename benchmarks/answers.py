"""How many answers an iteration of the actor-critic asks for, before any model is there: the same games, played by
chance.

Rollouts and continuations are played by uniformly random moves, with the run's own rules for drawing among a state's
samples, so that a prompt which is asked again counts once. A policy that plays better meets fewer states; one that
forfeits meets fewer still. Retries are not counted.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

from nlrl.envs import make
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.orchestration.config import RunConfig


@dataclass(frozen=True)
class Answers:
    """Answers by role, and the texts that critic and actor learn from, of one iteration."""

    policy: int
    g1: int
    critic: int
    improvement: int
    evaluation: int
    critic_texts: int
    actor_texts: int


class _Drawn:
    """The policy's answers that were asked for: (state, number)."""

    def __init__(self, config: RunConfig):
        self._config, self.keys = config.rollout, set[tuple[Any, int]]()

    def draw(self, state: Any, ply: int, rng: Rng) -> None:
        size = max(self._config.samples_per_state, self._config.samples_at_start >> (2 * ply))
        self.keys.add((state, rng.below(size)))


def plan(config: RunConfig) -> Answers:
    """The first iteration's numbers; later ones differ by what the policy has learned."""
    game, drawn = make(config.game.name, **config.game.params), _Drawn(config)
    visited: dict[Any, tuple[int, Counter[int]]] = {}
    for index in range(config.rollout.games):
        rng, seat = Rng("answers", index), index % game.num_players
        for state, ply, action in _own_turns(game, game.initial_state(rng), seat, 0, rng):
            drawn.draw(state, ply, rng)
            visited.setdefault(state, (ply, Counter()))[1][action] += 1
    texts = 0
    for number, (state, (ply, moves)) in enumerate(visited.items()):
        actions = game.legal_actions(state) if config.targets.actions == "legal" else sorted(moves)
        for action in actions:
            wanted = _texts(config, game, state, action, moves.total())
            texts += wanted
            for sample in range(wanted * config.targets.continuations):
                _continue(game, state, action, ply, drawn, Rng("more", number, action, sample))
    return _answers(config, game, visited, drawn, texts)


def _answers(config: RunConfig, game: Game[Any], visited: dict[Any, Any], drawn: _Drawn, texts: int) -> Answers:
    improvement, evaluation = config.improvement, config.evaluation
    sampled = improvement.candidates == "sampled"
    most = improvement.mask_keep if sampled else math.inf
    candidates = sum(min(most, len(game.legal_actions(state))) for state in visited)
    each = improvement.mean_samples if improvement.verdict in ("mean", "expectation") else 1
    masks = len(visited) * improvement.mask_samples if sampled else 0
    games = 2 * evaluation.games * len(evaluation.opponents)
    turns = sum(moves.total() for _, moves in visited.values())
    return Answers(
        policy=len(drawn.keys) + masks,
        g1=texts,
        critic=int(candidates * each),
        improvement=len(visited),
        evaluation=round(games * turns / config.rollout.games),
        critic_texts=texts,
        actor_texts=len(visited),
    )


def _texts(config: RunConfig, game: Game[Any], state: Any, action: int, visits: int) -> int:
    if all(game.is_terminal(step.state) for step in game.transitions(state, action)):
        return 1
    targets = config.targets
    return max(targets.texts_min, min(targets.texts_max, round(targets.texts_per_visit * math.sqrt(visits))))


def _continue(game: Game[Any], state: Any, action: int, ply: int, drawn: _Drawn, rng: Rng) -> None:
    seat, after = game.current_player(state), game.apply(state, action, rng).state
    for own, at, _ in _own_turns(game, after, seat, ply + 1, rng):
        drawn.draw(own, at, rng)


def _own_turns(game: Game[Any], state: Any, seat: int, ply: int, rng: Rng):
    """(state, ply, move) of every turn of `seat` in a random game from there."""
    for at in range(ply, ply + game.max_length):
        if game.is_terminal(state):
            return
        action = rng.choice(game.legal_actions(state))
        if game.current_player(state) == seat:
            yield state, at, action
        state = game.apply(state, action, rng).state
