"""The search that proves Breakthrough positions won or lost, compiled by Numba.

1. A position is `own` and `enemy`, seen by the player to move, whose pawns go *down*, to higher bits. `rotated` shows a
   position to the other player. A question is always: does the attacker win within `plies` moves, the other side's
   counted? `attacking` says whether the attacker is to move.
2. The *score* of a position is `WIN - n` for a win in n plies and `n - WIN` for a loss in n plies, from the mover's
   view. A question compares the score with a number, so two bounds on the score hold all that past questions taught.
   Without a limit (`UNBOUNDED`) the question is who wins at all.
3. `score_at_sight` decides wins in one and three plies and losses in two without search; what it decides is never
   searched or stored.
4. `prove` is alpha-beta with two outcomes: it stops at the first move that settles the question for the mover. Moves
   are tried in the order of `_promise`, after a look into the table for a move that is known to settle it.
5. The table holds whole positions, not hashes of them, so it never takes one for another. Mirror images share an entry.
   Of the four slots that a position may use, the one whose proof took the fewest nodes is given up.

All compiled code is in this one file, long as it is: see `nlrl.envs.jit`.
"""

# pyright: reportOperatorIssue=false, reportArgumentType=false, reportCallIssue=false
# (Numba's integer types are callables to a type checker.)

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from nlrl.envs.jit import compiled, prefetch

WIN = 128
UNBOUNDED = WIN - 1
YES, NO, UNKNOWN, STOPPED = 1, 0, -1, -2
"""Answers. `STOPPED` is that of a search that reached its limit."""
SLOTS = 4
OWN, ENEMY, LOW, HIGH, TAKEN, PROMISE, NODE = 0, 1, 2, 3, 4, 5, 6
COUNT, LOWER, UPPER, BEFORE = 4, 5, 6, 7
NODES, LIMIT = 0, 1
"""Indices into the arrays of `Search`."""
MAX_MOVES, MAX_PLIES = 96, 256
"""More than any position has moves (32 pawns, three each) and any game has plies."""
_KEY_BITS = uint64(40)
_KEY = uint64((1 << 40) - 1)
_ONE, _TWO, _EIGHT, _SIXTEEN, _BYTE = uint64(1), uint64(2), uint64(8), uint64(16), uint64(255)


class Geometry(NamedTuple):
    """The size of the board, and its first row, first column and last column as bits."""

    rows: np.uint64
    columns: np.uint64
    cells: np.uint64
    top: np.uint64
    left: np.uint64
    right: np.uint64


class Search(NamedTuple):
    """Everything that a search reads and writes."""

    table: NDArray[np.uint64]
    """(slots, words): a power of two of slots. One word holds the position (40 bits), both bounds and the effort (8
    bits each); on boards that need more bits, three words are `own`, `enemy` and the rest."""
    stack: NDArray[np.uint64]
    """(MAX_PLIES, 7, MAX_MOVES): for each ply of the search, the positions to try (rows `OWN`, `ENEMY`), their keys
    (`LOW`, `HIGH`), the pawn that was `TAKEN`, and the `PROMISE` of the move, 0 for those that need no more trying. Row
    `NODE` is about the position itself: its pawns and key, how many positions there are to try, the known bounds plus
    `WIN`, and the nodes that had been searched when it was reached."""
    counters: NDArray[np.int64]
    """(2,): nodes searched, and the number of nodes at which to stop."""
    board: Geometry


def words_per_slot(rows: int, columns: int) -> int:
    """Words of the table for a position: neither side has pawns on the row that it wins on."""
    return 1 if 2 * (rows - 1) * columns <= _KEY_BITS else 3


def new_search(rows: int, columns: int, table: NDArray[np.uint64]) -> Search:
    """A search on a board of this size with `table`, all zeros if nothing is known."""
    left = sum(1 << row * columns for row in range(rows))
    sizes = (rows, columns, rows * columns, (1 << columns) - 1, left, left << (columns - 1))
    stack = np.zeros((MAX_PLIES, 7, MAX_MOVES), np.uint64)
    return Search(table, stack, np.zeros(2, np.int64), Geometry(*map(np.uint64, sizes)))


# -- bits --------------------------------------------------------------------------------------------------------------
@njit
def _swapped(bits, mask, shift):
    return ((bits >> shift) & mask) | ((bits & mask) << shift)


@njit
def rotated(bits, board):
    """The board turned by 180 degrees: its bits in reverse order."""
    bits = _swapped(bits, uint64(0x5555555555555555), uint64(1))
    bits = _swapped(bits, uint64(0x3333333333333333), uint64(2))
    bits = _swapped(bits, uint64(0x0F0F0F0F0F0F0F0F), uint64(4))
    bits = _swapped(bits, uint64(0x00FF00FF00FF00FF), uint64(8))
    bits = _swapped(bits, uint64(0x0000FFFF0000FFFF), uint64(16))
    return ((bits >> uint64(32)) | (bits << uint64(32))) >> (uint64(64) - board.cells)


