"""Monte Carlo tree search for Breakthrough, compiled: the algorithm of `nlrl.envs.mcts`, hundreds of times as fast.

1. Nodes are rows of arrays. `value` and `outcome` of a node are from the view of the player who moved into it. There
   are no draws, so a proven outcome is +1 or -1, and 0 is "not proven".
2. A simulation walks down by UCT to a node that was never visited (moves of a node are tried in random order), judges
   it by the mean of random games, and adds that to all nodes on its way. With `solve`, what is proven is backed up, and
   the search stops once the root is proven. The move is the proven best, else the one visited most.
3. Draws come from one SplitMix64 stream for each search, seeded from the `Rng` of the move.

All compiled code is in this one file: see `nlrl.envs.jit`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nlrl.envs.breakthrough.board import BreakthroughState
from nlrl.envs.breakthrough.rules import Breakthrough
from nlrl.envs.jit import compiled
from nlrl.envs.mcts import MCTSOpponent
from nlrl.envs.opponent import legal_moves
from nlrl.envs.random import Rng

_0, _1, _2, _4, _32, _56 = (np.uint64(n) for n in (0, 1, 2, 4, 32, 56))
_PAIRS, _NIBBLES, _BYTES, _ONES = (np.uint64(int(word * 8, 16)) for word in ("55", "33", "0f", "01"))
_GAMMA, _MIX_1, _MIX_2 = (np.uint64(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
_MAX_MOVES = 48
"""Of one position: 16 pawns, three each."""
_MAX_PLIES = 256


class Geometry(NamedTuple):
    """A board's size, as unsigned words: with a signed integer Numba makes a float of them."""

    columns: np.uint64
    full: np.uint64
    """All cells."""
    first_column: np.uint64
    last_column: np.uint64
    goals: tuple[np.uint64, np.uint64]
    """Each player's far row."""


class Tree(NamedTuple):
    """Nodes; row 0 is the root. Children of a node are neighbours."""

    first: NDArray[np.int64]
    """(nodes,) the first child."""
    count: NDArray[np.int64]
    """(nodes,) children; 0 before the node is opened."""
    action: NDArray[np.int64]
    """(nodes,) the move into the node."""
    visits: NDArray[np.int64]
    value: NDArray[np.float64]
    """(nodes,) sum of results."""
    outcome: NDArray[np.int64]


def geometry(game: Breakthrough) -> Geometry:
    """The size of a game's board."""
    board = game.board
    first = sum(1 << row * board.columns for row in range(board.rows))
    columns, full, left, right, down, up = (
        np.uint64(bits)
        for bits in (board.columns, board.full, first, first << board.columns - 1, board.goals[0], board.goals[1])
    )
    return Geometry(columns, full, left, right, (down, up))


def new_tree(simulations: int) -> Tree:
    """Room for what so many simulations may open."""
    nodes = 1 + simulations * _MAX_MOVES
    first, count, action, visits, outcome = (np.zeros(nodes, np.int64) for _ in range(5))
    return Tree(first, count, action, visits, np.zeros(nodes), outcome)


# -- moves -------------------------------------------------------------------------------------------------------------
@compiled
def _below(stream: NDArray[np.uint64], n: Any) -> Any:
    """A uniform integer in [0, n), n < 2**31."""
    z = stream[0] + _GAMMA
    stream[0] = z
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return np.int64((((z ^ (z >> _31)) >> _32) * np.uint64(n)) >> _32)


@compiled
def _count(bits: np.uint64) -> Any:
    """Set bits (Warren, Hacker's Delight, 5-1)."""
    bits -= (bits >> _1) & _PAIRS
    bits = (bits & _NIBBLES) + ((bits >> _2) & _NIBBLES)
    return np.int64((((bits + (bits >> _4)) & _BYTES) * _ONES) >> _56)


@compiled
def _ahead(bits: np.uint64, player: int, direction: int, size: Geometry) -> np.uint64:
    """One row ahead for `player`; direction 0, 1, 2 is a lower, the same, a higher column."""
    if player == 0:
        return bits << (size.columns + np.uint64(direction) - _1)
    return bits >> (size.columns + _1 - np.uint64(direction))


@compiled
def _origins(own: np.uint64, enemy: np.uint64, player: int, direction: int, size: Geometry) -> np.uint64:
    """The pawns of `player` that may move in this direction."""
    if direction == 1:
        return _ahead(size.full & ~(own | enemy), 1 - player, 1, size) & own
    open_ = size.full & ~own & ~(size.last_column if direction == 0 else size.first_column)
    return _ahead(open_, 1 - player, 2 - direction, size) & own


@compiled
def _result(own: np.uint64, enemy: np.uint64, player: int, stream: NDArray[np.uint64], size: Geometry) -> int:
    """1 if `player`, who is to move, wins a random game, else -1."""
    result = 1
    while True:
        lower = _origins(own, enemy, player, 0, size)
        straight = _origins(own, enemy, player, 1, size)
        higher = _origins(own, enemy, player, 2, size)
        in_lower, in_straight = _count(lower), _count(straight)
        k = _below(stream, in_lower + in_straight + _count(higher))
        if k < in_lower:
            pawns, direction = lower, 0
        elif k < in_lower + in_straight:
            pawns, direction, k = straight, 1, k - in_lower
        else:
            pawns, direction, k = higher, 2, k - in_lower - in_straight
        for _ in range(k):
            pawns &= pawns - _1
        pawn = pawns & (~pawns + _1)
        target = _ahead(pawn, player, direction, size)
        own, enemy = own ^ (pawn | target), enemy & ~target
        if target & size.goals[player] or enemy == _0:
            return result
        own, enemy, player, result = enemy, own, 1 - player, -result


