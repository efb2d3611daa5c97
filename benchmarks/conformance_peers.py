"""TextArena's and gem's games as `TextEnv`s, for `conformance.py`. Thin: no rule and no text is changed on the way."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

from nlrl.envs.testing import Frame, NotApplicable, TextEnv


# -- TextArena ---------------------------------------------------------------------------------------------------------
class TextArenaEnv(TextEnv):
    """A TextArena environment as `textarena.make` gives it, default wrappers included."""

    players = 2

    def __init__(self, env_id: str):
        import textarena

        self.env = textarena.make(env_id)

    def reset(self, seed: int | None) -> Frame:
        self.env.reset(num_players=self.players, seed=seed)
        return self._frame(False)

    def step(self, reply: str) -> Frame:
        done, _ = self.env.step(reply)  # one flag: TextArena does not tell a cut from an end
        return self._frame(done)

    def _frame(self, done: bool) -> Frame:
        player, shown = self.env.get_observation()
        rewards = self.env.close()[0] if done else {}
        return Frame(player, str(shown), tuple(rewards[seat] for seat in sorted(rewards)), terminated=done)

    @property
    def board(self) -> dict[str, Any]:
        return self.env.state.game_state

    def position(self) -> str:
        return repr(self.board)

    def illegal(self) -> Sequence[str]:
        return ["nonsense", "[99]"]


class TicTacToe(TextArenaEnv):
    chance = False

    def moves(self) -> Sequence[str]:
        cells = [cell for row in self.board["board"] for cell in row]
        return [f"[{number}]" for number, cell in enumerate(cells) if not cell]


class ConnectFour(TextArenaEnv):
    chance = False

    def moves(self) -> Sequence[str]:
        return [f"[{column}]" for column, top in enumerate(self.board["board"][0]) if top == "."]


class Breakthrough(TextArenaEnv):
    """Moves are those that the environment itself calls valid; OpenSpiel, if there, plays the same game beside it."""

    chance = False

    def reset(self, seed: int | None) -> Frame:
        frame = super().reset(seed)
        self._other = openspiel_breakthrough(self.env.board_size, self.env.board_size)
        return frame

    def step(self, reply: str) -> Frame:
        if self._other is not None and reply in (legal := self._legal_elsewhere()):
            self._other.apply_action(legal[reply])
        return super().step(reply)

    def moves(self) -> Sequence[str]:
        size, player = self.env.board_size, self.env.state.current_player_id
        ahead = 1 if player == 0 else -1
        squares = [(row, column) for row in range(size) for column in range(size)]
        steps = [(r, c, r + ahead, c + side) for r, c in squares for side in (-1, 0, 1)]
        inside = [step for step in steps if 0 <= step[2] < size and 0 <= step[3] < size]
        return [_breakthrough_move(*step) for step in inside if self.env._is_valid_move(player, *step)]

    def illegal(self) -> Sequence[str]:
        return ["nonsense", "[a1a5]", "[z9z8]"]

    def legal_by_the_rules(self) -> Sequence[str]:
        if self._other is None:
            raise NotApplicable("OpenSpiel is not installed, or has no board of this size and filling")
        return list(self._legal_elsewhere())

    def _legal_elsewhere(self) -> dict[str, int]:
        """OpenSpiel's moves in TextArena's notation: there, who moves first starts at the top."""
        found, size = {}, self.env.board_size
        for action in self._other.legal_actions():
            start, rank, end, to = self._other.action_to_string(action)[:4]
            found[f"[{start}{size + 1 - int(rank)}{end}{size + 1 - int(to)}]"] = action
        return found


def _breakthrough_move(row: int, column: int, to_row: int, to_column: int) -> str:
    return f"[{'abcdefghij'[column]}{row + 1}{'abcdefghij'[to_column]}{to_row + 1}]"


def openspiel_breakthrough(rows: int, columns: int) -> Any:
    """OpenSpiel's start of the same board, or None; below 6 rows it fills one row a side instead of two."""
    try:
        import pyspiel
    except ImportError:
        return None
    if not 6 <= rows <= 8:
        return None
    return pyspiel.load_game("breakthrough", {"rows": rows, "columns": columns}).new_initial_state()


class KuhnPoker(TextArenaEnv):
    def moves(self) -> Sequence[str]:
        return [f"[{move}]" for move in self.board["current_legal_action_tree"]]

    def views(self) -> Sequence[str]:
        """All that was ever addressed to each player: what it was shown and what waits for it."""
        wrapper, state = self.env, self.env.state
        while not hasattr(wrapper, "full_observations"):
            wrapper = wrapper.env
        return [
            "\n".join(message for _, message, _ in [*wrapper.full_observations.get(player, []), *waiting])
            for player, waiting in sorted(state.observations.items())
        ]

    def secrets(self) -> Sequence[str]:
        cards, number = self.board["player_cards"], self.board["current_round"]
        name = self.env._rank_to_str
        start = f"### Starting round {number} out of {self.env.max_rounds} rounds. Your card is: "
        return [f"{start}'{name(cards[player])}'" for player in (0, 1)]


class SinglePlayer(TextArenaEnv):
    players = 1


class FrozenLake(SinglePlayer):
    _WAYS = (("up", -1, 0), ("down", 1, 0), ("left", 0, -1), ("right", 0, 1))

    def _targets(self) -> dict[str, str]:
        """Moves that stay on the grid -> what is there."""
        (row, column), grid = self.board["player_pos"], self.board["grid"]
        cells = {f"[{way}]": (row + down, column + right) for way, down, right in self._WAYS}
        inside = {way: (r, c) for way, (r, c) in cells.items() if 0 <= r < len(grid) and 0 <= c < len(grid)}
        return {way: grid[r][c] for way, (r, c) in inside.items()}

    def moves(self) -> Sequence[str]:
        return list(self._targets())

    def stalling_reply(self) -> str:
        return next(way for way, cell in self._targets().items() if cell not in "HG")


