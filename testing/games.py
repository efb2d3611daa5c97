"""A game that is data: a few named states, the moves between them and what they are worth.

1. A script maps each state to its moves, or, where the game ends, to the value of the first player.
2. A move leads to a state, to a state with a reward, `("b", 0.5)`, or by chance to one of several,
   `[(0.25, "b"), (0.75, "c", 0.5)]`.
3. Entering a final state pays its value on top of the move's reward. With two players, who alternate and whose rewards
   sum to zero, rewards on the way are refused: the value of the final state says it all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from nlrl.envs import svg
from nlrl.envs.game import Game, Step
from nlrl.errors import NLRLError

Edge = str | tuple[str, float] | list[tuple[Any, ...]]
Script = Mapping[str, Mapping[str, Edge] | float]


class ScriptedGame(Game[str]):
    """The game that `script` describes; a state is its name, which is also its text.

        ScriptedGame({"start": {"left": "trap", "right": "exit"}, "trap": -1.0, "exit": 1.0})

    Args:
        script: see the module. The first state is the initial one.
        players: 1 or 2.

    Raises:
        NLRLError: a move leads nowhere, states form a cycle, a state is never reached, or is reached by both players.
    """

    name = "scripted"

    def __init__(self, script: Script, players: int = 1):
        if players not in (1, 2) or not script:
            raise NLRLError(f"a scripted game needs 1 or 2 players and a state, got {players} and {len(script)}")
        self._script = {state: dict(moves) if isinstance(moves, Mapping) else moves for state, moves in script.items()}
        moves = [text for moves in script.values() if isinstance(moves, Mapping) for text in moves]
        self._texts = list(dict.fromkeys(moves))
        self.num_players = players
        self.num_actions = max(1, len(self._texts))
        self.player_names = ("First", "Second")[:players]
        self._edges = {state: self._read_moves(state) for state in self._script}
        order = self._first_states_first()
        self._players = self._assign_players(order)
        self.max_length, bound = self._measure(order)
        self.value_range = (-bound, bound)

    @classmethod
    def line(cls, states: Sequence[str], rewards: Sequence[float] = (), move: str = "next") -> ScriptedGame:
        """A game of one player and one move, from the first to the last of `states`; `rewards` are those of the moves
        (0 where there are too few)."""
        pairs = list(pairwise(states))
        paid = [*rewards, *[0.0] * (len(pairs) - len(rewards))]
        moves = {state: {move: (after, reward)} for (state, after), reward in zip(pairs, paid, strict=True)}
        return cls({**moves, states[-1]: 0.0})

    @property
    def params(self) -> dict[str, Any]:
        return {"script": self._script, "players": self.num_players}

    # -- rules ---------------------------------------------------------------------------------------------------------
    def initial_states(self) -> Sequence[str]:
        return (next(iter(self._script)),)

    def current_player(self, state: str) -> int:
        return -1 if self.is_terminal(state) else self._players[state]

    def legal_actions(self, state: str) -> tuple[int, ...]:
        return tuple(sorted(self._edges[state]))

    def transitions(self, state: str, action: int) -> tuple[Step[str], ...]:
        if action not in self._edges[state]:
            raise ValueError(f"action {action} is not legal in state {state!r}")
        return self._edges[state][action]

    def is_terminal(self, state: str) -> bool:
        return not self._edges[state]

    def returns(self, state: str) -> tuple[float, ...]:
        return self._rewards(self._value(state))

    # -- text and pictures ---------------------------------------------------------------------------------------------
    def to_text(self, state: str) -> str:
        return state

    def parse_text(self, text: str) -> str:
        if text not in self._script:
            raise ValueError(f"{text!r} is not a state of the script")
        return text

    def action_text(self, state: str, action: int) -> str:
        return self._texts[action]

    def parse_action(self, state: str, text: str) -> int | None:
        return next((action for action in self.legal_actions(state) if self._texts[action] == text), None)

    def render_svg(
        self,
        state: str,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        rows = [state if last_move is None else f"{state} after {self._texts[last_move]}"]
        for action in self.legal_actions(state):
            rows.append(f"{self._texts[action]} {(arrows or {}).get(action, '')} {(marks or {}).get(action, '')}")
        root = svg.canvas(320, 16 + 24 * len(rows), rows[0])
        for number, row in enumerate(rows):
            svg.label(root, 160, 20 + 24 * number, row, size=14)
        return svg.to_string(root)

    # -- reading the script --------------------------------------------------------------------------------------------
    def _value(self, state: str) -> float:
        entry = self._script[state]
        return 0.0 if isinstance(entry, dict) else float(entry)

    def _rewards(self, value: float) -> tuple[float, ...]:
        return (value,) if self.num_players == 1 else (value, -value)

    def _read_moves(self, state: str) -> dict[int, tuple[Step[str], ...]]:
        entry = self._script[state]
        if not isinstance(entry, dict):
            return {}
        if not entry:
            raise NLRLError(f"state {state!r} of the script has no moves; a final state is a number, its value")
        return {self._texts.index(text): self._read_edge(f"{state!r}: {text!r}", edge) for text, edge in entry.items()}

    def _read_edge(self, where: str, edge: Edge) -> tuple[Step[str], ...]:
        ends = edge if isinstance(edge, list) else [(1.0, edge) if isinstance(edge, str) else (1.0, *edge)]
        steps = []
        for probability, state, *reward in ends:
            if state not in self._script:
                raise NLRLError(f"the script's {where} leads to {state!r}, which it does not have")
            if reward and self.num_players == 2:
                raise NLRLError(f"the script's {where} has a reward; with two players, values stand at the end")
            steps.append(Step(float(probability), state, self._rewards(sum(reward) + self._value(state))))
        if abs(sum(step.probability for step in steps) - 1) > 1e-9:
            raise NLRLError(f"the script's {where} has probabilities that do not sum to 1")
        return tuple(steps)

    def _following(self, state: str) -> list[Step[str]]:
        return [step for steps in self._edges[state].values() for step in steps]

    def _first_states_first(self) -> list[str]:
        """All states, each before those that may follow it."""
        finished: list[str] = []
        on_the_way: set[str] = set()

        def visit(state: str) -> None:
            if state in on_the_way:
                raise NLRLError(f"the script comes back to state {state!r}; its games must end")
            if state in finished:
                return
            on_the_way.add(state)
            for step in self._following(state):
                visit(step.state)
            on_the_way.remove(state)
            finished.append(state)

        start = self.initial_states()[0]
        visit(start)
        if lost := self._script.keys() - finished:
            raise NLRLError(f"state {min(lost)!r} of the script is never reached from {start!r}")
        return finished[::-1]

    def _assign_players(self, order: list[str]) -> dict[str, int]:
        players = {order[0]: 0}
        for state in order:
            for step in self._following(state):
                player = (players[state] + 1) % self.num_players
                if players.setdefault(step.state, player) != player and not self.is_terminal(step.state):
                    raise NLRLError(f"both players come to state {step.state!r} of the script; name it once for each")
        return players

    def _measure(self, order: list[str]) -> tuple[int, float]:
        """The most moves of a game, and a bound of its returns (at least 1)."""
        length = dict.fromkeys(order, 0)
        low, high = dict.fromkeys(order, 0.0), dict.fromkeys(order, 0.0)
        for state in reversed(order):
            if steps := self._following(state):
                length[state] = 1 + max(length[step.state] for step in steps)
                low[state] = min(step.rewards[0] + low[step.state] for step in steps)
                high[state] = max(step.rewards[0] + high[step.state] for step in steps)
        start = order[0]
        return max(1, length[start]), max(1.0, -low[start], high[start])
