"""What the tokenizer of the bundled models must keep whole."""

from __future__ import annotations

from itertools import chain

from nlrl.agents.language import number

ATOMS = (
    r"(?:game|move|outlook) \d:",  # a label in a list
    r" ?[+-]\d\.\d\d",  # a verdict
    r" ?\d-\d-\d",  # a line
    r" ?[OX]\d\b",  # a move with its player
    r" [OX1-9](?: \||\n---\+---\+---\n)",  # a cell of the board with the bars that follow it
    r" ?[OX]\b",  # a player
    r" ?\d",  # a cell, or a count
)
_LINES = ("1-2-3", "4-5-6", "7-8-9", "1-4-7", "2-5-8", "3-6-9", "1-5-9", "3-5-7")


def atom_texts() -> list[str]:
    """Every atom, as it appears in the corpus."""
    verdicts = (f" {number(v / 100)}" for v in range(-100, 101))
    lines = (f" {line}" for line in _LINES)
    moves = (f" {player}{cell}" for player in "OX" for cell in range(1, 10))
    cells = (f" {symbol}{bars}" for symbol in "OX123456789" for bars in (" |", "\n---+---+---\n", ""))
    labels = (f"{kind} {n}:" for kind in ("game", "move", "outlook") for n in range(1, 10))
    return list(chain(verdicts, lines, moves, cells, labels, (f" {n}" for n in range(10))))
