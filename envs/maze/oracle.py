"""Exact values of a maze: the distance to the goal is all there is to know, whatever the walker is told.

With H steps left, a cell d steps from the goal is worth -(d - 1) if d <= H; otherwise the cap cuts the walk and every
way is worth -H and the truncation reward.
"""

from __future__ import annotations

import math
from functools import cached_property

from nlrl.envs.maze.rules import GOAL_REWARD, STEP_REWARD, Maze
from nlrl.envs.maze.state import Cell, MazeState
from nlrl.envs.oracle import Oracle, TabularOracle, Values
from nlrl.envs.state_table import Policy


class MazeOracle(Oracle[MazeState]):
    """Best play from breadth-first distances, and policies through tables that are only made when asked for.

    Raises:
        ValueError: `steps_left` is not from 0 to the game's `max_length`, which is the default.
    """

    game: Maze

    def __init__(self, game: Maze, steps_left: int | None = None):
        self.steps_left = game.max_length if steps_left is None else steps_left
        if not 0 <= self.steps_left <= game.max_length:
            raise ValueError(f"{game.spec}: steps_left must be from 0 to {game.max_length}, not {steps_left}")
        self.game = game
        self._distance = game.grid.distance  # the rules have searched already: it tells them which cells may be starts
        furthest = max(self._distance.values())
        self._worth = [self._value(distance, self.steps_left) for distance in range(furthest + 1)]
        self._arriving = [self._q(distance) for distance in range(furthest + 1)]

    # -- best play -----------------------------------------------------------------------------------------------------
    def value(self, state: MazeState) -> float:
        return self._worth[self.distance(state)]

    def q_values(self, state: MazeState) -> dict[int, float]:
        """As `Oracle.q_values`. With no steps left no action has a value: NaN."""
        after = self.game.grid.next[self.game.cell_of(state)]
        return {action: self._arriving[self._distance[after[action]]] for action in self.game.legal_actions(state)}

    def at_horizon(self, steps_left: int) -> MazeOracle:
        """Best play with `steps_left` steps left.

        Raises:
            ValueError: `steps_left` is not from 0 to `max_length`.
        """
        return MazeOracle(self.game, steps_left)

    def distance(self, state: MazeState) -> int:
        """Steps to the goal, however few are left."""
        return self._distance[self.game.cell_of(state)]

    def shortest_path(self, state: MazeState) -> list[Cell]:
        """Cells from the walker's to the goal, both included. Where several are shortest, low actions come first."""
        return self.game.grid.shortest_path(self.game.cell_of(state))

    def at_start(self, player: int = 0) -> float:
        """The mean value of the initial states."""
        values = [self.value(state) for state in self.game.initial_states()]
        return math.fsum(values) / len(values)

    def _q(self, distance: int) -> float:
        """Of a move that leads `distance` steps from the goal."""
        if self.steps_left == 0:
            return math.nan
        return (STEP_REWARD if distance else GOAL_REWARD) + self._value(distance, self.steps_left - 1)

    def _value(self, distance: int, left: int) -> float:
        if distance > left:
            return STEP_REWARD * left + self.game.truncation_reward
        return GOAL_REWARD + STEP_REWARD * max(0, distance - 1)

    # -- policies ------------------------------------------------------------------------------------------------------
    @cached_property
    def tabular(self) -> TabularOracle[MazeState]:
        """Tables of all states, for whatever is asked of policies.

        Raises:
            NLRLError: too many states, because histories are part of them (`history=0` gives one state a cell).
        """
        return TabularOracle(self.game)

    def policy_value(self, policy: Policy) -> Values[MazeState]:
        """V^pi and Q^pi with the same steps left, as `TabularOracle.policy_value`.

        Raises:
            ValueError: the policy is not a distribution over legal moves. NLRLError: as `tabular`.
        """
        return self.tabular.policy_value(policy, steps_left=self.steps_left)

    def exploitability(self, policy: Policy) -> float:
        """How much less than best play `policy` earns from the starts on average, with all steps left.

        Raises:
            ValueError: as `policy_value`, or the policy is not given everywhere. NLRLError: as `tabular`.
        """
        return self.tabular.exploitability(policy)
