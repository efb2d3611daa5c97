"""FrozenLake in words: what lies around, where steps may slide, retold walks.

Rows and columns are counted from 1, as people count them and as pictures of lakes show them.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from nlrl.agents.language import FIRST, GameLanguage, Line, Picker
from nlrl.agents.walks import Cell, listed, place, way
from nlrl.envs.frozen_lake import ACTIONS, FrozenLake, FrozenLakeState, lake_of, neighbour

LETTERS = "LDRU"
"""An action's letter in a retold walk; `R>D` wanted right and slid down."""
TILES = {"F": "ice", "S": "ice", "H": "hole", "G": "goal"}
EDGE = "edge"
_WITH_ARTICLES = {"ice": "ice", "hole": "a hole", "goal": "the goal", EDGE: "the edge"}
_ROW_OF_HOLES = re.compile(r"row (\d+) (?:in|at) ([\d ]+)")


def cell_of(state: FrozenLakeState) -> Cell:
    """(row, column) of the player, from 1."""
    return place_of(state.map, state.cell)


def place_of(map_: str, cell: int) -> Cell:
    """(row, column) of a cell of a map, from 1."""
    row, column = divmod(cell, lake_of(map_).columns)
    return row + 1, column + 1


def beside(state: FrozenLakeState, direction: int) -> str:
    """What lies next to the player: ice, hole, goal or edge."""
    lake = lake_of(state.map)
    there = neighbour(lake, state.cell, direction)
    return EDGE if there == state.cell else TILES[lake.tiles[there]]


def slides(action: int, slippery: bool) -> tuple[int, ...]:
    """The directions that an action may take the player in, the wanted one first."""
    return (action, (action - 1) % 4, (action + 1) % 4) if slippery else (action,)


@lru_cache(maxsize=1 << 14)
def goals_of(map_: str) -> tuple[Cell, ...]:
    """Where the goals of a map are, from 1."""
    return tuple(place_of(map_, cell) for cell, tile in enumerate(lake_of(map_).tiles) if tile == "G")


