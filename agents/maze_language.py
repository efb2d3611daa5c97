"""Mazes in words: places, ways that are open, walks retold by their runs.

1. A prompt shows what the game tells a walker, its place, the goal and the walls beside it, and no map: within one maze
   that is all a walker needs, and it stays short. Rows and columns count from 0, as the game's own texts have them.
2. A retold walk is its runs, `R3 D2 x1 L1`: letters are directions, `x` runs into a wall, `n` is a reply that named no
   move. What goes beyond `MOST_RUNS` runs is counted, not told.
3. A walk scores by the logarithm of its steps, so that one step more matters near the goal and hardly far from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import groupby

from nlrl.agents.language import FIRST, NO_MOVE, GameLanguage, Line, Outlook, Picker, number
from nlrl.agents.walks import listed, place, way
from nlrl.envs.maze import Maze, MazeState
from nlrl.envs.maze.state import DIRECTIONS, walls_text

LETTERS = "LRUD"
BUMP, LOST = "x", "n"
MOST_RUNS = 8
_WORDS = {**dict(zip(LETTERS, DIRECTIONS, strict=True)), BUMP: "against a wall", LOST: "nowhere"}
_TOLD = re.compile(r"\b(left|right|up|down|against a wall|nowhere) (\d+)")
Run = tuple[str, int]
"""A letter and how often in a row."""


class MazeLanguage(GameLanguage):
    """Sentences of `agents/phrases/maze.toml`, filled in by the rules.

    With a cap of 100 steps a walk of 1 step scores +0.70, of 3 +0.40, of 7 +0.10, of 20 -0.32, of 50 -0.70, and one
    that does not arrive -1.00. `steps_of` is the inverse.
    """

    game: Maze
    longest_transition = 6
    persistence = 0.7
    atoms = (
        r" ?\b[LRUDxn]\d+\b",  # a run
        r" ?\b\d{1,3}\b",  # a coordinate or a number of steps
        r" ?\b(?:left|right|up|down)\b",
    )

    @property
    def scale(self) -> str:  # type: ignore[override]
        """`+0.70 in 1 step, +0.40 in 3 steps, ...`."""
        some = [n for n in (1, 3, 10, 30) if n < self.game.max_length]
        return ", ".join(f"{number(self.score_of_steps(n))} in {_steps(n)}" for n in some) + f", {number(-1)} never"

    def board(self, state: MazeState) -> str:
        return self.game.observation_text(state, 0)

    def label(self, state: MazeState, action: int) -> str:
        return self.game.action_text(state, action)

    # -- what the rules say --------------------------------------------------------------------------------------------
    @property
    def _kind(self) -> str:
        return "full" if self.game.observed == "full" else "partial"

    def facts(self, state: MazeState, pick: Picker = FIRST) -> str:
        """How far the goal is as the crow flies (where the walker is told), and which ways are open."""
        return pick.choice(self.phrases["facts"]["state"][self._kind]).format(
            me=self.player(state), goal=way(state.cell, self.game.grid.goal), open=self.open_ways(state)
        )

    def facts_after(self, state: MazeState, action: int, pick: Picker = FIRST) -> str:
        """Where the move leads. Not what is around there: the walker has not seen it."""
        after = self.game.apply(state, action).state
        kind = "arrived" if self.game.is_terminal(after) else "stays" if after.cell == state.cell else "after"
        phrases = self.phrases["facts"][kind]
        return pick.choice(phrases if kind == "arrived" else phrases[self._kind]).format(
            me=self.player(state),
            place=place(after.cell),
            goal=way(after.cell, self.game.grid.goal),
            way=DIRECTIONS[action],
        )

    def open_ways(self, state: MazeState) -> str:
        """The directions without a wall: `right and down`."""
        walls = self.game.grid.walls[state.cell]
        return listed([name for bit, name in enumerate(DIRECTIONS) if not walls >> bit & 1])

    def read(self, state: MazeState, pick: Picker = FIRST) -> str:
        return pick.choice(self.phrases["reader"][self._kind]).format(
            me=self.game.player_names[0],
            place=place(state.cell),
            goal=place(self.game.grid.goal),
            walls=walls_text(self.game.grid.walls[state.cell]),
            open=self.open_ways(state),
        )

    # -- what was played -----------------------------------------------------------------------------------------------
    def runs(self, line: Line) -> list[Run]:
        """What was done, equal steps together."""
        letters = [self._letter(*step) for step in zip(line.states, line.states[1:], line.actions, strict=False)]
        return [(letter, len(list(group))) for letter, group in groupby(letters)]

    def _letter(self, before: MazeState, after: MazeState, action: int) -> str:
        if action == NO_MOVE:
            return LOST
        return BUMP if after.cell == before.cell else LETTERS[action]

    def moves(self, line: Line) -> str:
        runs = self.runs(line)
        text = " ".join(f"{letter}{count}" for letter, count in runs[:MOST_RUNS])
        rest = sum(count for _, count in runs[MOST_RUNS:])
        told = f"{text} and {rest} more" if rest else text
        if not self.game.is_terminal(line.end):
            return told
        return f"{told}, there in {_steps(len(line.actions))}, {number(self.score(line))}"

    def forfeit(self, line: Line) -> str:
        return f"{super().forfeit(line)}, {number(-1)}"

    def cut(self, line: Line) -> str:
        return f"{self.moves(line)}, not there in {_steps(len(line.actions))}, {number(-1)}"

    def retell(self, line: Line, pick: Picker = FIRST) -> str:
        phrases = self.phrases["retell"]
        ways = listed([f"{_WORDS[letter]} {count}" for letter, count in self.runs(line)])
        told = pick.choice(phrases["steps"]).format(
            me=self.game.player_names[0], n=_steps(len(line.actions)), ways=ways
        )
        return told + pick.choice(phrases["arrived" if self.game.is_terminal(line.end) else "unfinished"])

    def content(self, text: str) -> list[str]:
        """Places, walls and open ways; runs, how many steps, and whether they arrive."""
        places = re.findall(r"(goal|walker)[a-z ]* in (row \d+, column \d+)", text)
        ways = re.findall(r"([Ww]alls?|[Oo]pen|[Ww]ays?):? ((?:(?:none|left|right|up|down)(?:, | and )?)+)", text)
        steps = re.findall(r"(\d+) steps?\b", text)
        ends = ["arrives"] if re.search(r"at the goal|reaches the goal", text) else []
        said = [
            f"{kind[0].lower()}:{'/'.join(re.findall(r'[a-z]+', names.replace(' and ', ', ')))}" for kind, names in ways
        ]
        return (
            sorted(" ".join(found) for found in places)
            + sorted(said)
            + steps
            + [f"{word} {count}" for word, count in _TOLD.findall(text)]
            + ends
        )

    # -- what it was worth ---------------------------------------------------------------------------------------------
    def score_of_steps(self, steps: float) -> float:
        """1 - 2 log(1 + steps) / log(1 + cap), at least -1."""
        return max(-1.0, 1 - 2 * math.log1p(steps) / math.log1p(self.game.max_length))

    def steps_of(self, verdict: float) -> float:
        """The length of the walk that scores so; `inf` for -1, which is what not arriving scores."""
        return math.inf if verdict <= -1 else math.expm1((1 - verdict) / 2 * math.log1p(self.game.max_length))

    def forfeit_score(self, line: Line, player: int = 0) -> float:
        return -1.0

    def score_at(self, state: MazeState, steps: int, player: int = 0) -> float:
        return self.score_of_steps(steps) if self.game.is_terminal(state) else -1.0

    def verdict_of_value(self, value: float, state: MazeState) -> float:
        """Of rewards to come: -1 for every step but the last. Right for walks of one length, such as shortest ones; for
        others average `score_at`, because the mean of logarithms is not the logarithm of the mean."""
        return self.score_of_steps(0 if self.game.is_terminal(state) else 1 - value)

    def carry(self, line: Line, outlook: Outlook) -> Outlook:
        """The same walk, longer by the steps of the line."""
        steps = self.steps_of(outlook.verdict) + len(line.actions)
        return outlook._replace(verdict=round(self.score_of_steps(steps), 2) if steps < math.inf else -1.0)

    def summary(self, scores: Sequence[float], player: str, pick: Picker = FIRST) -> str:
        """How many walks arrived, and the range of their scores; their mean is the verdict."""
        arrived, worst, best = sum(score > -1 for score in scores), number(min(scores)), number(max(scores))
        counts = {"n": len(scores), "arrived": arrived, "low": worst, "high": best}
        return pick.choice(self.phrases["counts"]["games"]).format(me=player, **counts)

    def atom_texts(self) -> list[str]:
        runs = [f" {letter}{count}" for letter in LETTERS + BUMP for count in range(1, 10)]
        return [*runs, *(f" {n}" for n in range(101)), *(f" {name}" for name in DIRECTIONS)]


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
