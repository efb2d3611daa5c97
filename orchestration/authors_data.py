"""The Breakthrough data of the paper's authors, line by line (their repository's formats; arXiv 2411.14251).

    trajectory   state, action, reward, turn, serializad_state   a game from some position to its end
    look-ahead   current_state, current_serializad_state, pv     a few games of a few moves from one position
    label        state_turn, win, win_rate                       the mean of black's results in 30 games
    state        serializad_state                                one position
    chat         three messages, the last one an evaluation      what their critic learned
    target       raw_data (a look-ahead) and such a chat         what their teacher made of it

`serializad_state` is misspelt in all their files. A position is OpenSpiel's drawing (`5bbbbb`, ..., ` abcde`), or its
cells in a row from the top left with 0 (black moves) or 1 behind; the end of a game is the words "Terminal State."
instead. Rewards are [black's, white's].

Nothing is believed: positions are read and moves are made by our rules, and what does not fit is `Unfit` with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from nlrl.agents.headings import parse_advantage
from nlrl.agents.language import Line
from nlrl.agents.parser import ParseFailure
from nlrl.envs.breakthrough import Breakthrough, BreakthroughState

TERMINAL = "Terminal State."
PLACEHOLDER = "This is the terminal state."
"""What stands for the evaluation of a finished game."""
_TURN = re.compile(r"\bIt is (black|white)'s turn", re.IGNORECASE)


class Unfit(Exception):
    """A line that cannot be used.

    Args:
        reason: one of few, to be counted.
        detail: what exactly.
    """

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class LookAhead(NamedTuple):
    """Lines from one position, and what their critic said of where each leads ("" if nothing)."""

    state: BreakthroughState
    lines: tuple[Line, ...]
    evaluations: tuple[str, ...]


class Label(NamedTuple):
    """A position and black's mean result, in [-1, 1]."""

    state: BreakthroughState
    black: float


class Text(NamedTuple):
    """An evaluation of a position, and the messages that asked for it, if they are there."""

    state: BreakthroughState
    messages: tuple[tuple[str, str], ...]
    text: str
    advantage: int
    """The player whose tag it ends with."""


