"""One writer a role: a random input and the answer that follows from the input alone.

The writers are also the definition of a right answer: tests and `docs/bundled_models.md` compare a model's answers
with `Example.answer`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from nlrl.agents.corpus.example import Example, RandomPicker, most_common, with_ending
from nlrl.agents.corpus.noise import random_verdict, random_verdicts
from nlrl.agents.corpus.playouts import EVENLY, LIBRARY_SIZE, SMALL_LIBRARY, Playout, Playouts, random_step
from nlrl.agents.corpus.states import StateSampler
from nlrl.agents.language import FIRST, Line, Outlook, Picker, language_of, number
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
from nlrl.backbones.language_model import Message
from nlrl.envs.game import Game

NEAR_SHARE = 0.6
"""How often games for one are shown from positions from which random walks arrive."""
CUT_SHARE = 0.05
"""How often a transition of a game for one ends in its cut."""
MOST_CANDIDATES = 9
"""That a prompt of I shows, so that it stays short in games with many moves."""


class Writer:
    """Writes examples of every role for one game.

    Args:
        facts: False leaves out the sentences that state facts (the ablation of docs/bundled_models.md).
        varied: False uses the first phrasing throughout.
    """

    def __init__(self, game: Game, seed: int, held_out: bool = False, facts: bool = True, varied: bool = True):
        self.game = game
        self.rng = random.Random(seed)
        self.pick: Picker = RandomPicker(self.rng) if varied else FIRST
        self.language = language_of(game)
        self.roles = Roles(game, "plain")
        self.states = StateSampler(game, held_out)
        size = LIBRARY_SIZE if self.states.is_listed else SMALL_LIBRARY
        self.playouts = Playouts(game, self.language, self.rng, size)
        self.facts = facts
        self._templates = load_templates(game.name, "plain")

    # -- roles that play and value -------------------------------------------------------------------------------------
    def policy(self) -> Example:
        """A uniformly random legal move, honestly called a guess."""
        state = self.states.draw(self.rng)
        action = self._random_action(state)
        text = self.game.action_text(state, action)
        argument = self.pick.choice(self.language.phrases["argument"]["guess"]).format(move=text)
        completion = self._joined(self._facts(state), argument, ending=f"best_move: {text}")
        inp = StateInput(state)
        return self._example("policy", self.roles.policy.messages(inp), completion, action, inp)

    def q(self) -> Example:
        """An evaluation of a move that has no evidence yet: its verdict is noise, unless the move ends the game."""
        state, action = self._state_action()
        inp = ActionInput(state, action)
        evaluation = self.noise_evaluation(state, action)
        return self._valued("q", self.roles.q.messages(inp), evaluation, inp)

    def v(self) -> Example:
        """An evaluation of a position that has no evidence yet: its verdict is noise."""
        state = self.states.draw(self.rng)
        inp = StateInput(state)
        evaluation, _ = self._noise_about(state)
        return self._valued("v", self.roles.v.messages(inp), evaluation, inp)

    # -- roles that aggregate ------------------------------------------------------------------------------------------
    def g1_games(self) -> Example:
        """Sums up 1 to 9 games; the verdict is the mean of their scores: (won - lost) / games, where games are won."""
        state, action = self._state_action(near=self.game.num_players == 1 and self.rng.random() < NEAR_SHARE)
        about_state = self.rng.random() < 0.2
        count = 8 if self.rng.random() < 0.4 else self.rng.randint(1, 9)
        games = self._evidence(state, action, about_state, count)
        inp = SamplesInput(state, None if about_state else action, tuple(game.text for game in games), "games")
        evaluation = self.merge_games(state, inp.action, games)
        return self._valued("g1_games", self.roles.g1.messages(inp), evaluation, inp)

    def g1_outlooks(self) -> Example:
        """Averages the verdicts of 1 to 5 texts of G2."""
        state, action = self._state_action()
        about_state = self.rng.random() < 0.3
        parts = [self._fused(self._line_of_play(state, action)) for _ in range(self.rng.randint(1, 5))]
        inp = SamplesInput(
            state, None if about_state else action, tuple(evaluation.text for evaluation, _ in parts), "outlooks"
        )
        evaluation = self.merge_outlooks(state, inp.action, [outlook for _, outlook in parts])
        return self._valued("g1_outlooks", self.roles.g1.messages(inp), evaluation, inp)

    def g2(self) -> Example:
        """Retells one or more moves and carries the successor's verdict over to the first mover's view."""
        state, action = self._state_action()
        line = self._line_of_play(state, action)
        moves, successor, outlook = self._successor(line)
        inp = TransitionInput(state, moves, successor)
        evaluation = self.fuse(line, outlook)
        return self._valued("g2", self.roles.g2.messages(inp), evaluation, inp)

    # -- the role that improves ----------------------------------------------------------------------------------------
    def improvement(self) -> Example:
        """Chooses the best of given evaluations, the first listed on ties, and names the runner-up."""
        state = self.states.draw(self.rng)
        actions = list(self.game.legal_actions(state))
        if len(actions) > MOST_CANDIDATES:
            actions = self.rng.sample(actions, MOST_CANDIDATES)
        if self.rng.random() < 0.25:
            actions = self.rng.sample(actions, self.rng.randint(1, len(actions)))
        self.rng.shuffle(actions)
        verdicts = random_verdicts(self.rng, len(actions))
        candidates, hopes = [], {}
        for action, verdict in zip(actions, verdicts, strict=True):
            evaluation, outlook = self.evaluation_with(state, action, verdict)
            candidates.append((action, evaluation))
            hopes[action] = outlook.hope
        inp = CandidatesInput(state, tuple(candidates))
        completion, best = self.choose(inp, hopes)
        return self._example("improvement", self.roles.improvement.messages(inp), completion, best, inp)

    def choose(self, inp: CandidatesInput, hopes: dict[int, str | None]) -> tuple[str, int]:
        """The text of I for given candidates, and the move it chooses."""
        ranked = sorted(inp.candidates, key=lambda candidate: -candidate[1].verdict)  # stable: first listed wins ties
        (best, evaluation), text = ranked[0], lambda action: self.game.action_text(inp.state, action)
        fields = {"move": text(best), "verdict": number(evaluation.verdict), "line": hopes.get(best)}
        kind = "only"
        if len(ranked) > 1:
            serves = fields["line"] is not None and self.language.serves(text(best), fields["line"])
            kind = "aim" if serves else "no_aim"
            fields |= {"second": text(ranked[1][0]), "second_verdict": number(ranked[1][1].verdict)}
        argument = self.pick.choice(self.language.phrases["argument"][kind]).format(**fields)
        return self._joined(self._facts(inp.state), argument, ending=f"best_move: {text(best)}"), best

    # -- reading -------------------------------------------------------------------------------------------------------
    def descriptor(self) -> Example:
        """Retells moves as a sentence."""
        state, action = self._state_action()
        line = self._line_of_play(state, action, self.language.longest_transition + 1)
        fields = self.roles.policy.fields(StateInput(state)) | {"transition": self.language.moves(line)}
        messages = self._templates["descriptor"].messages(**fields)
        return self._example("descriptor", messages, self.language.retell(line, self.pick), None)

    def reader(self) -> Example:
        """Reads a board piece by piece."""
        state = self.states.draw(self.rng)
        messages = self._templates["reader"].messages(**self.roles.policy.fields(StateInput(state)))
        return self._example("reader", messages, self.language.read(state, self.pick), None)

    # -- what an aggregator must answer --------------------------------------------------------------------------------
    def merge_games(self, state: Any, action: int | None, games: Sequence[Playout]) -> Evaluation:
        """G1's answer for given games."""
        scores = [game.score for game in games]
        outlook = Outlook(
            round(sum(scores) / len(scores), 2),
            most_common([game.aim for game in games if game.score > 0 and game.aim]),
            most_common([game.aim for game in games if game.score < 0 and game.aim]),
        )
        counts = self.language.summary(scores, self.language.player(state), self.pick)
        return self._merged(state, action, counts, outlook)

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

    def fuse(self, line: Line, outlook: Outlook) -> Evaluation:
        """G2's answer: the moves retold, then what the successor's outlook means for the first mover."""
        retold = self.language.retell(line, self.pick)
        text = self._joined(retold, self.language.forecast(self.language.player(line.start), outlook, self.pick))
        return Evaluation(text, outlook.verdict)

    def _merged(self, state: Any, action: int | None, counts: str, outlook: Outlook) -> Evaluation:
        facts = self._facts(state) if action is None else self._facts_after(state, action)
        forecast = self.language.forecast(self.language.player(state), outlook, self.pick)
        return Evaluation(self._joined(facts, counts, forecast), outlook.verdict)

    # -- noise: verdicts and lines that no evidence supports, for roles that must learn the form alone -----------------
    def noise_evaluation(self, state: Any, action: int) -> Evaluation:
        """A well-formed evaluation with a random verdict; true where the move ends the game."""
        return self.evaluation_with(state, action, random_verdict(self.rng))[0]

    def evaluation_with(self, state: Any, action: int, verdict: float) -> tuple[Evaluation, Outlook]:
        """An evaluation of a move with a given verdict, and the outlook it words."""
        me, outcomes = self.game.current_player(state), self.game.transitions(state, action)
        if self._ends(state, action):
            outlook = self._outlook_of_end(state, action)
        else:
            outlook = self._noise_outlook(outcomes[0].state, me, verdict)
        forecast = self.language.forecast(self.game.player_names[me], outlook, self.pick)
        text = self._joined(self._facts_after(state, action), forecast)
        return Evaluation(text, outlook.verdict), outlook

    def _outlook_of_end(self, state: Any, action: int) -> Outlook:
        """Of a move that ends the game, whatever chance decides: by the rules, no forecast."""
        steps, me = self.game.transitions(state, action), self.game.current_player(state)
        lines = [Line((state, step.state), (action,)) for step in steps]
        scores = [self.language.score(line, me) for line in lines]
        verdict = round(sum(step.probability * score for step, score in zip(steps, scores, strict=True)), 2)
        aim = self.language.aim_of(lines[0])
        return Outlook(verdict, aim if verdict > 0 else None, aim if verdict < 0 else None)

    def _noise_about(self, state: Any) -> tuple[Evaluation, Outlook]:
        """A well-formed evaluation of a position with a random verdict."""
        outlook = self._noise_outlook(state, self.game.current_player(state))
        text = self._joined(self._facts(state), self.language.forecast(self.language.player(state), outlook, self.pick))
        return Evaluation(text, outlook.verdict), outlook

    def _noise_outlook(self, state: Any, me: int, verdict: float | None = None) -> Outlook:
        """A random verdict, or the given one, and aims that the sides have in this state."""
        mine = self.language.aims(state, me)
        yours = self.language.aims(state, 1 - me) if self.game.num_players > 1 else ()
        value = random_verdict(self.rng) if verdict is None else verdict
        hope = self.rng.choice(mine) if mine and value > -1 and self.rng.random() < 0.85 else None
        danger = self.rng.choice(yours) if yours and value < 1 and self.rng.random() < 0.7 else None
        return Outlook(value, hope, danger)

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _random_action(self, state: Any) -> int:
        return self.rng.choice(self.game.legal_actions(state))

    def _state_action(self, near: bool = False) -> tuple[Any, int]:
        state = self.states.draw_near_the_goal(self.rng) if near else self.states.draw(self.rng)
        return state, self._random_action(state)

    def _evidence(self, state: Any, action: int, about_state: bool, count: int) -> list[Playout]:
        rng = self.rng
        favour = EVENLY if rng.random() < 0.5 else (rng.random(), rng.random(), rng.random())
        if not about_state:
            return self.playouts.draw(state, action, count, favour)
        legal = self.game.legal_actions(state)
        return [self.playouts.draw(state, rng.choice(legal), 1, favour)[0] for _ in range(count)]

    def _line_of_play(self, state: Any, action: int, longest: int | None = None) -> Line:
        longest = longest or self.language.longest_transition
        states, actions = [state, random_step(self.game, state, action, self.rng)], [action]
        while len(actions) < longest and not self.game.is_terminal(states[-1]) and self.rng.random() < 0.6:
            actions.append(self.language.random_action(states[-1], actions[-1], self.rng))
            states.append(random_step(self.game, states[-1], actions[-1], self.rng))
        return Line(tuple(states), tuple(actions))

    def _successor(self, line: Line) -> tuple[str, str, Outlook]:
        """What G2 is given, the moves and a text about where they led, and the outlook it means for the first mover."""
        me, over = self.game.current_player(line.start), self.game.is_terminal(line.end)
        if over or (self.game.num_players == 1 and self.rng.random() < CUT_SHARE):
            score, aim = round(self.language.score(line, me), 2), self.language.aim_of(line)
            outlook = Outlook(score, aim if score > 0 else None, aim if score < 0 else None)
            return self.language.told(line), GAME_OVER, outlook
        evaluation, seen = self._evaluation_of_either_kind(line.end)
        return self.language.moves(line), evaluation.text, self.language.carry(line, seen)

    def _evaluation_of_either_kind(self, state: Any) -> tuple[Evaluation, Outlook]:
        """A noise evaluation as V writes it of the state, or as Q writes it of some move there: G2 may be given
        either."""
        if self.rng.random() < 0.5:
            return self.evaluation_with(state, self._random_action(state), random_verdict(self.rng))
        return self._noise_about(state)

    def _fused(self, line: Line) -> tuple[Evaluation, Outlook]:
        _, _, outlook = self._successor(line)
        return self.fuse(line, outlook), outlook

    def _facts(self, state: Any) -> str:
        return self.language.facts(state, self.pick) if self.facts else ""

    def _facts_after(self, state: Any, action: int) -> str:
        if self.facts or self._ends(state, action):
            return self.language.facts_after(state, action, self.pick)
        return ""

    def _ends(self, state: Any, action: int) -> bool:
        """Whether an action ends the game, whatever chance decides."""
        return all(self.game.is_terminal(step.state) for step in self.game.transitions(state, action))

    def _example(self, *fields: Any) -> Example:
        return Example(*fields, game=self.game.spec)

    def _valued(self, role: str, messages: tuple[Message, ...], evaluation: Evaluation, inp: Any) -> Example:
        return self._example(role, messages, with_ending(evaluation), evaluation.verdict, inp)

    def _joined(self, *sentences: str, ending: str = "") -> str:
        text = " ".join(sentence for sentence in sentences if sentence)
        return f"{text}\n{ending}" if ending else text
