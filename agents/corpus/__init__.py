"""The corpus of the board-literate base: texts that generators write, for every role, over uniformly random play.

What it teaches: to read a board, to list and retell moves, to count the outcomes of the games in a prompt, to fuse
a transition with a given evaluation, to choose the best of several given evaluations. What it must not teach: good
play. Every move chosen is uniformly random, every verdict follows from evidence in the same prompt (or is noise,
for V and Q, which have no evidence yet), and no solver is consulted. `docs/bundled_models.md` measures both.
"""

from nlrl.agents.corpus.example import Example
from nlrl.agents.corpus.states import StateSampler
from nlrl.agents.corpus.stream import MIXTURE, CorpusSettings, examples
from nlrl.agents.corpus.writers import Writer

__all__ = ["MIXTURE", "CorpusSettings", "Example", "StateSampler", "Writer", "examples"]
