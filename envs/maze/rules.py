"""Walk to the goal of a maze: LMRL-Gym's rules as NLRL uses them, on its layouts, generated ones or your own.

1. Four moves, legal everywhere. A move into a wall costs a step and leaves the walker where it is.
2. Every step pays -1, the one that reaches the goal 0. A reply that names no move pays -4, moves nothing and counts as
   a step. A walk cut after `max_steps` pays a further -1.
3. `observed` says what the walker is told: "full" gives its own place, the goal and the walls beside it, "partial" only
   the walls and what it saw and did before. What is told is a function of the state, so the state keeps the last
   `history` items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NoReturn

from nlrl.envs.game import Game, Step
from nlrl.envs.maze import text as maze_text
from nlrl.envs.maze.generator import generate
from nlrl.envs.maze.grid import Grid
from nlrl.envs.maze.layouts import LAYOUTS, Layout, looks_like_layout, read_layout
from nlrl.envs.maze.state import ACTION_TEXTS, NO_MOVE, Cell, MazeState, Seen
from nlrl.envs.random import Rng

Observed = Literal["full", "partial"]

STEP_REWARD, GOAL_REWARD, INVALID_REWARD = -1.0, 0.0, -4.0
PARTIAL_HISTORY = 20
"""Steps that a partially observed walker remembers by default: LMRL-Gym's 40 texts are 20 observations and moves."""
_ACTIONS = {text: action for action, text in enumerate(ACTION_TEXTS)}
_ALL = tuple(range(len(ACTION_TEXTS)))
_GENERATED = {"width": 11, "height": 11, "loops": 0.0, "seed": 0}
_MAX_STEPS, _MAX_HISTORY = 10_000, 1_000


class Maze(Game[MazeState]):
    """One maze.

    Args:
        layout: `double_t`, `large`, `medium`, `umaze`, `generated`, or a map: rows of `#`, `.` and `G` between `/`.
        observed: what `observation_text` tells.
        goal: (row, column); None is the layout's own. `medium` and `large` have none in public code, see `layouts`.
        starts: (row, column) of each; None is every cell but the goal that it can be reached from.
        history: items of the past that a state keeps and an observation tells; None is 0 if fully observed, else 20.
        max_steps: the cap.
        width, height, loops, seed: of a `generated` maze, see `generator.generate`; None is 11, 11, 0 and 0.

    Raises:
        ValueError: an unknown layout, a bad map, a goal or start that cannot be, or a number out of range.
    """

    name = "maze"
    num_players = 1
    num_actions = len(ACTION_TEXTS)
    player_names = ("walker",)
    truncation_reward = -1.0

    def __init__(
        self,
        layout: str = "double_t",
        observed: Observed = "full",
        goal: Cell | None = None,
        starts: tuple[Cell, ...] | None = None,
        history: int | None = None,
        max_steps: int = 100,
        width: int | None = None,
        height: int | None = None,
        loops: float | None = None,
        seed: int | None = None,
    ):
        if observed not in ("full", "partial"):
            raise ValueError(f"observed must be 'full' or 'partial', not {observed!r}")
        given = {"width": width, "height": height, "loops": loops, "seed": seed}
        plain, self._layout_params = _make_layout(layout, None if goal is None else _cell("goal", goal), given)
        self.grid = Grid(plain)
        self._starts = _make_starts(self.grid, starts)
        self._states = tuple(MazeState(*cell) for cell in self._starts)
        self.observed: Observed = observed
        self.history = _in_range("history", _default_history(observed) if history is None else history, 0, _MAX_HISTORY)
        self.max_length = _in_range("max_steps", max_steps, 1, _MAX_STEPS)
        self.value_range = (STEP_REWARD * max_steps + self.truncation_reward, GOAL_REWARD)

    @property
    def params(self) -> dict[str, Any]:
        """Layout and `observed`, and whatever differs from what they imply."""
        params: dict[str, Any] = {**self._layout_params, "observed": self.observed}
        if len(self._starts) < len(self.grid.distance) - 1:  # not every cell but the goal
            params["starts"] = self._starts
        if self.history != _default_history(self.observed):
            params["history"] = self.history
        if self.max_length != 100:
            params["max_steps"] = self.max_length
        return params

    # -- rules ---------------------------------------------------------------------------------------------------------
    def initial_states(self) -> tuple[MazeState, ...]:
        return self._states

    def current_player(self, state: MazeState) -> int:
        return -1 if self.is_terminal(state) else 0

    def legal_actions(self, state: MazeState) -> tuple[int, ...]:
        return () if self.is_terminal(state) else _ALL

    def transitions(self, state: MazeState, action: int) -> tuple[Step[MazeState], ...]:
        return (self.apply(state, action),)

    def apply(self, state: MazeState, action: int, rng: Rng | None = None) -> Step[MazeState]:
        cell = self.cell_of(state)
        if cell == self.grid.goal or action not in _ALL:
            raise ValueError(
                f"{self.spec}: action {action!r} is illegal in {state}; legal: {self.legal_actions(state)}"
            )
        there = self.grid.next[cell][action]
        reward = GOAL_REWARD if there == self.grid.goal else STEP_REWARD
        return Step(1.0, self._after(state, there, action), (reward,))

    def invalid_step(self, state: MazeState) -> Step[MazeState]:
        """The walker stays, pays 4 and has used a step.

        Raises:
            ValueError: the walk is over.
        """
        if self.is_terminal(state):
            raise ValueError(f"{self.spec}: the walk has ended in {state}")
        return Step(1.0, self._after(state, state.cell, NO_MOVE), (INVALID_REWARD,))

    def _after(self, state: MazeState, there: Cell, action: int) -> MazeState:
        if not self.history:
            return MazeState(*there)
        past = (*state.history, Seen(self.grid.walls[state.cell], action))
        return MazeState(*there, past[-self.history :])

    def is_terminal(self, state: MazeState) -> bool:
        return self.cell_of(state) == self.grid.goal

    def returns(self, state: MazeState) -> tuple[float, ...]:
        self.cell_of(state)
        return (GOAL_REWARD,)

    def won(self, state: MazeState, player: int) -> bool:
        return self.is_terminal(state)

    def cell_of(self, state: MazeState) -> Cell:
        """Where the walker stands.

        Raises:
            ValueError: not a state of this maze.
        """
        if not isinstance(state, MazeState) or state.cell not in self.grid.distance:
            self._refuse(state)
        return state.cell

    def _refuse(self, state: object) -> NoReturn:
        allowed = f"a MazeState on one of the {len(self.grid.distance)} cells that have a way to the goal"
        raise ValueError(f"{self.spec}: {state!r} is not {allowed}")

    # -- exact values, text and pictures -------------------------------------------------------------------------------
    def make_oracle(self) -> Any:
        from nlrl.envs.maze.oracle import MazeOracle  # numpy only where it is needed

        return MazeOracle(self)

    def to_text(self, state: MazeState) -> str:
        self.cell_of(state)
        return maze_text.map_text(self.grid, state)

    def observation_text(self, state: MazeState, player: int) -> str:
        self.cell_of(state)
        return maze_text.observation_text(self.grid, state, self.observed == "full")

    def parse_text(self, text: str) -> MazeState:
        return maze_text.read_map(self.grid, self._starts, self.history, text)

    def action_text(self, state: MazeState, action: int) -> str:
        return ACTION_TEXTS[action]

    def parse_action(self, state: MazeState, text: str) -> int | None:
        return None if self.is_terminal(state) else _ACTIONS.get(text)

    def render_svg(
        self,
        state: MazeState,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
        path: Sequence[Cell | MazeState] = (),
        shortest: bool = False,
    ) -> str:
        """As `Game.render_svg`. `path`: cells (or states) walked so far; `shortest` adds a shortest way to the goal.

        Raises:
            ValueError: not a state of this maze, an unknown action, or a path through walls.
        """
        from nlrl.envs.maze import drawing

        self.cell_of(state)
        walked = [cell.cell if isinstance(cell, MazeState) else cell for cell in path]
        return drawing.draw(self.grid, state, last_move, arrows or {}, marks or {}, walked, shortest)


