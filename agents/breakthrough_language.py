"""Breakthrough in words: pawns and how far they have to go, captures, retold moves, readings of the board.

An aim is a cell of the far row, and a game is won *at* it: what a pawn may still reach later it may reach now, so an
aim that is cited about a position further on is true of the one before, whatever moved in between.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from nlrl.agents.language import FIRST, GameLanguage, Line, Picker
from nlrl.envs.breakthrough import Breakthrough, BreakthroughState, tactics
from nlrl.envs.breakthrough.board import LETTERS

NOTHING = "none"
NO_PAWNS = f" {NOTHING}"
_MOVE = r"[a-h][1-8][a-h][1-8]\*?"
_CELL = r"[a-h][1-8]"


class BreakthroughLanguage(GameLanguage):
    """Sentences of `agents/phrases/breakthrough.toml`, filled in by the rules.

    A verdict of +0.50 says three wins to one loss; there are no draws.
    """

    game: Breakthrough
    atoms = (
        rf" ?{_MOVE}",  # a move
        rf" ?{_CELL}\b",  # a cell
        r" ?\b(?:black|white)\b",  # a player
        r" ?\b1\d\b",  # a count of two digits
    )

    def __init__(self, game: Breakthrough, phrases: dict[str, Any]):
        super().__init__(game, phrases)
        self.tables = game.board

    def board(self, state: BreakthroughState) -> str:
        """The pawns of both sides, and the side to move or the winner: shorter than the diagram, and small models learn
        to read it sooner."""
        end = self.result(state) if self.game.is_terminal(state) else f"to move: {self.game.player_names[state.player]}"
        (black, white), (blacks, whites) = self.game.player_names, self.game.pawn_texts(state)
        return f"{black}{blacks or NO_PAWNS}\n{white}{whites or NO_PAWNS}\n{end}"

    def legal(self, state: BreakthroughState) -> str:
        return " ".join(self.game.legal_moves(state).values())

    # -- what the rules say --------------------------------------------------------------------------------------------
    def facts(self, state: BreakthroughState, pick: Picker = FIRST) -> str:
        return self._facts("state", state, self.game.current_player(state), pick)

    def facts_after(self, state: BreakthroughState, action: int, pick: Picker = FIRST) -> str:
        me = self.game.current_player(state)
        after = self.game.apply(state, action).state
        if not self.game.is_terminal(after):
            return self._facts("after", after, me, pick)
        kind = "arrived" if after[me] & self.tables.goals[me] else "all_taken"
        return pick.choice(self.phrases["facts"][kind]).format(me=self.game.player_names[me], goal=self._won_at(after))

    def _facts(self, kind: str, state: BreakthroughState, me: int, pick: Picker) -> str:
        names, board, mover = self.game.player_names, self.tables, state.player
        mine, yours = tactics.foremost(board, state, me), tactics.foremost(board, state, 1 - me)
        text = pick.choice(self.phrases["facts"][kind]).format(
            me=names[me],
            you=names[1 - me],
            mine=state[me].bit_count(),
            yours=state[1 - me].bit_count(),
            rows=mine[0],
            their_rows=yours[0],
            pawns=self.cells_text(mine[1]),
            their_pawns=self.cells_text(yours[1]),
            mover=names[mover],
            captures=self.moves_text(state, tactics.captures(board, state, mover)),
        )
        return text

    def cells_text(self, cells: Sequence[int]) -> str:
        """Cells by name (`a4 c3`), or `none`."""
        return " ".join(self.tables.cell_names[cell] for cell in cells) or NOTHING

    def moves_text(self, state: BreakthroughState, actions: Sequence[int]) -> str:
        """Moves by name (`a4b3 c4d3*`), or `none`."""
        return " ".join(self.game.action_text(state, action) for action in actions) or NOTHING

    def read(self, state: BreakthroughState, pick: Picker = FIRST) -> str:
        free = self.tables.full & ~(state.black | state.white)
        return pick.choice(self.phrases["reader"]["board"]).format(
            black=self.cells_text(tactics.cells_of(state.black)),
            white=self.cells_text(tactics.cells_of(state.white)),
            free=self.cells_text(tactics.cells_of(free)),
            me=self.player(state),
        )

    def aims(self, state: BreakthroughState, player: int) -> tuple[str, ...]:
        """The cells of the far row that a pawn of `player` could get to if nothing were in its way."""
        return tuple(self.tables.cell_names[cell] for cell in tactics.goals(self.tables, state, player))

    def aim_of(self, line: Line) -> str | None:
        """The cell of the far row that was reached; None if the last pawn was taken."""
        return self._won_at(line.end)

    def serves(self, action: str, aim: str) -> bool:
        """Whether the pawn that moves can still get from there to the aim, as far as columns and rows tell."""
        column, rank = action[2], action[3]
        return abs(LETTERS.index(column) - LETTERS.index(aim[0])) <= abs(int(rank) - int(aim[1]))

    # -- what was played -----------------------------------------------------------------------------------------------
    def moves(self, line: Line) -> str:
        played = zip(line.states, line.actions, strict=False)
        text = " ".join(self.game.action_text(state, action) for state, action in played)
        return f"{text}, {self.result(line.end)}" if self.game.is_terminal(line.end) else text

    def result(self, state: BreakthroughState) -> str:
        """How a finished game ended: `white won at c5` or `white won by taking all`."""
        winner, goal = self.game.player_names[1 - state.player], self._won_at(state)
        return f"{winner} won at {goal}" if goal else f"{winner} won by taking all"

    def retell(self, line: Line, pick: Picker = FIRST) -> str:
        phrases, parts = self.phrases["retell"], []
        for index, (state, action) in enumerate(zip(line.states, line.actions, strict=False)):
            template = pick.choice(phrases["opening" if index == 0 else "reply"])
            parts.append(template.format(me=self.player(state), move=self.game.action_text(state, action)))
        return "".join(parts) + self._ending(line.end, pick)

    def _ending(self, state: BreakthroughState, pick: Picker) -> str:
        phrases = self.phrases["retell"]
        if not self.game.is_terminal(state):
            return pick.choice(phrases["unfinished"])
        goal = self._won_at(state)
        return pick.choice(phrases["arrived" if goal else "all_taken"]).format(goal=goal)

    def _won_at(self, state: BreakthroughState) -> str | None:
        """The cell of the far row on which the game ended."""
        arrived = state.black & self.tables.goals[0] | state.white & self.tables.goals[1]
        return self.tables.names(arrived)[0] if arrived else None

    def content(self, text: str) -> list[str]:
        """Moves and where they ended, in order; sides with their pawns."""
        sides = re.findall(rf"(black on|white on|white stands on|black stands on|free) ((?:{_CELL} ?)+|none)", text)
        turn = re.findall(r"(black|white) (?:is )?to move", text)
        named = sorted(f"{side.split()[0]} {cells.strip()}" for side, cells in sides)
        return [*named, *turn, *re.findall(rf"{_MOVE}|(?<=at ){_CELL}|(?<=reaches ){_CELL}", text)]

    # -- positions for the corpus --------------------------------------------------------------------------------------
    def wander(self, rng: random.Random) -> Callable[[BreakthroughState], int]:
        """Half of the games are uniformly random. They end with most pawns still there, so in the others a capture, any
        one, is preferred with a probability that is drawn for each game: positions with few pawns come up, too."""
        if rng.random() < 0.5:
            return super().wander(rng)
        eager = rng.random()

        def choose(state: BreakthroughState) -> int:
            captures = tactics.captures(self.tables, state, state.player)
            return rng.choice(captures if captures and rng.random() < eager else self.game.legal_actions(state))

        return choose

    # -- words ---------------------------------------------------------------------------------------------------------
    def atom_texts(self) -> list[str]:
        """Of this board's size; a larger board's are spelt."""
        moves = {text for texts in self.tables.move_texts for _, *both in texts.values() for text in both}
        return [f" {text}" for text in (*self.tables.cell_names, *sorted(moves), "black", "white", "10")]