# -- the tree ----------------------------------------------------------------------------------------------------------
@compiled
def _open(
    node: int, used: int, own: np.uint64, enemy: np.uint64, player: int, stream: Any, tree: Tree, size: Any
) -> int:
    """Gives the node its children, in random order; returns how many rows are used then."""
    tree.first[node] = used
    for direction in range(3):
        pawns = _origins(own, enemy, player, direction, size)
        while pawns:
            pawn = pawns & (~pawns + _1)
            pawns ^= pawn
            place = tree.first[node] + _below(stream, used - tree.first[node] + 1)
            tree.action[used] = tree.action[place]
            tree.action[place] = 3 * _count(pawn - _1) + direction
            used += 1
    tree.count[node] = used - tree.first[node]
    return used


@compiled
def _uct_child(node: int, uct_c: float, tree: Tree) -> int:
    """The child of the highest upper confidence bound; unvisited ones have none."""
    best, highest = -1, -np.inf
    scale = np.log(tree.visits[node])
    for child in range(tree.first[node], tree.first[node] + tree.count[node]):
        if tree.outcome[child] != 0:
            bound = np.float64(tree.outcome[child])
        elif tree.visits[child] == 0:
            return child
        else:
            visits = tree.visits[child]
            bound = tree.value[child] / visits + uct_c * np.sqrt(scale / visits)
        if bound > highest:
            best, highest = child, bound
    return best


@compiled
def _proven(node: int, tree: Tree) -> int:
    """What the children's outcomes prove about the node: 1, -1, or 0 for nothing."""
    all_lose = 1
    for child in range(tree.first[node], tree.first[node] + tree.count[node]):
        if tree.outcome[child] == 1:
            return -1
        if tree.outcome[child] == 0:
            all_lose = 0
    return all_lose


@compiled
def _best_child(tree: Tree) -> int:
    """Of the root: by proven outcome, then visits, then value."""
    best = tree.first[0]
    for child in range(tree.first[0] + 1, tree.first[0] + tree.count[0]):
        better = tree.outcome[child] - tree.outcome[best]
        if better == 0:
            better = tree.visits[child] - tree.visits[best]
        if better > 0 or (better == 0 and tree.value[child] > tree.value[best]):
            best = child
    return best


@compiled
def _descend(
    own: np.uint64,
    enemy: np.uint64,
    mover: int,
    used: int,
    uct_c: float,
    path: NDArray[np.int64],
    stream: NDArray[np.uint64],
    tree: Tree,
    size: Geometry,
) -> tuple[int, bool, np.uint64, np.uint64, int, int]:
    """Walks from the root to a node that was never visited, or to the end of a game; `path` gets the nodes.

    Returns how far that is, whether the game is over there, the pawns and the number of the player to move there, and
    how many rows are used.
    """
    node, depth, over = 0, 0, False
    path[0] = 0
    while tree.visits[node] > 0 and not over:
        if tree.count[node] == 0:
            used = _open(node, used, own, enemy, mover, stream, tree, size)
        node = _uct_child(node, uct_c, tree)
        depth += 1
        path[depth] = node
        pawn = _1 << np.uint64(tree.action[node] // 3)
        target = _ahead(pawn, mover, tree.action[node] % 3, size)
        own, enemy = own ^ (pawn | target), enemy & ~target
        over = (target & size.goals[mover]) != _0 or enemy == _0
        own, enemy, mover = enemy, own, 1 - mover
    return depth, over, own, enemy, mover, used


@compiled
def _judged(
    own: np.uint64, enemy: np.uint64, mover: int, rollouts: int, stream: NDArray[np.uint64], size: Geometry
) -> float:
    """The mean result of random games for the player who has just moved."""
    total = 0
    for _ in range(rollouts):
        total -= _result(own, enemy, mover, stream, size)
    return total / rollouts


@compiled
def _back_up(path: NDArray[np.int64], depth: int, value: float, proving: bool, tree: Tree) -> None:
    """Adds a value to all nodes of the path, and proves them from below as far as that goes."""
    while depth >= 0:
        node = path[depth]
        tree.value[node] += value
        tree.visits[node] += 1
        if proving and tree.count[node] > 0:
            tree.outcome[node] = _proven(node, tree)
            proving = tree.outcome[node] != 0
        value, depth = -value, depth - 1


@compiled
def search(
    own: np.uint64,
    enemy: np.uint64,
    player: int,
    simulations: int,
    rollouts: int,
    uct_c: float,
    solve: bool,
    stream: NDArray[np.uint64],
    tree: Tree,
    size: Geometry,
) -> Any:
    """The action that the search chooses for `player`, whose pawns are `own`; `tree` is new."""
    path = np.empty(_MAX_PLIES, np.int64)
    used = 1
    for _ in range(simulations):
        depth, over, mine, theirs, mover, used = _descend(own, enemy, player, used, uct_c, path, stream, tree, size)
        if over and solve:
            tree.outcome[path[depth]] = 1
        value = 1.0 if over else _judged(mine, theirs, mover, rollouts, stream, size)
        _back_up(path, depth, value, over and solve, tree)
        if tree.outcome[0] != 0:
            break
    return tree.action[_best_child(tree)]


class BreakthroughMCTS(MCTSOpponent):
    """`MCTSOpponent` for Breakthrough: the same search with draws of its own."""

    def _search(self, state: BreakthroughState, rng: Rng) -> int:
        game: Any = self._game
        legal_moves(game, state)
        own, enemy = np.uint64(state[state.player]), np.uint64(state[1 - state.player])
        stream = np.array([rng.bits()], np.uint64)
        numbers = self._simulations, self._rollouts, self._uct_c, self._solve
        tree = new_tree(self._simulations)
        return int(search(own, enemy, state.player, *numbers, stream, tree, geometry(game)))