@njit
def _mirrored(bits, board):
    image = uint64(0)
    for column in range(board.columns):
        image |= ((bits >> uint64(column)) & board.left) << (board.columns - _ONE - uint64(column))
    return image


@njit
def _count(bits):
    """Bits that are set, by adding up pairs, fours, eights."""
    bits -= (bits >> _ONE) & uint64(0x5555555555555555)
    bits = (bits & uint64(0x3333333333333333)) + ((bits >> _TWO) & uint64(0x3333333333333333))
    bits = (bits + (bits >> uint64(4))) & uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * uint64(0x0101010101010101)) >> uint64(56))


@njit
def _attacks(own, board):
    return ((own & ~board.left) << (board.columns - _ONE)) | ((own & ~board.right) << (board.columns + _ONE))


@njit
def _enemy_attacks(enemy, board):
    return ((enemy & ~board.left) >> (board.columns + _ONE)) | ((enemy & ~board.right) >> (board.columns - _ONE))


@njit
def _targets(own, enemy, direction, board):
    """Where pawns that go *up* can go in `direction` (0, 1, 2), and by how many bits."""
    shift = board.columns + uint64(direction) - _ONE
    if direction == 0:
        return ((own & ~board.right) >> shift) & ~own, shift
    if direction == 1:
        return (own >> shift) & ~(own | enemy), shift
    return ((own & ~board.left) >> shift) & ~own, shift


@njit
def _near(board):
    """The row before the mover's goal."""
    return board.top << (board.columns * (board.rows - _TWO))


# -- judgement without search ------------------------------------------------------------------------------------------
@njit
def score_at_sight(own, enemy, board):
    """The exact score where it is a win in 1 or 3 plies or a loss in 2, as far as one look tells; else 0.

    A pawn one row from its goal cannot be stopped there, only captured before. So two such enemies, or one out of
    reach, win; and a pawn of ours that gets there where no enemy captures it wins, unless an enemy is there first.
    """
    near, attacked = _near(board), _attacks(own, board)
    if own & near or (enemy & (enemy - _ONE) == 0 and enemy & attacked):
        return WIN - 1
    threats = enemy & (board.top << board.columns)
    if threats:
        return 2 - WIN if threats & (threats - _ONE) or not threats & attacked else 0
    reached = (((own << board.columns) & ~enemy) | attacked) & ~own
    return WIN - 3 if reached & near & ~_enemy_attacks(enemy, board) else 0


@njit
def _fewest_plies(own, enemy, attacking, board):
    """The attacker needs at least this many plies: his foremost pawn's way, or one capture for every enemy pawn."""
    steps = 1
    if attacking:
        row = _near(board)
        while not own & row:
            row >>= board.columns
            steps += 1
        return 2 * min(steps, _count(enemy)) - 1
    row = board.top << board.columns
    while not enemy & row:
        row <<= board.columns
        steps += 1
    return 2 * min(steps, _count(own))


@njit
def _promise(own, enemy, taken, board):
    """How good the last move looks for the enemy, who made it and took the pawn `taken` (0: none): the pawns that are
    left to capture, and for a pawn that was taken more the nearer it was to its goal."""
    attacked, guarded = _attacks(own, board), _enemy_attacks(enemy, board)
    promise = 1000 - 8 * _count(enemy & attacked & ~guarded) - 3 * _count(enemy & attacked & guarded)
    promise += 3 * _count(own & guarded & ~attacked)
    if taken:
        promise += 10
    while taken >> board.columns:
        taken >>= board.columns
        promise += 2
    return promise


@njit
def _answer(lower, upper, plies, attacking):
    """What bounds on the score say about the question."""
    needed = WIN - plies
    if attacking:
        return YES if lower >= needed else NO if upper < needed else UNKNOWN
    return YES if upper <= -needed else NO if lower > -needed else UNKNOWN


@njit
def _aim(attacking):
    """The answer that the mover wants."""
    return YES if attacking else NO


@njit
def _answer_at_sight(own, enemy, plies, attacking, board):
    """The answer without search or table."""
    score = score_at_sight(own, enemy, board)
    if score != 0:
        return _answer(score, score, plies, attacking)
    if plies == UNBOUNDED:
        return UNKNOWN
    least = 3 if attacking else 2  # every win in one was seen
    return NO if plies < max(least, _fewest_plies(own, enemy, attacking, board)) else UNKNOWN


