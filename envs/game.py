"""What a game is, for every game of the platform.

1. A *state* is a hashable, immutable value that holds everything the rules need. A `Game` holds no state of play: its
   methods are pure functions of the state, so states can be stored, compared, used as dictionary keys and sent between
   processes.
2. Two-player games alternate and are zero-sum; single-player games (mazes) have `num_players == 1` and rewards on the
   way.
3. Chance enters only through `apply`, which takes an `Rng`; a deterministic game ignores it. `transitions` lists the
   outcomes with probabilities, for exact solvers.
4. Actions are small integers with a fixed text form. Text is a lossless rendering:
   `parse_text(to_text(state)) == state`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from nlrl.envs.random import Rng

State = TypeVar("State", bound=Hashable)


class Step(NamedTuple, Generic[State]):
    """One possible outcome of an action: its probability, the next state and the reward of each player."""

    probability: float
    state: State
    rewards: tuple[float, ...]


class Game(ABC, Generic[State]):
    """The rules of one game. Subclasses are cheap to create, comparable by `spec`, and stateless."""

    name: str
    """Registry name, as in `nlrl.envs.make(name)`."""
    num_players: int
    num_actions: int
    """Actions are integers in range(num_actions)."""
    max_length: int
    """No game lasts longer than this many actions."""
    value_range: tuple[float, float]
    """Smallest and largest return, so that an evaluation in [-1, 1] can be read as a return."""
    player_names: tuple[str, ...]
    """What the players are called in text, first mover first."""
    truncation_reward: float = 0.0
    """What each player is paid on top when a game is cut at `max_length` before its rules end it."""

    @property
    @abstractmethod
    def params(self) -> dict[str, Any]:
        """The parameters that, with `name`, make this game again."""

    @property
    def spec(self) -> str:
        """`name` or `name(key=value,...)`: equal specs are equal games."""
        inner = ",".join(f"{key}={value}" for key, value in sorted(self.params.items()))
        return f"{self.name}({inner})" if inner else self.name

    # -- rules ---------------------------------------------------------------------------------------------------------
    @abstractmethod
    def initial_states(self) -> Sequence[State]:
        """All states a game may start from (uniformly)."""

    def initial_state(self, rng: Rng) -> State:
        """One of `initial_states`, drawn with `rng`."""
        states = self.initial_states()
        return states[0] if len(states) == 1 else rng.choice(states)

    @abstractmethod
    def current_player(self, state: State) -> int:
        """The player to move (0, 1, ...), or -1 in a terminal state."""

    @abstractmethod
    def legal_actions(self, state: State) -> tuple[int, ...]:
        """Legal actions in increasing order; empty in a terminal state."""

    @abstractmethod
    def transitions(self, state: State, action: int) -> tuple[Step[State], ...]:
        """Every outcome of `action` with its probability and rewards; probabilities sum to 1.

        Raises:
            ValueError: the action is not legal in this state; the message names both.
        """

    def apply(self, state: State, action: int, rng: Rng | None = None) -> Step[State]:
        """Plays `action`. `rng` is needed only where chance has a say.

        Raises:
            ValueError: the action is illegal, or chance is involved and `rng` is None.
        """
        steps = self.transitions(state, action)
        if len(steps) == 1:
            return steps[0]
        if rng is None:
            raise ValueError(f"{self.spec}: action {action} has chance outcomes; pass an Rng")
        return steps[rng.weighted([step.probability for step in steps])]

    @abstractmethod
    def is_terminal(self, state: State) -> bool: ...

    @abstractmethod
    def returns(self, state: State) -> tuple[float, ...]:
        """Each player's return *for reaching this terminal state* (0 for all in a non-terminal state).

        Where rewards come on the way (mazes), the return of a game is the sum of `Step.rewards`; for board games both
        agree.
        """

    def won(self, state: State, player: int) -> bool:
        """Whether a terminal state is a win of `player`; with one player, whether it is the goal."""
        return self.returns(state)[player] > 0

    def invalid_step(self, state: State) -> Step[State] | None:
        """What a reply that names no legal action does, after all retries: None is a forfeit (every board game)."""
        return None

    def heuristic(self, state: State) -> float:
        """A guess at the value of a position, from the view of the player to move, for searches that must stop there.

        In `value_range`, and better strictly inside it, so that a win in sight beats any guess. 0 unless a game knows
        something cheap about itself, such as who has more pieces and how far they are.
        """
        return 0.0

    # -- exact values --------------------------------------------------------------------------------------------------
    def make_oracle(self) -> Any:
        """An `nlrl.envs.oracle.Oracle` of this game; `oracle_for` keeps one per process. By default full tables.

        Raises:
            NLRLError: the game is too large for the oracle.
        """
        from nlrl.envs.oracle import TabularOracle  # numpy only where it is needed

        return TabularOracle(self)

    # -- text and pictures ---------------------------------------------------------------------------------------------
    @abstractmethod
    def to_text(self, state: State) -> str:
        """The board as people read it (several lines, no trailing newline), without legal moves.

        It names the side to move only where the pieces do not tell it.
        """

    def observation_text(self, state: State, player: int) -> str:
        """What `player` may know of the state; all of it, unless the game hides something."""
        return self.to_text(state)

    @abstractmethod
    def parse_text(self, text: str) -> State:
        """The inverse of `to_text`.

        Raises:
            ValueError: the text is not a board of this game, saying where.
        """

    @abstractmethod
    def action_text(self, state: State, action: int) -> str:
        """The move as people write it, e.g. `5` or `a4b3*`."""

    @abstractmethod
    def parse_action(self, state: State, text: str) -> int | None:
        """The *legal* action that `text` names exactly, or None."""

    @abstractmethod
    def render_svg(
        self,
        state: State,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        """A self-contained SVG. `arrows`: action -> weight in [0, 1] (candidates); `marks`: action -> short label."""

    # -- symmetry, for metrics and tests -------------------------------------------------------------------------------
    def symmetries(self, state: State) -> tuple[State, ...]:
        """States that the rules cannot tell from this one (itself included)."""
        return (state,)
