"""One writer a role: a random input and the answer that follows from the input alone.

The writers are also the definition of a right answer: tests and `docs/bundled_models.md` compare a model's answers
with `Example.answer`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nlrl.agents.corpus.playouts import Playout, Playouts
from nlrl.agents.corpus.states import StateSampler
from nlrl.agents.language import FIRST, Outlook, Picker, language_of, number
from nlrl.agents.prompts import load_templates
from nlrl.agents.roles import (
    GAME_OVER,
    ActionInput,
    CandidatesInput,
    Evaluation,
    Roles,
    SamplesInput,
    StateInput,
    TransitionInput,
)
from nlrl.agents.tictactoe_language import TicTacToeLanguage, open_line_texts
from nlrl.backbones.language_model import Message
from nlrl.envs.game import Game

FIRST_PHRASE_SHARE = 0.6
"""The first phrasing is the mode, so that greedy answers are uniform; the rest share what is left."""


@dataclass(frozen=True, slots=True)
class Example:
    """One training text: role, prompt, answer as text, and the answer's machine-readable value (None where there is
    none)."""

    role: str
    messages: tuple[Message, ...]
    completion: str
    answer: float | int | None
    inp: Any = None


class RandomPicker:
    """Chooses a phrasing: the first one most often."""

    def __init__(self, rng: random.Random):
        self._rng = rng

    def choice(self, items: Sequence[str]) -> str:
        if len(items) == 1 or self._rng.random() < FIRST_PHRASE_SHARE:
            return items[0]
        return items[1 + int(self._rng.random() * (len(items) - 1))]


def most_common(lines: Sequence[str]) -> str | None:
    """The most frequent line; the earlier one on ties."""
    return Counter(lines).most_common(1)[0][0] if lines else None


class Writer:
    """Writes examples of every role for one game.

    Args:
        facts: False leaves out the sentence that states winning cells (the ablation of docs/bundled_models.md).
        varied: False uses the first phrasing throughout.
    """

    def __init__(self, game: Game, seed: int, held_out: bool = False, facts: bool = True, varied: bool = True):
        self.game = game
        self.rng = random.Random(seed)
        self.pick: Picker = RandomPicker(self.rng) if varied else FIRST
        self.language = language_of(game)
        assert isinstance(self.language, TicTacToeLanguage)
        self.roles = Roles(game, "plain")
        self.states = StateSampler(game, held_out)
        self.playouts = Playouts(game, self.language, self.rng)
        self.facts = facts
        self._templates = load_templates(game.name, "plain")

    # -- roles that play and value -------------------------------------------------------------------------------------
    def policy(self) -> Example:
        """A uniformly random legal move, honestly called a guess."""
        state = self.states.draw(self.rng)
        action = self.rng.choice(self.game.legal_actions(state))
        text = self.game.action_text(state, action)
        argument = self.pick.choice(self.language.phrases["argument"]["guess"]).format(move=text)
        completion = self._joined(self._facts(state), argument, ending=f"best_move: {text}")
        inp = StateInput(state)
        return Example("policy", self.roles.policy.messages(inp), completion, action, inp)

    def q(self) -> Example:
        """An evaluation of a move that has no evidence yet: its verdict is noise, unless the move ends the game."""
        state, action = self._state_action()
        inp = ActionInput(state, action)
        evaluation = self.noise_evaluation(state, action)
        return Example("q", self.roles.q.messages(inp), with_ending(evaluation), evaluation.verdict, inp)

    def v(self) -> Example:
        """An evaluation of a position that has no evidence yet: its verdict is noise."""
        state = self.states.draw(self.rng)
        inp, me = StateInput(state), self.game.current_player(state)
        outlook = self._noise_outlook(open_line_texts(state, me), open_line_texts(state, 1 - me))
        text = self._joined(self._facts(state), self.language.forecast(self.language.player(state), outlook, self.pick))
        evaluation = Evaluation(text, outlook.verdict)
        return Example("v", self.roles.v.messages(inp), with_ending(evaluation), evaluation.verdict, inp)

    # -- roles that aggregate ------------------------------------------------------------------------------------------
    def g1_games(self) -> Example:
        """Counts the results of 1 to 9 games; the verdict is (won - lost) / games."""
        state, action = self._state_action()
        about_state = self.rng.random() < 0.2
        count = 8 if self.rng.random() < 0.4 else self.rng.randint(1, 9)
        games = self._evidence(state, action, about_state, count)
        inp = SamplesInput(state, None if about_state else action, tuple(game.text for game in games), "games")
        evaluation = self.merge_games(state, inp.action, games)
        return Example("g1_games", self.roles.g1.messages(inp), with_ending(evaluation), evaluation.verdict, inp)

    def g1_outlooks(self) -> Example:
        """Averages the verdicts of 1 to 5 texts of G2."""
        state, action = self._state_action()
        about_state = self.rng.random() < 0.3
        parts = [self._fused(state, self._line_of_play(state, action)) for _ in range(self.rng.randint(1, 5))]
        inp = SamplesInput(
            state, None if about_state else action, tuple(evaluation.text for evaluation, _ in parts), "outlooks"
        )
        evaluation = self.merge_outlooks(state, inp.action, [outlook for _, outlook in parts])
        return Example("g1_outlooks", self.roles.g1.messages(inp), with_ending(evaluation), evaluation.verdict, inp)

    def g2(self) -> Example:
        """Retells one or more moves and carries the successor's verdict over to the first mover's view."""
        state, action = self._state_action()
        actions = self._line_of_play(state, action)
        successor, outlook = self._successor(state, actions)
        inp = TransitionInput(state, self.language.moves(state, actions), successor)
        evaluation = self.fuse(state, actions, outlook)
        return Example("g2", self.roles.g2.messages(inp), with_ending(evaluation), evaluation.verdict, inp)

    # -- the role that improves ----------------------------------------------------------------------------------------
    def improvement(self) -> Example:
        """Chooses the best of given evaluations, the first listed on ties, and names the runner-up."""
        state = self.states.draw(self.rng)
        actions = list(self.game.legal_actions(state))
        if self.rng.random() < 0.25:
            actions = self.rng.sample(actions, self.rng.randint(1, len(actions)))
        self.rng.shuffle(actions)
        verdicts = self._verdicts(len(actions))
        candidates, hopes = [], {}
        for action, verdict in zip(actions, verdicts, strict=True):
            evaluation, outlook = self.evaluation_with(state, action, verdict)
            candidates.append((action, evaluation))
            hopes[action] = outlook.hope
        inp = CandidatesInput(state, tuple(candidates))
        completion, best = self.choose(inp, hopes)
        return Example("improvement", self.roles.improvement.messages(inp), completion, best, inp)

    def choose(self, inp: CandidatesInput, hopes: dict[int, str | None]) -> tuple[str, int]:
        """The text of I for given candidates, and the move it chooses."""
        ranked = sorted(inp.candidates, key=lambda candidate: -candidate[1].verdict)  # stable: first listed wins ties
        (best, evaluation), text = ranked[0], lambda action: self.game.action_text(inp.state, action)
        fields = {"move": text(best), "verdict": number(evaluation.verdict), "line": hopes.get(best)}
        kind = "only"
        if len(ranked) > 1:
            through = fields["line"] is not None and text(best) in fields["line"].split("-")
            kind = "aim" if through else "no_aim"
            fields |= {"second": text(ranked[1][0]), "second_verdict": number(ranked[1][1].verdict)}
        argument = self.pick.choice(self.language.phrases["argument"][kind]).format(**fields)
        return self._joined(self._facts(inp.state), argument, ending=f"best_move: {text(best)}"), best

    # -- reading -------------------------------------------------------------------------------------------------------
    def descriptor(self) -> Example:
        """Retells moves as a sentence."""
        state, action = self._state_action()
        actions = self._line_of_play(state, action, longest=5)
        messages = self._templates["descriptor"].messages(
            board=self.game.to_text(state),
            player=self.language.player(state),
            transition=self.language.moves(state, actions),
        )
        return Example("descriptor", messages, self.language.retell(state, actions, self.pick), None)

    def reader(self) -> Example:
        """Reads a board cell by cell."""
        state = self.states.draw(self.rng)
        messages = self._templates["reader"].messages(board=self.game.to_text(state))
        return Example("reader", messages, self.language.read(state, self.pick), None)

    # -- what an aggregator must answer --------------------------------------------------------------------------------
    def merge_games(self, state: Any, action: int | None, games: Sequence[Playout]) -> Evaluation:
        """G1's answer for given games."""
        results = [round(game.result) for game in games]
        won, drawn, lost = results.count(1), results.count(0), results.count(-1)
        me, n = self.language.player(state), len(games)
        counts = self.pick.choice(self.language.phrases["counts"]["games"])
        outlook = Outlook(
            round((won - lost) / n, 2),
            most_common([game.line for game in games if game.result > 0 and game.line]),
            most_common([game.line for game in games if game.result < 0 and game.line]),
        )
        return self._merged(state, action, counts.format(n=n, me=me, won=won, drawn=drawn, lost=lost), outlook)

    def merge_outlooks(self, state: Any, action: int | None, outlooks: Sequence[Outlook]) -> Evaluation:
        """G1's answer for given outlooks (all from the mover's view)."""
        verdicts = [outlook.verdict for outlook in outlooks]
        counts = self.pick.choice(self.language.phrases["counts"]["outlooks"]).format(
            n=len(verdicts), low=number(min(verdicts)), high=number(max(verdicts))
        )
        merged = Outlook(
            round(sum(verdicts) / len(verdicts), 2),
            most_common([outlook.hope for outlook in outlooks if outlook.hope]),
            most_common([outlook.danger for outlook in outlooks if outlook.danger]),
        )
        return self._merged(state, action, counts, merged)

    def fuse(self, state: Any, actions: Sequence[int], outlook: Outlook) -> Evaluation:
        """G2's answer: the moves retold, then the successor's outlook from the first mover's view."""
        retold = self.language.retell(state, actions, self.pick)
        text = self._joined(retold, self.language.forecast(self.language.player(state), outlook, self.pick))
        return Evaluation(text, outlook.verdict)

    def _merged(self, state: Any, action: int | None, counts: str, outlook: Outlook) -> Evaluation:
        facts = self._facts(state) if action is None else self._facts_after(state, action)
        forecast = self.language.forecast(self.language.player(state), outlook, self.pick)
        return Evaluation(self._joined(facts, counts, forecast), outlook.verdict)

    # -- noise: verdicts and lines that no evidence supports, for roles that must learn the form alone -----------------
    def noise_evaluation(self, state: Any, action: int) -> Evaluation:
        """A well-formed evaluation with a random verdict; true where the move ends the game."""
        return self.evaluation_with(state, action, self._verdict())[0]

    def evaluation_with(self, state: Any, action: int, verdict: float) -> tuple[Evaluation, Outlook]:
        """An evaluation of a move with a given verdict, and the outlook it words."""
        after, me = self.game.apply(state, action).state, self.game.current_player(state)
        if self.game.is_terminal(after):
            line = self.language.result(after).partition(" won by ")[2] or None
            outlook = Outlook(self.game.returns(after)[me], line)
        else:
            outlook = self._noise_outlook(open_line_texts(after, me), open_line_texts(after, 1 - me), verdict)
        forecast = self.language.forecast(self.game.player_names[me], outlook, self.pick)
        text = self._joined(self._facts_after(state, action), forecast)
        return Evaluation(text, outlook.verdict), outlook

    def _noise_outlook(self, mine: Sequence[str], yours: Sequence[str], verdict: float | None = None) -> Outlook:
        value = self._verdict() if verdict is None else verdict
        hope = self.rng.choice(mine) if mine and value > -1 and self.rng.random() < 0.85 else None
        danger = self.rng.choice(yours) if yours and value < 1 and self.rng.random() < 0.7 else None
        return Outlook(value, hope, danger)

    def _verdict(self) -> float:
        rng = self.rng
        kind = rng.random()
        if kind < 0.25:
            return float(rng.choice((-1, 1)))
        if kind < 0.5:
            n = rng.randint(1, 9)
            return round(rng.randint(-n, n) / n, 2)
        return round(rng.randint(-50, 50) / 50, 2)

    def _verdicts(self, count: int) -> list[float]:
        """Verdicts of several candidates: spread, clustered, eighths or all equal, so that near ties are common."""
        rng, kind = self.rng, self.rng.random()
        if kind < 0.4:
            return [self._verdict() for _ in range(count)]
        if kind < 0.8:
            centre, width = rng.randint(-50, 50), rng.choice((2, 5, 10, 20))
            return [max(-50, min(50, centre + rng.randint(-width, width))) / 50 for _ in range(count)]
        if kind < 0.97:
            return [round(rng.randint(-8, 8) / 8, 2) for _ in range(count)]
        return [self._verdict()] * count

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _state_action(self) -> tuple[Any, int]:
        state = self.states.draw(self.rng)
        return state, self.rng.choice(self.game.legal_actions(state))

    def _evidence(self, state: Any, action: int, about_state: bool, count: int) -> list[Playout]:
        rng = self.rng
        favour = (1.0, 1.0, 1.0) if rng.random() < 0.5 else (rng.random(), rng.random(), rng.random())
        if not about_state:
            return self.playouts.draw(state, action, count, favour)
        legal = self.game.legal_actions(state)
        return [self.playouts.draw(state, rng.choice(legal), 1, favour)[0] for _ in range(count)]

    def _line_of_play(self, state: Any, action: int, longest: int = 4) -> list[int]:
        actions, now = [action], self.game.apply(state, action).state
        while len(actions) < longest and not self.game.is_terminal(now) and self.rng.random() < 0.6:
            actions.append(self.rng.choice(self.game.legal_actions(now)))
            now = self.game.apply(now, actions[-1]).state
        return actions

    def _successor(self, state: Any, actions: Sequence[int]) -> tuple[str, Outlook]:
        """The text G2 is given about the end of a line of play, and the outlook it means for the first mover."""
        me, now = self.game.current_player(state), state
        for action in actions:
            now = self.game.apply(now, action).state
        if self.game.is_terminal(now):
            line = self.language.result(now).partition(" won by ")[2] or None
            result = self.game.returns(now)[me]
            return GAME_OVER, Outlook(result, line if result > 0 else None, line if result < 0 else None)
        evaluation, seen = self._evaluation_of_either_kind(now)
        mine = seen if self.game.current_player(now) == me else Outlook(-seen.verdict + 0.0, seen.danger, seen.hope)
        return evaluation.text, mine

    def _evaluation_of_either_kind(self, state: Any) -> tuple[Evaluation, Outlook]:
        """A noise evaluation as V writes it of the state, or as Q writes it of some move there: G2 may be given
        either."""
        if self.rng.random() < 0.5:
            return self.evaluation_with(state, self.rng.choice(self.game.legal_actions(state)), self._verdict())
        me = self.game.current_player(state)
        outlook = self._noise_outlook(open_line_texts(state, me), open_line_texts(state, 1 - me))
        text = self._joined(self._facts(state), self.language.forecast(self.language.player(state), outlook, self.pick))
        return Evaluation(text, outlook.verdict), outlook

    def _fused(self, state: Any, actions: Sequence[int]) -> tuple[Evaluation, Outlook]:
        _, outlook = self._successor(state, actions)
        return self.fuse(state, actions, outlook), outlook

    def _facts(self, state: Any) -> str:
        return self.language.facts(state, self.pick) if self.facts else ""

    def _facts_after(self, state: Any, action: int) -> str:
        if self.facts or self.game.is_terminal(self.game.apply(state, action).state):
            return self.language.facts_after(state, action, self.pick)
        return ""

    def _joined(self, *sentences: str, ending: str = "") -> str:
        text = " ".join(sentence for sentence in sentences if sentence)
        return f"{text}\n{ending}" if ending else text


def with_ending(evaluation: Evaluation) -> str:
    """An evaluation as a model must write it."""
    return f"{evaluation.text}\nfinal_evaluation: {number(evaluation.verdict)}"
