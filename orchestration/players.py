"""Language policies at play: many whole games at once, the model asked for all waiting games in one batch.

1. A `PolicyPool` holds the answers a policy gave in each state, at most `samples_per_state` of them, each asked for
   the first time some game needs it. A game draws among them with its own generator, so its course depends on its
   key alone, and an identical prompt is answered once.
2. `play` moves all games forward in lock-step: one batch to each kind of player a turn.
3. A policy, or an opponent that speaks, forfeits where it gives no legal answer after its retries, unless the rules
   say what that costs (`Game.invalid_step`). No answer is ever replaced by a random move; on turns on which a game
   explores (`rollout.explore`) none is asked for, and its record names them.
4. A game that its rules do not end is cut after `Game.max_length` moves. One that is played on from somewhere has all
   of them again, as if it began there: prompts do not tell how many are left. `targets.horizon` may give it fewer.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nlrl.agents.asking import Reply, ask
from nlrl.agents.language import NO_MOVE
from nlrl.agents.roles import Choice, PolicyRole, StateInput
from nlrl.backbones.language_model import LanguageModel, Sampling
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent
from nlrl.envs.random import Rng, derive_seed
from nlrl.orchestration.budget import Entry
from nlrl.orchestration.lines import step_of

SELF = "self"
NONE = "none"
"""Whom a game for one player is played against."""
RESULTS = {1: ("win", "loss", "cut", "forfeit"), 2: ("win", "draw", "loss", "forfeit")}
"""How games end, by the number of players. `cut`: at the longest; a cut game of two is a draw."""


REMEMBERED = 1 << 19
"""Generated tokens of the answers that a pool keeps, at about seventy bytes each: there are many workers on a machine,
and the servers remember more."""


class PolicyPool:
    """Answers of one policy, by state and sample number; beyond `REMEMBERED` tokens the oldest are forgotten, and asked
    for again where a game needs them: they come out the same."""

    def __init__(
        self,
        model: LanguageModel,
        role: PolicyRole,
        sampling: Sampling,
        seed: int,
        samples_per_state: int = 1,
        samples_at_start: int = 1,
        retries: int = 1,
    ):
        self._model, self._role, self._sampling, self._seed = model, role, sampling, seed
        self._per_state, self._at_start, self._retries = samples_per_state, samples_at_start, retries
        self._replies: dict[tuple[Any, int], Reply[Choice]] = {}
        self._costs: dict[tuple[Any, int], Entry] = {}
        self._tokens = 0
        self.spent: dict[int, Entry] = {}
        """What the answers cost that were drawn since this was last emptied, whenever they were asked for."""

    def size(self, ply: int) -> int:
        """How many answers are sampled for a state met after `ply` moves; greedy policies need one."""
        if self._sampling.temperature == 0:
            return 1
        return max(self._per_state, self._at_start >> (2 * ply))

    def draw(self, states: Sequence[Any], plies: Sequence[int], rngs: Sequence[Rng]) -> list[Reply[Choice]]:
        """One answer for each waiting game."""
        keys = [(s, rng.below(self.size(ply))) for s, ply, rng in zip(states, plies, rngs, strict=True)]
        self._fetch(keys)
        return [self._replies[key] for key in keys]

    def table(
        self, states: Sequence[Any], plies: Sequence[int], samples: int | None = None
    ) -> list[Counter[int | None]]:
        """All sampled moves of each state (or just `samples` of each), counted; None counts forfeits."""
        groups = [[(s, i) for i in range(samples or self.size(ply))] for s, ply in zip(states, plies, strict=True)]
        self._fetch([key for group in groups for key in group])
        return [Counter(_action(self._replies[key]) for key in group) for group in groups]

    def _fetch(self, keys: Sequence[tuple[Any, int]]) -> None:
        if self._tokens > REMEMBERED:
            self._forget_oldest()
        if missing := [key for key in dict.fromkeys(keys) if key not in self._replies]:
            self._ask(missing)
        self.spent.update({cost.key: cost for cost in (self._costs[key] for key in keys)})

    def _ask(self, missing: Sequence[tuple[Any, int]]) -> None:
        seeds = [derive_seed(self._seed, self._role.game.to_text(state), sample) for state, sample in missing]
        inputs = [StateInput(state) for state, _ in missing]
        replies = ask(self._model, self._role, inputs, self._sampling, seeds, self._retries)
        self._replies.update(zip(missing, replies, strict=True))
        temperature = str(self._sampling.temperature)
        for key, seed, reply in zip(missing, seeds, replies, strict=True):
            number = derive_seed(seed, temperature)
            self._costs[key] = Entry(number, 0, reply.prompt_tokens, reply.generated_tokens)
            self._tokens += reply.generated_tokens

    def _forget_oldest(self) -> None:
        """Down to half of what may be kept."""
        for key in list(self._replies):
            if self._tokens <= REMEMBERED // 2:
                return
            self._tokens -= self._costs.pop(key).generated_tokens
            del self._replies[key]


def _action(reply: Reply[Choice]) -> int | None:
    return None if reply.output is None else reply.output.action


@dataclass(slots=True)
class Play:
    """One game on its way: where it stands, who plays, what was said."""

    state: Any
    seat: int
    """The player that the policy under study plays."""
    opponent: str
    rng: Rng
    ply: int = 0
    longest: int | None = None
    """Stop on the policy's first turn after so many moves, if the game is not over before."""
    horizon: int | None = None
    """After how many moves it is cut; None: after the longest game's."""
    explore: float = 0.0
    """Share of the policy's turns on which a random move is played, unasked."""
    explored: list[int] = field(default_factory=list)
    """Indices into `actions` of those moves."""
    actions: list[int] = field(default_factory=list)
    outcomes: list[int | None] = field(default_factory=list)
    """Of each action, which of its outcomes chance chose, if it had a choice; see `nlrl.orchestration.lines`."""
    paid: float = 0.0
    """The sum of the rewards of `seat`."""
    replies: dict[int, Reply[Choice]] = field(default_factory=dict)
    """The policy's answers by index into `actions`; a forfeit's index is one past the end."""
    forfeited_by: int | None = None
    asked: dict[int, float] = field(default_factory=dict)
    """When each of `replies` was asked for, in seconds since 1970; an older answer was drawn from the store."""

    def is_over(self, game: Game[Any]) -> bool:
        """Whether it has ended: by the rules, by a forfeit, or because it is cut."""
        longest = game.max_length if self.horizon is None else self.horizon
        return self.forfeited_by is not None or game.is_terminal(self.state) or len(self.actions) >= longest

    def is_cut(self, game: Game[Any]) -> bool:
        """Whether it is over because it has no moves left."""
        return self.is_over(game) and self.forfeited_by is None and not game.is_terminal(self.state)

    def result(self, game: Game[Any]) -> str:
        """One of `RESULTS`, for the policy under study (an opponent's forfeit is a win)."""
        if self.forfeited_by is not None:
            return "forfeit" if self.forfeited_by == self.seat else "win"
        if game.num_players == 1:
            return "cut" if not game.is_terminal(self.state) else "win" if game.won(self.state, self.seat) else "loss"
        value = game.returns(self.state)[self.seat]
        return "win" if value > 0 else "loss" if value < 0 else "draw"

    def total(self, game: Game[Any]) -> float:
        """The return of a game that is over, for the policy under study."""
        return self.paid + (game.truncation_reward if self.is_cut(game) else 0.0)


