"""Tic-Tac-Toe in words: winning cells, retold moves, readings of the board."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from nlrl.agents.language import FIRST, GameLanguage, Picker
from nlrl.envs import tictactoe as rules
from nlrl.envs.tictactoe import TicTacToeState

NOTHING = "none"


def cells_text(cells: Sequence[int]) -> str:
    """Cells as people number them (`3 5 7`), or `none`."""
    return " ".join(str(cell + 1) for cell in cells) or NOTHING


@cache
def winning_text(state: TicTacToeState, player: int) -> str:
    """The free cells that complete a line of `player`."""
    return cells_text(rules.winning_cells(state, player))


@cache
def open_line_texts(state: TicTacToeState, player: int) -> tuple[str, ...]:
    """The lines that `player` can still complete."""
    return tuple(rules.line_text(line) for line in rules.open_lines(state, player))


class TicTacToeLanguage(GameLanguage):
    """Sentences of `agents/phrases/tictactoe.toml`, filled in by the rules."""

    def facts(self, state: TicTacToeState, pick: Picker = FIRST) -> str:
        me = self.game.current_player(state)
        return self._winning_cells("state", state, me, pick)

    def facts_after(self, state: TicTacToeState, action: int, pick: Picker = FIRST) -> str:
        me = self.game.current_player(state)
        after = self.game.apply(state, action).state
        won = rules.won_lines(after, me)
        if won:
            template = pick.choice(self.phrases["facts"]["won"])
            return template.format(me=self.game.player_names[me], line=rules.line_text(won[0]))
        if self.game.is_terminal(after):
            return pick.choice(self.phrases["facts"]["full"])
        return self._winning_cells("after", after, me, pick)

    def _winning_cells(self, kind: str, state: TicTacToeState, me: int, pick: Picker) -> str:
        names = self.game.player_names
        return pick.choice(self.phrases["facts"][kind]).format(
            me=names[me], you=names[1 - me], mine=winning_text(state, me), yours=winning_text(state, 1 - me)
        )

    def moves(self, state: TicTacToeState, actions: Sequence[int]) -> str:
        words = []
        for action in actions:
            words.append(f"{self.player(state)}{action + 1}")
            state = self.game.apply(state, action).state
        text = " ".join(words)
        return f"{text}, {self.result(state)}" if self.game.is_terminal(state) else text

    def result(self, state: TicTacToeState) -> str:
        """How a finished game ended: `X won by 3-5-7` or `draw`."""
        for player, name in enumerate(self.game.player_names):
            won = rules.won_lines(state, player)
            if won:
                return f"{name} won by {rules.line_text(won[0])}"
        return "draw"

    def retell(self, state: TicTacToeState, actions: Sequence[int], pick: Picker = FIRST) -> str:
        phrases, parts = self.phrases["retell"], []
        for index, action in enumerate(actions):
            template = pick.choice(phrases["opening" if index == 0 else "reply"])
            parts.append(template.format(me=self.player(state), cell=action + 1))
            state = self.game.apply(state, action).state
        return "".join(parts) + self._ending(state, pick)

    def _ending(self, state: TicTacToeState, pick: Picker) -> str:
        phrases = self.phrases["retell"]
        if not self.game.is_terminal(state):
            return pick.choice(phrases["unfinished"])
        lines = [line for player in (0, 1) for line in rules.won_lines(state, player)]
        if not lines:
            return pick.choice(phrases["draw"])
        return pick.choice(phrases["won"]).format(line=rules.line_text(lines[0]))

    def read(self, state: TicTacToeState, pick: Picker = FIRST) -> str:
        """The board cell by cell, as a sentence."""
        return pick.choice(self.phrases["reader"]["board"]).format(
            o=cells_text([c for c in range(9) if state.o >> c & 1]),
            x=cells_text([c for c in range(9) if state.x >> c & 1]),
            free=cells_text(self.game.legal_actions(state)),
            me=self.player(state),
        )
