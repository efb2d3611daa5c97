"""Tic-Tac-Toe in words: winning cells, retold moves, readings of the board."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from nlrl.agents.language import FIRST, GameLanguage, Line, Picker
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


LINE_TEXTS = tuple(rules.line_text(line) for line in rules.LINES)


class TicTacToeLanguage(GameLanguage):
    """Sentences of `agents/phrases/tictactoe.toml`, filled in by the rules."""

    atoms = (
        r" ?\d-\d-\d",  # a line
        r" ?[OX]\d\b",  # a move with its player
        r" [OX1-9](?: \||\n---\+---\+---\n)",  # a cell of the board with the bars that follow it
        r" ?[OX]\b",  # a player
    )

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

    def moves(self, line: Line) -> str:
        played = zip(line.states, line.actions, strict=False)
        text = " ".join(f"{self.player(state)}{action + 1}" for state, action in played)
        return f"{text}, {self.result(line.end)}" if self.game.is_terminal(line.end) else text

    def result(self, state: TicTacToeState) -> str:
        """How a finished game ended: `X won by 3-5-7` or `draw`."""
        for player, name in enumerate(self.game.player_names):
            won = rules.won_lines(state, player)
            if won:
                return f"{name} won by {rules.line_text(won[0])}"
        return "draw"

    def aims(self, state: TicTacToeState, player: int) -> tuple[str, ...]:
        """The lines that `player` can still complete."""
        return open_line_texts(state, player)

    def aim_of(self, line: Line) -> str | None:
        won = [won for player in (0, 1) for won in rules.won_lines(line.end, player)]
        return rules.line_text(won[0]) if won else None

    def serves(self, action: str, aim: str) -> bool:
        return action in aim.split("-")

    def retell(self, line: Line, pick: Picker = FIRST) -> str:
        phrases, parts = self.phrases["retell"], []
        for index, (state, action) in enumerate(zip(line.states, line.actions, strict=False)):
            template = pick.choice(phrases["opening" if index == 0 else "reply"])
            parts.append(template.format(me=self.player(state), cell=action + 1))
        return "".join(parts) + self._ending(line.end, pick)

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

    def content(self, text: str) -> list[str]:
        """Players with the cells that belong to them, free cells, lines."""
        pieces = re.findall(
            r"[OX] (?:on|stands on) (?:\d ?|none)+|(?:, )X on [\d ]+|\d-\d-\d|(?:\d ?)+(?= is free)|(?<=free )[\d ]+",
            text,
        )
        named = re.findall(r"([OX]) (?:is to move|plays|takes|answers) ?(\d?)", text)
        return sorted(re.sub(r"[^OX\d-]", "", piece) for piece in pieces) + sorted("".join(pair) for pair in named)

    def atom_texts(self) -> list[str]:
        lines = [f" {line}" for line in LINE_TEXTS]
        moves = [f" {player}{cell}" for player in "OX" for cell in range(1, 10)]
        cells = [f" {symbol}{bars}" for symbol in "OX123456789" for bars in (" |", "\n---+---+---\n", "")]
        return lines + moves + cells