class GuessTheNumber(SinglePlayer):
    def moves(self) -> Sequence[str]:
        numbers = range(self.env.min_number, self.env.max_number + 1)
        return [f"[{number}]" for number in numbers if number not in self.env.guessed_numbers]

    def stalling_reply(self) -> str:
        return next(move for move in self.moves() if move != f"[{self.env.game_number}]")


# -- gem ---------------------------------------------------------------------------------------------------------------
class GemEnv(TextEnv):
    """A gem environment as `gem.make` gives it; an observation is its text and the suffix that goes with it."""

    def __init__(self, env_id: str):
        import gem

        self.env_id, self.env = env_id, gem.make(env_id)

    def reset(self, seed: int | None) -> Frame:
        text, info = self.env.reset(seed=seed)
        return Frame(0, _gem_text(text, info))

    def step(self, reply: str) -> Frame:
        text, reward, terminated, truncated, info = self.env.step(reply)
        return Frame(0, _gem_text(text, info), (float(reward),), bool(terminated), bool(truncated))

    def illegal(self) -> Sequence[str]:
        return ["nonsense", "\\boxed{nonsense}"]

    def final_observation(self, seed: int, replies: Sequence[str]) -> str | None:
        """gem's vector environment resets in the step that ends a game; Gymnasium's name for what it should keep."""
        import gem

        with contextlib.redirect_stdout(io.StringIO()):
            vector = gem.make_vec([self.env_id])
        vector.reset(seed=[seed])
        shown: str | None = None
        for reply in replies:
            texts, _, _, _, infos = vector.step([reply])
            kept = infos[0].get("final_observation", infos[0].get("final_obs"))
            shown = kept if kept is not None else _gem_text(texts[0], infos[0])
        return shown


def _gem_text(text: str, info: dict[str, Any]) -> str:
    return text + info.get("suffix", "")


def _boxed(inner: object) -> str:
    return f"\\boxed{{{inner}}}"


class GemGuessTheNumber(GemEnv):
    def moves(self) -> Sequence[str]:
        numbers = range(self.env.min_number, self.env.max_number + 1)
        return [_boxed(number) for number in numbers if number not in self.env.previous_guesses]

    def position(self) -> Any:
        return self.env.game_number, frozenset(self.env.previous_guesses)

    def stalling_reply(self) -> str:
        return next(move for move in self.moves() if move != _boxed(self.env.game_number))


class GemMastermind(GemEnv):
    def moves(self) -> Sequence[str]:
        codes = permutations(range(1, self.env.num_numbers + 1), self.env.code_length)
        return [_boxed(" ".join(map(str, code))) for code in codes if code not in self.env.previous_guesses]

    def position(self) -> Any:
        return tuple(self.env.game_code), frozenset(self.env.previous_guesses)

    def stalling_reply(self) -> str:
        return next(move for move in self.moves() if move != _boxed(" ".join(map(str, self.env.game_code))))


class GemMinesweeper(GemEnv):
    def moves(self) -> Sequence[str]:
        cells = [(row, column) for row in range(self.env.rows) for column in range(self.env.cols)]
        hidden = [(r, c) for r, c in cells if not self.env.revealed[r][c] and not self.env.flags[r][c]]
        return [_boxed(f"reveal {row} {column}") for row, column in hidden]

    def position(self) -> Any:
        return repr((self.env.grid, self.env.revealed, self.env.flags))

    def stalling_reply(self) -> str:
        return _boxed("flag 0 0")  # puts a flag there and takes it away again


class Gem2048(GemEnv):
    def moves(self) -> Sequence[str]:
        return [_boxed(way) for way in ("up", "down", "left", "right")]

    def position(self) -> Any:
        return repr(self.env.board)


class GemTowerOfHanoi(GemEnv):
    chance = False

    def moves(self) -> Sequence[str]:
        towers = self.env.board
        pairs = [(a, b) for a in sorted(towers) for b in sorted(towers) if towers[a]]
        fitting = [(a, b) for a, b in pairs if not towers[b] or towers[a][-1] < towers[b][-1]]
        return [_boxed(f"{a} {b}") for a, b in fitting]

    def position(self) -> Any:
        return repr(self.env.board)

    def stalling_reply(self) -> str:
        return _boxed("A B") if 1 in self.env.board["A"] else _boxed("B A")


PEERS: dict[str, dict[str, Callable[[str], TextEnv]]] = {
    "textarena": {
        "TicTacToe-v0": TicTacToe,
        "TicTacToe-v0-train": TicTacToe,
        "ConnectFour-v0": ConnectFour,
        "Breakthrough-v0": Breakthrough,
        "KuhnPoker-v0": KuhnPoker,
        "FrozenLake-v0": FrozenLake,
        "GuessTheNumber-v0": GuessTheNumber,
    },
    "gem": {
        "game:GuessTheNumber-v0-hard": GemGuessTheNumber,
        "game:Mastermind-v0-hard": GemMastermind,
        "game:Minesweeper-v0-easy": GemMinesweeper,
        "game:Game2048-v0-easy": Gem2048,
        "game:TowerofHanoi-v0-easy": GemTowerOfHanoi,
    },
}
"""Package -> its environments and their wrappers."""
