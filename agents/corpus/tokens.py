"""What the tokenizer of the bundled models must keep whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from nlrl.agents.language import GameLanguage, number

FIRST_ATOMS = (
    r"(?:game|move|outlook) \d:",  # a label in a list
    r" ?[+-]\d\.\d\d",  # a verdict
)
LAST_ATOMS = (r" ?\d",)  # a cell, or a count


def atoms(languages: Sequence[GameLanguage]) -> tuple[str, ...]:
    """The regular expressions of what is kept whole in texts about these games; the first that matches counts."""
    own = dict.fromkeys(atom for language in languages for atom in language.atoms)
    return (*FIRST_ATOMS, *own, *LAST_ATOMS)


def atom_texts(languages: Sequence[GameLanguage]) -> list[str]:
    """Every atom, as it appears in the corpus."""
    verdicts = (f" {number(v / 100)}" for v in range(-100, 101))
    own = dict.fromkeys(text for language in languages for text in language.atom_texts())
    labels = (f"{kind} {n}:" for kind in ("game", "move", "outlook") for n in range(1, 10))
    return list(chain(verdicts, own, labels, (f" {n}" for n in range(10))))