class AuthorsData:
    """Reads values of their JSON lines for one board.

    All methods raise `Unfit`.
    """

    def __init__(self, game: Breakthrough):
        self.game = game
        letters = game.board.letters.replace(" ", "")
        rows = "".join(rf"{game.rows - row}[bw.]{{{game.columns}}}\n" for row in range(game.rows))
        self._drawing = re.compile(rf"{rows} {letters}")

    def kind(self, value: Any) -> str:
        """Which of the formats a value has."""
        if isinstance(value, list):
            return "chat"
        keys = value.keys() if isinstance(value, dict) else set()
        for kind, needed in (
            ("trajectory", {"action", "reward", "turn", "serializad_state"}),
            ("lookahead", {"current_serializad_state", "pv"}),
            ("label", {"state_turn", "win_rate"}),
            ("target", {"raw_data", "prompt"}),
            ("state", {"serializad_state"}),
        ):
            if needed <= keys:
                return kind
        raise Unfit("unknown format", f"keys {', '.join(sorted(keys)) or 'none'}")

    def position(self, serialised: Any) -> BreakthroughState:
        """A position from its cells and the digit of the player."""
        cells = self.game.rows * self.game.columns
        if not isinstance(serialised, str) or not re.fullmatch(rf"[bw.]{{{cells}}}[01]", serialised):
            raise Unfit("bad position", repr(serialised)[:60])
        sides = {mark: sum(1 << i for i, c in enumerate(serialised[:-1]) if c == mark) for mark in "bw"}
        state = BreakthroughState(sides["b"], sides["w"], int(serialised[-1]))
        problem = self.game.board.problem(state.black, state.white, self.game.pawn_rows * self.game.columns)
        if problem is None and self.game.board.winner(state.black, state.white) is not None:
            problem = "the game is over"
        if problem:
            raise Unfit("bad position", f"{serialised}: {problem}")
        return state

    def drawn(self, drawing: Any, player: Any) -> BreakthroughState:
        """A position from its drawing."""
        if not isinstance(drawing, str) or not self._drawing.fullmatch(drawing.rstrip("\n")) or player not in (0, 1):
            raise Unfit("bad position", repr((drawing, player))[:60])
        rows = drawing.split("\n")[: self.game.rows]
        return self.position("".join(row[1:] for row in rows) + str(player))

    def trajectory(self, value: dict[str, Any]) -> Line:
        """A finished game."""
        line = self._line(value)
        if not self.game.is_terminal(line.states[-1]):
            raise Unfit("unfinished game", f"{len(line.actions)} moves")
        return line

    def lookahead(self, value: dict[str, Any]) -> LookAhead:
        state = self.position(value["current_serializad_state"])
        self._same(state, self.drawn(value.get("current_state"), state.player))
        pieces = value["pv"]
        if not isinstance(pieces, list) or not pieces:
            raise Unfit("no look-aheads")
        lines = tuple(self._line(piece) for piece in pieces)
        for line, piece in zip(lines, pieces, strict=True):
            self._same(line.states[0], state)
            self._check_end(line, piece.get("final_state"))
        said = tuple(str((piece.get("final_state") or {}).get("eval") or "") for piece in pieces)
        return LookAhead(state, lines, tuple("" if text == PLACEHOLDER else text for text in said))

    def label(self, value: dict[str, Any]) -> Label:
        drawing, player = self._pair(value["state_turn"])
        black = value["win_rate"]
        if not isinstance(black, int | float) or not -1 <= black <= 1:
            raise Unfit("bad label", f"win_rate {black!r}")
        if value.get("win") != ("black" if black >= 0 else "white"):
            raise Unfit("bad label", f"win {value.get('win')!r} at win_rate {black!r}")
        return Label(self.drawn(drawing, player), float(black))

    def chat(self, value: Any) -> Text:
        """Messages whose last one is the evaluation; the position is the last that the user shows."""
        messages = self._messages(value)
        asked = " ".join(content for role, content in messages[:-1] if role == "user")
        drawings, turns = self._drawing.findall(asked), _TURN.findall(asked)
        if not drawings or not turns:
            raise Unfit("no position in the prompt", asked[:60])
        if len(set(drawings)) > 1:
            raise Unfit("several positions in the prompt", f"{len(set(drawings))}")
        player = self.game.player_names.index(turns[-1].lower())
        return self._text(self.drawn(drawings[-1], player), messages[-1][1], messages[:-1])

    def target(self, value: dict[str, Any]) -> Text:
        """What a teacher said of a position that it saw with look-aheads: the answer alone is learned."""
        raw = value["raw_data"]
        if not isinstance(raw, dict) or "current_serializad_state" not in raw:
            raise Unfit("unknown format", "raw_data is no look-ahead")
        state = self.position(raw["current_serializad_state"])
        return self._text(state, self._messages(value["prompt"])[-1][1], ())

    def evaluation(self, state: BreakthroughState, text: str) -> Text:
        """What their critic said of a position."""
        return self._text(state, text, ())

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _line(self, value: Any) -> Line:
        fields = ("serializad_state", "action", "turn", "reward")
        if not isinstance(value, dict) or not all(isinstance(value.get(name), list) for name in fields):
            raise Unfit("unknown format", "a line of play without its lists")
        positions, actions, turns, rewards = (value[name] for name in fields)
        if not actions or not len(positions) - 1 == len(actions) == len(turns) == len(rewards):
            counts = ", ".join(f"{len(value[name])} {name}" for name in fields)
            raise Unfit("lists of different length", counts)
        drawings = value.get("state") or [None] * len(positions)
        states = [self.position(positions[0])]
        made = []
        for index, text in enumerate(actions):
            if turns[index] != states[-1].player:
                raise Unfit("wrong turn", f"move {index + 1} by player {turns[index]!r}")
            made.append(self._move(states[-1], text, index))
            states.append(self.game.apply(states[-1], made[-1]).state)
            self._check_successor(states[-1], positions[index + 1], rewards[index], last=index + 1 == len(actions))
        for state, drawing in zip(states, drawings, strict=False):
            if drawing not in (None, TERMINAL):
                self._same(state, self.drawn(drawing, state.player))
        return Line(tuple(states), tuple(made))

    def _move(self, state: BreakthroughState, text: Any, index: int) -> int:
        action = self.game.parse_action(state, text) if isinstance(text, str) else None
        if action is None:
            raise Unfit("illegal move", f"move {index + 1}, {text!r}")
        return action

    def _check_successor(self, state: BreakthroughState, said: Any, reward: Any, last: bool) -> None:
        over = self.game.is_terminal(state)
        if over != (said == TERMINAL) or (over and not last):
            raise Unfit("wrong end", f"{said!r} where the game {'is over' if over else 'goes on'}")
        if not over:
            self._same(state, self.position(said))
        if not isinstance(reward, list) or reward != list(self.game.returns(state)):
            raise Unfit("wrong reward", f"{reward!r} instead of {list(self.game.returns(state))}")

    def _check_end(self, line: Line, final: Any) -> None:
        if not isinstance(final, dict):
            raise Unfit("unknown format", "a look-ahead without its final_state")
        if self.game.is_terminal(line.states[-1]):
            if final.get("state") != TERMINAL:
                raise Unfit("wrong end", "final_state goes on where the game is over")
        else:
            self._same(line.states[-1], self.drawn(final.get("state"), final.get("turn")))

    def _same(self, one: BreakthroughState, other: BreakthroughState) -> None:
        if one != other:
            raise Unfit("positions differ", f"{serialised(self.game, one)} and {serialised(self.game, other)}")

    def _pair(self, value: Any) -> tuple[Any, Any]:
        if not isinstance(value, list) or len(value) != 2:
            raise Unfit("bad position", repr(value)[:60])
        return value[0], value[1]

    def _messages(self, value: Any) -> tuple[tuple[str, str], ...]:
        ok = isinstance(value, list) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
        if not ok or len(value) < 2 or value[-1]["role"] != "assistant":
            raise Unfit("no answer", "messages whose last is not the assistant's")
        return tuple((str(m["role"]), str(m["content"])) for m in value)

    def _text(self, state: BreakthroughState, text: str, messages: Sequence[tuple[str, str]]) -> Text:
        side = parse_advantage(text, self.game.player_names)
        if isinstance(side, ParseFailure):
            raise Unfit(f"unreadable evaluation: {side.reason}", side.detail)
        return Text(state, tuple(messages), text.strip(), side)


def serialised(game: Breakthrough, state: BreakthroughState) -> str:
    """A position as they write it in a row: cells from the top left, then the player."""
    marks = {0: ".", 1: "b", 2: "w"}
    cells = range(game.rows * game.columns)
    return "".join(marks[state.black >> i & 1 | (state.white >> i & 1) << 1] for i in cells) + str(state.player)


def drawing(game: Breakthrough, state: BreakthroughState) -> str:
    """A position as they draw it, which is as OpenSpiel does."""
    row, columns = serialised(game, state), game.columns
    lines = [f"{game.rows - r}{row[r * columns : (r + 1) * columns]}" for r in range(game.rows)]
    return "\n".join([*lines, " " + game.board.letters.replace(" ", ""), ""])
