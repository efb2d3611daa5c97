"""FrozenLake: walk over ice to the goal and fall into no hole, with Gymnasium's dynamics.

1. A *map* is rows of tiles joined by "/", in Gymnasium's letters: S start, F frozen, H hole, G goal. A *cell* is
   row * columns + column, row 0 on top. A state is a map and the player's cell, so that one game can hold many maps.
2. The actions left, down, right and up (0 to 3) are legal everywhere. Slippery ice takes the player where it wanted or
   to either side of that, each with probability 1/3, never back. Against the edge it stays where it is.
3. The goal pays 1 and a hole nothing; both end the game. Otherwise it is cut after `max_steps` actions, unpaid.
4. In text `_` is ice, `O` a hole, `G` the goal, `S` the start and `P` the player; `X` is the player in a hole, `√` the
   player on the goal. Where no `S` is shown, the player stands on it.
5. Random maps follow RAGEN's rule: every cell is safe with probability 0.8, then start and goal are put on two random
   cells, and all is drawn again unless a path of any length joins them (it may be longer than `max_steps`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from nlrl.envs.game import Game, Step
from nlrl.envs.random import Rng

ACTIONS = ("left", "down", "right", "up")
DIRECTIONS = ((0, -1), (1, 0), (0, 1), (-1, 0))
"""What each action does to (row, column)."""
LAYOUTS = {
    "4x4": "SFFF/FHFH/FFFH/HFFG",
    "8x8": "SFFFFFFF/FFFFFFFF/FFFHFFFF/FFFFFHFF/FFFHFFFF/FHHFFFHF/FHFFHFHF/FFFHFFFG",
}
"""Gymnasium's two maps."""
SAFE = 0.8
"""Probability that a cell of a random map is no hole."""
MAX_SIDE = 16
_ENDS = "GH"
_SYMBOLS = {"F": "_", "S": "S", "H": "O", "G": "G"}
_PLAYER = {"F": "P", "S": "P", "H": "X", "G": "√"}
_TILES = {"_": "F", "S": "S", "O": "H", "G": "G", "P": "F", "X": "H", "√": "G"}


class FrozenLakeState(NamedTuple):
    """Where the player is on which map, e.g. `("SFFF/FHFH/FFFH/HFFG", 0)`."""

    map: str
    cell: int


class Lake(NamedTuple):
    """A map taken apart: its size, its tiles cell by cell, and the cell of the start."""

    rows: int
    columns: int
    tiles: str
    start: int