def _default_history(observed: Observed) -> int:
    return 0 if observed == "full" else PARTIAL_HISTORY


def _make_layout(name: str, goal: Cell | None, given: dict[str, Any]) -> tuple[Layout, dict[str, Any]]:
    """The layout with its goal, and the parameters that name both."""
    own, params = _find_layout(name, given)
    if goal in (None, own.goal):
        return own, params
    layout = own._replace(goal=goal)
    if not looks_like_layout(name):
        return layout, {**params, "goal": goal}
    if own.goal is not None:
        raise ValueError(f"the map marks its goal 'G' at {own.goal}, but goal is {goal}")
    return layout, {"layout": layout.to_text() if layout.is_free(goal) else name}


def _find_layout(name: str, given: dict[str, Any]) -> tuple[Layout, dict[str, Any]]:
    if name == "generated":
        size = {key: _GENERATED[key] if value is None else value for key, value in given.items()}
        for key in ("width", "height", "seed"):
            _require_int(key, size[key])
        size["loops"] = float(size["loops"])
        return generate(**size), {"layout": name, **size}
    meant = [key for key, value in given.items() if value is not None]
    if meant:
        raise ValueError(f"{meant[0]} belongs to layout 'generated', not to {name!r}")
    if name in LAYOUTS:
        return LAYOUTS[name], {"layout": name}
    if not looks_like_layout(name):
        known = ", ".join([*LAYOUTS, "generated"])
        raise ValueError(f"unknown layout {name!r}; known: {known}; or a map such as '#####/#..G#/#####'")
    layout = read_layout(name)
    return layout, {"layout": layout.to_text()}


def _make_starts(grid: Grid, starts: tuple[Cell, ...] | None) -> tuple[Cell, ...]:
    """Start cells in reading order."""
    possible = sorted(cell for cell in grid.distance if cell != grid.goal)
    if not possible:
        raise ValueError(f"no legal start: from no free cell is there a way to the goal {grid.goal}")
    if starts is None:
        return tuple(possible)
    chosen = sorted({_cell("start", start) for start in starts})
    if not chosen:
        raise ValueError("starts must name at least one cell (row, column), or be None for all")
    for start in chosen:
        if start not in grid.distance or start == grid.goal:
            raise ValueError(f"start {start} is the goal, in a wall, or without a way to the goal {grid.goal}")
    return tuple(chosen)


def _cell(name: str, value: Any) -> Cell:
    if not isinstance(value, tuple | list) or len(value) != 2 or any(type(number) is not int for number in value):
        raise ValueError(f"{name} must be a cell (row, column), not {value!r}")
    return value[0], value[1]


def _require_int(name: str, value: Any) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} must be a whole number, not {value!r}")


def _in_range(name: str, value: int, low: int, high: int) -> int:
    _require_int(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value