# -- the table ---------------------------------------------------------------------------------------------------------
@njit
def _key(own, enemy, board):
    """The position or its mirror image, whichever is smaller, as one word (and 0) or two."""
    image, enemy_image = _mirrored(own, board), _mirrored(enemy, board)
    if image < own or (image == own and enemy_image < enemy):
        own, enemy = image, enemy_image
    half = board.cells - board.columns
    if half + half <= _KEY_BITS:
        return own | ((enemy >> board.columns) << half), uint64(0)
    return own, enemy


@njit
def _first_slot(low, high, table):
    mixed = (low ^ (high * uint64(0xD6E8FEB86659FD93))) * uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> uint64(32))) * uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> uint64(32)) & (table.shape[0] - SLOTS)


@njit
def _info(low, high, slot, table):
    """Bounds and effort of the position in this slot; 0 where the slot holds another."""
    if table.shape[1] == 1:
        return table[slot, 0] >> _KEY_BITS if table[slot, 0] & _KEY == low else uint64(0)
    return table[slot, 2] if table[slot, 0] == low and table[slot, 1] == high else uint64(0)


@njit
def _effort(slot, table):
    return table[slot, 0] >> (_KEY_BITS + _SIXTEEN) if table.shape[1] == 1 else table[slot, 2] >> _SIXTEEN


@njit
def _bounds(low, high, table):
    first = _first_slot(low, high, table)
    for slot in range(first, first + SLOTS):
        info = _info(low, high, slot, table)
        if info:
            return np.int64(info & _BYTE) - WIN, np.int64((info >> _EIGHT) & _BYTE) - WIN
    return 1 - WIN, WIN - 1


@njit
def _store(low, high, lower, upper, nodes, table):
    first = chosen = _first_slot(low, high, table)
    for slot in range(first, first + SLOTS):
        if _info(low, high, slot, table):
            chosen = slot
            break
        if _effort(slot, table) < _effort(chosen, table):
            chosen = slot
    effort = _ONE
    while nodes > 1:
        nodes >>= 1
        effort += _ONE
    info = uint64(lower + WIN) | uint64(upper + WIN) << _EIGHT | effort << _SIXTEEN
    if table.shape[1] == 1:
        table[chosen, 0] = low | info << _KEY_BITS
    else:
        table[chosen, 0], table[chosen, 1], table[chosen, 2] = low, high, info


# -- search ------------------------------------------------------------------------------------------------------------
# Two habits of Numba shape this part (0.68): it cannot load a function that calls itself from its cache, hence the
# stack; and it counts references to an array each time it is taken out of a tuple or sliced, which would be half of the
# time, hence arrays as arguments.
@njit
def _left(plies, ply):
    """Plies that are left of the question at this depth."""
    return plies if plies == UNBOUNDED else plies - ply


@njit
def _expand(ply, plies, attacking, stack, table, board):
    """Collects the moves that have to be tried, with `plies` left after them. UNKNOWN if there are any; else the
    answer, which one look at each move gave. All is seen from the other side, as it will be after the move."""
    aim, count = _aim(attacking), 0
    own, enemy = rotated(stack[ply, NODE, OWN], board), rotated(stack[ply, NODE, ENEMY], board)
    threats = enemy & _near(board)
    for direction in range(3):
        targets, shift = _targets(own, enemy, direction, board)
        if threats:  # unless captured now, it moves on to its goal
            targets &= threats
        while targets:
            target = targets & (~targets + _ONE)
            targets ^= target
            moved, left = own ^ (target << shift) | target, enemy & ~target
            answer = _answer_at_sight(left, moved, plies, not attacking, board)
            if answer == aim:
                return aim
            if answer == UNKNOWN:
                low, high = _key(left, moved, board)
                prefetch(table, _first_slot(low, high, table))
                stack[ply, OWN, count], stack[ply, ENEMY, count] = left, moved
                stack[ply, LOW, count], stack[ply, HIGH, count] = low, high
                stack[ply, TAKEN, count] = target & enemy
                count += 1
    stack[ply, NODE, COUNT] = count
    return UNKNOWN if count else 1 - aim


@njit
def _rank(ply, plies, attacking, stack, table, board):
    """The answer if the table knows a move that settles it, else UNKNOWN. Gives every move that has to be tried its
    promise, and 0 to those that the table knows to fail."""
    aim = _aim(attacking)
    for child in range(np.int64(stack[ply, NODE, COUNT])):
        lower, upper = _bounds(stack[ply, LOW, child], stack[ply, HIGH, child], table)
        answer, promise = _answer(lower, upper, plies, not attacking), 0
        if answer == aim:
            return aim
        if answer == UNKNOWN:
            promise = _promise(stack[ply, OWN, child], stack[ply, ENEMY, child], stack[ply, TAKEN, child], board)
        stack[ply, PROMISE, child] = uint64(promise)
    return UNKNOWN