@lru_cache(maxsize=1 << 14)
def lake_of(map_: str) -> Lake:
    """The lake that a well-formed map draws."""
    tiles = map_.replace("/", "")
    rows = map_.count("/") + 1
    return Lake(rows, len(tiles) // rows, tiles, tiles.index("S"))


def neighbour(lake: Lake, cell: int, direction: int) -> int:
    """The cell next to `cell` in the direction of an action; `cell` itself at the edge."""
    row, column = divmod(cell, lake.columns)
    row, column = row + DIRECTIONS[direction][0], column + DIRECTIONS[direction][1]
    return row * lake.columns + column if 0 <= row < lake.rows and 0 <= column < lake.columns else cell


def reachable(lake: Lake) -> frozenset[int]:
    """The cells that a player can come to, holes and goals included."""
    seen, waiting = {lake.start}, [lake.start]
    while waiting:
        cell = waiting.pop()
        if lake.tiles[cell] not in _ENDS:
            new = {neighbour(lake, cell, direction) for direction in range(4)} - seen
            seen |= new
            waiting += new
    return frozenset(seen)


@lru_cache(maxsize=1 << 14)
def _play(state: FrozenLakeState, action: int, slippery: bool) -> tuple[Step[FrozenLakeState], ...]:
    """The outcomes of an action in a state that is not terminal; slides to the same cell are one outcome."""
    lake = lake_of(state.map)
    directions = [(action + turn) % 4 for turn in ((-1, 0, 1) if slippery else (0,))]
    cells = [neighbour(lake, state.cell, direction) for direction in directions]
    return tuple(
        Step(cells.count(cell) / len(cells), FrozenLakeState(state.map, cell), (float(lake.tiles[cell] == "G"),))
        for cell in dict.fromkeys(cells)
    )


class FrozenLake(Game[FrozenLakeState]):
    """A lake of one map, or of many; the return is 1 if the player reaches the goal, else 0.

    `layout`: `4x4` or `8x8` (Gymnasium's), `random`, or the rows of a map joined by "/" or by line ends.
    `slippery`: whether the player may slide to the side of where it wants to go.
    `max_steps`: actions until the game is cut; None is 10, and in proportion more for lakes larger than 4x4.
    `size`, `maps`, `seed`: only with `random`: the side of the maps (None is 4), how many *different* ones (None is
    100) and which (None is 0). Every game starts on one of them, each as likely. Being different, they hold fewer maps
    without holes than independent draws (`random_map`), of which 2% of 2,000 and 13% of 20,000 are repeats (4x4).

    Raises:
        ValueError: an unknown layout, a malformed map, or a number out of its range.
    """

    name = "frozen_lake"
    num_players = 1
    num_actions = 4
    value_range = (0.0, 1.0)
    player_names = ("player",)

    def __init__(
        self,
        layout: str = "4x4",
        slippery: bool = True,
        max_steps: int | None = None,
        size: int | None = None,
        maps: int | None = None,
        seed: int | None = None,
    ):
        self._params: dict[str, Any] = {"layout": layout, "slippery": slippery}
        if layout == "random":
            self._params |= {"size": _default(size, 4), "maps": _default(maps, 100), "seed": _default(seed, 0)}
            found = random_maps(self._params["size"], self._params["maps"], self._params["seed"])
        else:
            _refuse_random_only(layout, size=size, maps=maps, seed=seed)
            found = (LAYOUTS.get(layout) or _read_layout(layout),)
            self._params["layout"] = layout if layout in LAYOUTS else found[0]
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, not {max_steps}")
        self._starts: tuple[FrozenLakeState, ...] = tuple(FrozenLakeState(map_, lake_of(map_).start) for map_ in found)
        self._maps = frozenset(found)
        lake = lake_of(found[0])
        self.max_length = _default(max_steps, max(10, 5 * (lake.rows + lake.columns) // 4))
        self.slippery = slippery

    @property
    def params(self) -> dict[str, Any]:
        return {**self._params, "max_steps": self.max_length}

    # -- rules ---------------------------------------------------------------------------------------------------------
    def initial_states(self) -> tuple[FrozenLakeState, ...]:
        return self._starts

    def current_player(self, state: FrozenLakeState) -> int:
        return -1 if self.is_terminal(state) else 0

    def legal_actions(self, state: FrozenLakeState) -> tuple[int, ...]:
        return () if self.is_terminal(state) else (0, 1, 2, 3)

    def transitions(self, state: FrozenLakeState, action: int) -> tuple[Step[FrozenLakeState], ...]:
        legal = self.legal_actions(state)
        if action not in legal:
            raise ValueError(f"action {action!r} is illegal in {state}; legal: {legal}")
        return _play(state, action, self.slippery)

    def is_terminal(self, state: FrozenLakeState) -> bool:
        return self._tile(state) in _ENDS

    def returns(self, state: FrozenLakeState) -> tuple[float, ...]:
        return (float(self._tile(state) == "G"),)

    def _tile(self, state: FrozenLakeState) -> str:
        """What the player stands on."""
        if not isinstance(state, FrozenLakeState) or state.map not in self._maps:
            raise ValueError(f"{state!r} is not a state of {self.spec}")
        tiles = lake_of(state.map).tiles
        if not 0 <= state.cell < len(tiles):
            raise ValueError(f"{state!r}: the cells of this map are 0 to {len(tiles) - 1}")
        return tiles[state.cell]

    # -- text and pictures ---------------------------------------------------------------------------------------------
    def to_text(self, state: FrozenLakeState) -> str:
        player, lake = _PLAYER[self._tile(state)], lake_of(state.map)
        symbols = [_SYMBOLS[tile] for tile in lake.tiles]
        symbols[state.cell] = player
        return "\n".join(" ".join(symbols[at : at + lake.columns]) for at in range(0, len(symbols), lake.columns))

    def parse_text(self, text: str) -> FrozenLakeState:
        rows = [line.split() for line in text.strip("\n").split("\n")]
        _require_symbols(rows)
        symbols = [symbol for row in rows for symbol in row]
        players = [cell for cell, symbol in enumerate(symbols) if symbol in _PLAYER.values()]
        if len(players) != 1:
            raise ValueError(f"a board has one player (P, X or √), not {len(players)}")
        tiles = [_TILES[symbol] for symbol in symbols]
        if "S" not in symbols and symbols[players[0]] == "P":
            tiles[players[0]] = "S"
        columns = len(rows[0])
        map_ = "/".join("".join(tiles[at : at + columns]) for at in range(0, len(tiles), columns))
        self._require_own(map_)
        if players[0] not in reachable(lake_of(map_)):
            row, column = divmod(players[0], columns)
            raise ValueError(f"line {row + 1}: the player cannot come to column {column + 1} from the start")
        return FrozenLakeState(map_, players[0])

    def _require_own(self, map_: str) -> None:
        if map_ not in self._maps:
            others = f" and {len(self._maps) - 1} others" if len(self._maps) > 1 else ""
            raise ValueError(f"the board shows the map {map_}; this game's: {self._starts[0].map}{others}")

    def action_text(self, state: FrozenLakeState, action: int) -> str:
        return ACTIONS[action]

    def parse_action(self, state: FrozenLakeState, text: str) -> int | None:
        return ACTIONS.index(text) if text in ACTIONS and not self.is_terminal(state) else None

    def render_svg(
        self,
        state: FrozenLakeState,
        last_move: int | None = None,
        arrows: dict[int, float] | None = None,
        marks: dict[int, str] | None = None,
    ) -> str:
        from nlrl.envs import frozen_lake_svg

        self._tile(state)
        return frozen_lake_svg.draw(state, last_move, arrows or {}, marks or {})


# -- maps --------------------------------------------------------------------------------------------------------------
def random_map(size: int, rng: Rng) -> str:
    """A random map of `size` rows and columns on which a path leads from the start to the goal."""
    cells = size * size
    while True:
        tiles = ["F" if rng.random() < SAFE else "H" for _ in range(cells)]
        start, goal = rng.below(cells), rng.below(cells)
        if start == goal:
            continue
        tiles[start], tiles[goal] = "S", "G"
        if goal in reachable(Lake(size, size, "".join(tiles), start)):
            return "/".join("".join(tiles[at : at + size]) for at in range(0, cells, size))


@lru_cache(maxsize=8)
def random_maps(size: int, maps: int, seed: int) -> tuple[str, ...]:
    """`maps` different random maps; fewer of the same seed are the first of more.

    Raises:
        ValueError: a size or number out of range, or more maps than there seem to be of this size.
    """
    for field, value, high in (("size", size, MAX_SIDE), ("maps", maps, 100_000)):
        low = 2 if field == "size" else 1
        if not low <= value <= high:
            raise ValueError(f"{field} must be from {low} to {high}, not {value}")
    found: dict[str, None] = {}
    rng = Rng("frozen_lake", size, seed)
    for _ in range(1000 + 20 * maps):
        found.setdefault(random_map(size, rng))
        if len(found) == maps:
            return tuple(found)
    raise ValueError(f"maps: no {maps} different maps of size {size} were found, only {len(found)}")


def _read_layout(layout: str) -> str:
    """A map from its rows, however they are separated."""
    rows = [row.strip() for row in layout.strip().replace("\n", "/").split("/")]
    known = f"known: {', '.join(LAYOUTS)}, random, or rows of S, F, H and G such as SFF/FHF/FFG"
    for number, row in enumerate(rows, start=1):
        if wrong := set(row) - set(_SYMBOLS):
            raise ValueError(f"unknown layout {layout!r}: row {number} has {min(wrong)!r}; {known}")
        if len(row) != len(rows[0]):
            raise ValueError(f"layout: row {number} has {len(row)} tiles, row 1 has {len(rows[0])}")
    if len(rows) > MAX_SIDE or not 1 <= len(rows[0]) <= MAX_SIDE:
        raise ValueError(f"layout: a lake has 1 to {MAX_SIDE} rows and columns, not {len(rows)} and {len(rows[0])}")
    tiles = "".join(rows)
    if tiles.count("S") != 1 or "G" not in tiles:
        raise ValueError(
            f"layout: a lake has one start S and a goal G, not {tiles.count('S')} S and {tiles.count('G')} G; {known}"
        )
    return "/".join(rows)


def _refuse_random_only(layout: str, **given: int | None) -> None:
    for field, value in given.items():
        if value is not None:
            raise ValueError(f"{field}={value} needs layout='random'; the layout {layout!r} is one map")


def _default(value: int | None, default: int) -> int:
    return default if value is None else value


def _require_symbols(rows: list[list[str]]) -> None:
    for number, row in enumerate(rows, start=1):
        for symbol in row:
            if symbol not in _TILES:
                raise ValueError(f"line {number}: expected one of {' '.join(_TILES)}, not {symbol!r}")
        if len(row) != len(rows[0]) or not row:
            raise ValueError(f"line {number}: {len(row)} cells, where line 1 has {len(rows[0])}")
    starts = sum(row.count("S") for row in rows)
    if starts > 1 or (not starts and not any("P" in row for row in rows)):
        raise ValueError(f"a board has one start S (or P on it), not {starts}")