def play(
    game: Game[Any], plays: Sequence[Play], pool: PolicyPool, opponents: dict[str, Opponent], keep_replies: bool = True
) -> None:
    """Plays every game to its end (or to where its `longest` stops it), in place.

    Args:
        pool: the policy under study; opponent `self` plays it too.
        opponents: by name, for every other opponent the games name.
    """

    def goes_on(p: Play) -> bool:
        far = p.longest is not None and len(p.actions) >= p.longest and game.current_player(p.state) == p.seat
        return not far and not p.is_over(game)

    waiting = [p for p in plays if goes_on(p)]
    while waiting:
        ours, others = [], {}
        for p in waiting:
            if _explores(game, p):
                _explore(game, p)
            elif game.current_player(p.state) == p.seat or p.opponent == SELF:
                ours.append(p)
            else:
                others.setdefault(p.opponent, []).append(p)
        _policy_turn(game, ours, pool, keep_replies)
        for name, group in others.items():
            moves = opponents[name].choose([p.state for p in group], [p.rng for p in group])
            for p, move in zip(group, moves, strict=True):
                move_or_forfeit(game, p, move)
        waiting = [p for p in waiting if goes_on(p)]


def _explores(game: Game[Any], p: Play) -> bool:
    return p.explore > 0 and game.current_player(p.state) == p.seat and p.rng.random() < p.explore


def _explore(game: Game[Any], p: Play) -> None:
    p.explored.append(len(p.actions))
    move_or_forfeit(game, p, p.rng.choice(game.legal_actions(p.state)))


def _policy_turn(game: Game[Any], plays: Sequence[Play], pool: PolicyPool, keep_replies: bool) -> None:
    if not plays:
        return
    asked = time.time()
    replies = pool.draw([p.state for p in plays], [p.ply for p in plays], [p.rng for p in plays])
    for p, reply in zip(plays, replies, strict=True):
        if keep_replies and (p.opponent != SELF or game.current_player(p.state) == p.seat):
            p.replies[len(p.actions)], p.asked[len(p.actions)] = reply, asked
        move_or_forfeit(game, p, _action(reply))


def move_or_forfeit(game: Game[Any], p: Play, action: int | None) -> None:
    """Plays one move, in place; None is a reply that names no legal one."""
    found = step_of(game, p.state, action, p.rng)
    if found is None:
        p.forfeited_by = game.current_player(p.state)
        return
    step, outcome = found
    p.actions.append(NO_MOVE if action is None else action)
    p.outcomes.append(outcome)
    p.paid += step.rewards[p.seat]
    p.ply += 1
    p.state = step.state