@njit
def _next_child(ply, stack):
    """Puts the most promising child on the stack, one ply up; False if none is left."""
    best = 0
    for child in range(1, np.int64(stack[ply, NODE, COUNT])):
        if stack[ply, PROMISE, child] > stack[ply, PROMISE, best]:
            best = child
    if stack[ply, PROMISE, best] == 0:
        return False
    stack[ply, PROMISE, best] = 0
    for field in (OWN, ENEMY, LOW, HIGH):
        stack[ply + 1, NODE, field] = stack[ply, field, best]
    return True


@njit
def _learn(ply, plies, attacking, answer, stack, table, nodes):
    """Stores what the answer says about the position, after `nodes` nodes in all."""
    lower, upper, needed = np.int64(stack[ply, NODE, LOWER]) - WIN, np.int64(stack[ply, NODE, UPPER]) - WIN, WIN - plies
    if attacking:
        lower, upper = (max(lower, needed), upper) if answer == YES else (lower, min(upper, needed - 1))
    else:
        lower, upper = (lower, min(upper, -needed)) if answer == YES else (max(lower, 1 - needed), upper)
    effort = nodes - np.int64(stack[ply, NODE, BEFORE])
    _store(stack[ply, NODE, LOW], stack[ply, NODE, HIGH], lower, upper, effort, table)


@njit
def _open(ply, plies, attacking, stack, table, counters, board):
    """The answer for the position at `ply` if the table or one look at each move gives it. UNKNOWN: its first child is
    on the stack now and has to be answered first."""
    lower, upper = _bounds(stack[ply, NODE, LOW], stack[ply, NODE, HIGH], table)
    answer = _answer(lower, upper, plies, attacking)
    if answer != UNKNOWN:
        return answer
    if counters[NODES] >= counters[LIMIT]:
        return STOPPED
    stack[ply, NODE, LOWER], stack[ply, NODE, UPPER] = uint64(lower + WIN), uint64(upper + WIN)
    stack[ply, NODE, BEFORE] = uint64(counters[NODES])
    counters[NODES] += 1
    later = _left(plies, 1)
    answer = _expand(ply, later, attacking, stack, table, board)
    if answer == UNKNOWN:
        answer = _rank(ply, later, attacking, stack, table, board)
    if answer == UNKNOWN and not _next_child(ply, stack):
        answer = 1 - _aim(attacking)
    if answer != UNKNOWN:
        _learn(ply, plies, attacking, answer, stack, table, counters[NODES])
    return answer


@njit
def _resume(ply, plies, attacking, found, stack, table, counters):
    """As `_open`, once `found` is the answer for the child on the stack."""
    if found != _aim(attacking) and _next_child(ply, stack):
        return UNKNOWN
    _learn(ply, plies, attacking, found, stack, table, counters[NODES])
    return found


@njit
def _prove(plies, attacking, stack, table, counters, board):
    """The answer for the position at the bottom of the stack, which `score_at_sight` leaves open."""
    ply = np.int64(0)  # not a literal, for which Numba would compile everything twice
    answer = _open(ply, plies, attacking, stack, table, counters, board)
    while answer != STOPPED and (ply > 0 or answer == UNKNOWN):
        ply += 1 if answer == UNKNOWN else -1
        mover_attacks = attacking == (ply % 2 == 0)
        if answer == UNKNOWN:
            answer = _open(ply, _left(plies, ply), mover_attacks, stack, table, counters, board)
        else:
            answer = _resume(ply, _left(plies, ply), mover_attacks, answer, stack, table, counters)
    return answer


@compiled
def known(own, enemy, search):
    """Bounds (lower, upper) on the score of a position that is not over, without search."""
    score = score_at_sight(own, enemy, search.board)
    if score != 0:
        return score, score
    low, high = _key(own, enemy, search.board)
    return _bounds(low, high, search.table)


@compiled
def ask(own, enemy, plies, attacking, nodes, search):
    """Does the attacker win within `plies`, as far as `nodes` nodes tell? `YES`, `NO` or `STOPPED`.

    A stopped search goes on where it was when it is asked again, as long as the table keeps what it found.
    """
    search.counters[NODES], search.counters[LIMIT] = 0, nodes
    score = score_at_sight(own, enemy, search.board)
    if score != 0:
        return _answer(score, score, plies, attacking)
    search.stack[0, NODE, OWN], search.stack[0, NODE, ENEMY] = own, enemy
    search.stack[0, NODE, LOW], search.stack[0, NODE, HIGH] = _key(own, enemy, search.board)
    return _prove(plies, attacking, search.stack, search.table, search.counters, search.board)