class FrozenLakeLanguage(GameLanguage):
    """Sentences of `agents/phrases/frozen_lake.toml`, filled in by the rules.

    A walk scores +1 at the goal and -1 in a hole or when it is cut, so +0.50 says a chance of three in four to arrive.
    """

    game: FrozenLake
    atoms = (
        r"[_OGSPX√](?:[ \n]|$)",  # a cell of the board
        r" ?\b[LDRU](?:>[LDRU])?(?![\w>])",  # a step
        r" ?\b(?:left|down|right|up)\b",
        r" ?\b(?:ice|hole|goal|edge)\b",
    )

    @property
    def setting(self) -> str:  # type: ignore[override]
        return "slippery ice" if self.game.slippery else "firm ice"

    # -- what the rules say --------------------------------------------------------------------------------------------
    def facts(self, state: FrozenLakeState, pick: Picker = FIRST) -> str:
        return pick.choice(self.phrases["facts"]["state"]).format(**self._around(state))

    def facts_after(self, state: FrozenLakeState, action: int, pick: Picker = FIRST) -> str:
        if self.game.slippery:
            ways = [f"{ACTIONS[d]} to {_WITH_ARTICLES[beside(state, d)]}" for d in slides(action, True)]
            fields = {"ways": listed(ways, "or"), "goal": self._way_to_goal(state)}
            return pick.choice(self.phrases["facts"]["slides"]).format(me=self.player(state), **fields)
        after = self.game.apply(state, action).state
        tile = lake_of(after.map).tiles[after.cell]
        kind = {"G": "arrived", "H": "drowned"}.get(tile, "stays" if after == state else "after")
        return pick.choice(self.phrases["facts"][kind]).format(**self._around(after))

    def _around(self, state: FrozenLakeState) -> dict[str, Any]:
        tiles = {name: beside(state, direction) for direction, name in enumerate(ACTIONS)}
        where = {"place": place(cell_of(state)), "goal": self._way_to_goal(state)}
        return {"me": self.game.player_names[0], **tiles, **where}

    def _way_to_goal(self, state: FrozenLakeState) -> str:
        """To the goal that is nearest as the crow flies, the first of those in reading order."""
        row, column = here = cell_of(state)
        nearest = min(goals_of(state.map), key=lambda goal: abs(goal[0] - row) + abs(goal[1] - column))
        return way(here, nearest)

    def read(self, state: FrozenLakeState, pick: Picker = FIRST) -> str:
        return pick.choice(self.phrases["reader"]["board"]).format(
            me=self.game.player_names[0],
            place=place(cell_of(state)),
            goals=listed([place(goal) for goal in goals_of(state.map)]),
            holes=self._holes(state.map),
        )

    def _holes(self, map_: str) -> str:
        """`row 2 in 2 4, row 3 in 4`: the columns of the holes, row by row."""
        lake, rows = lake_of(map_), []
        for row in range(lake.rows):
            tiles = lake.tiles[row * lake.columns : (row + 1) * lake.columns]
            columns = [str(column + 1) for column, tile in enumerate(tiles) if tile == "H"]
            if columns:
                rows.append(f"row {row + 1} in {' '.join(columns)}")
        return ", ".join(rows) or "none"

    # -- what was played -----------------------------------------------------------------------------------------------
    def moves(self, line: Line) -> str:
        text = " ".join(self._step(line, at) for at in range(len(line.actions)))
        return f"{text}, {self.result(line.end)}" if self.game.is_terminal(line.end) else text

    def result(self, state: FrozenLakeState) -> str:
        """How a walk that ended here ended."""
        return "reached the goal" if self.game.returns(state)[0] > 0 else "fell into a hole"

    def cut(self, line: Line) -> str:
        return f"{self.moves(line)}, out of steps"

    def _step(self, line: Line, at: int) -> str:
        wanted, went = line.actions[at], self._went(line, at)
        return LETTERS[wanted] if wanted == went else f"{LETTERS[wanted]}>{LETTERS[went]}"

    def _went(self, line: Line, at: int) -> int:
        """The direction in which a step took the player: the wanted one, wherever that explains it."""
        before, after, wanted = line.states[at], line.states[at + 1], line.actions[at]
        ways = slides(wanted, self.game.slippery)
        return next((d for d in ways if neighbour(lake_of(before.map), before.cell, d) == after.cell), wanted)

    def forfeit_score(self, line: Line, player: int = 0) -> float:
        return -1.0

    def score_at(self, state: FrozenLakeState, steps: int, player: int = 0) -> float:
        return 1.0 if self.game.returns(state)[0] > 0 else -1.0

    def verdict_of_value(self, value: float, state: FrozenLakeState) -> float:
        """Of a chance to arrive."""
        return self.score_at(state, 0) if self.game.is_terminal(state) else 2 * value - 1

    def retell(self, line: Line, pick: Picker = FIRST) -> str:
        phrases, parts = self.phrases["retell"], []
        for at, wanted in enumerate(line.actions):
            went = self._went(line, at)
            slid = "" if went == wanted else phrases["slip"].format(way=ACTIONS[went])
            template = pick.choice(phrases["opening" if at == 0 else "next"])
            parts.append(template.format(me=self.game.player_names[0], way=ACTIONS[wanted]) + slid)
        ending = "unfinished" if not self.game.is_terminal(line.end) else "won" if self.score(line) > 0 else "lost"
        return "".join(parts) + pick.choice(phrases[ending])

    def content(self, text: str) -> list[str]:
        """Places, holes by row, steps and how they end, in order where order matters."""
        holes = [f"{row}:{columns.strip()}" for row, columns in _ROW_OF_HOLES.findall(text)]
        goal = re.search(r"goals? (?:is|are|lies?) (?:in|at) (row \d+, column \d+)", text)
        me = re.search(r"player (?:is|stands) (?:in|on) (row \d+, column \d+)", text)
        steps = re.findall(r"\b(?:goes|steps|then|and) (left|down|right|up)|slips (left|down|right|up)", text)
        ends = [word for word in ("goal", "hole") if re.search(rf"\b(?:into|in|reaches|at) (?:the|a) {word}", text)]
        places = [f"{name} {found[1]}" for name, found in (("goal", goal), ("me", me)) if found]
        return [*places, *holes, *(f"{wanted}>{slid}" for wanted, slid in steps), *ends]

    def atom_texts(self) -> list[str]:
        cells = [f"{symbol}{gap}" for symbol in "_OGSPX√" for gap in (" ", "\n", "")]
        steps = [f" {letter}" for letter in LETTERS]
        slips = [f" {LETTERS[a]}>{LETTERS[d]}" for a in range(4) for d in slides(a, True)[1:]]
        return cells + steps + slips + [f" {word}" for word in (*ACTIONS, "ice", "hole", "goal", EDGE)]
