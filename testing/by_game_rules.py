"""The same as `by_rules` for any small game that has a language: a model that reads plain prompts of that game and
answers every role by its rules.

A prompt's board is found among those of all states of the game, and what a prompt tells of games and steps is read by
comparing it with what the language would write; so nothing here knows any game's wording.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nlrl.agents.corpus.example import with_ending
from nlrl.agents.corpus.playouts import Playout
from nlrl.agents.corpus.states import states_by_ply
from nlrl.agents.corpus.writers import Writer
from nlrl.agents.language import Line, Outlook
from nlrl.agents.prompts import load_templates
from nlrl.agents.roles import ActionInput, CandidatesInput, Evaluation, SamplesInput
from nlrl.backbones.language_model import Completion, Request
from nlrl.envs import make_from_spec
from nlrl.envs.random import derive_seed
from nlrl.testing.by_rules import AGENT_FILE, LookupTrainer

_VERDICT = re.compile(r"[+-]\d\.\d\d")
_ITEM = re.compile(r"^(?:game|outlook) \d: (.*)$", re.MULTILINE)
_LOST = ("hole", "out of steps", "forfeits")


class GameRuleModel:
    """Answers plain-style prompts of one small game by rules, or from texts it was given as weights.

    Args:
        spec: of the game; its states are listed, so it must be small.
        skill: the share of moves that the untrained policy chooses by `best`, if that is given.
    """

    name = "by-game-rules"
    reads_expectations = False

    def __init__(self, spec: str) -> None:
        self._version, self._texts = "by-game-rules@0", dict[str, str]()
        self._writer = Writer(make_from_spec(spec), seed=0, varied=False)
        self.language, self.game = self._writer.language, self._writer.game
        states = [state for layer in states_by_ply(spec).values() for state in layer]
        self._boards = {self.language.board(state): state for state in states}
        self._tasks = self._first_lines()

    @property
    def weight_version(self) -> str:
        return self._version

    def load_weights(self, state: Mapping[str, str], version: str) -> None:
        """Texts by prompt; prompts that are not among them are answered by rules."""
        self._texts, self._version = dict(state), version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def _complete(self, request: Request) -> Completion:
        prompt = request.messages[-1].content
        seed = request.seed if request.sampling.temperature else 0  # greedy answers use no seed
        text = self._texts.get(prompt) or self._by_rules(prompt, seed)
        tokens = tuple(text.encode())
        return Completion(text, tokens, (0.0,) * len(tokens), "stop", self._version, len(prompt.encode()))

    def _first_lines(self) -> dict[str, Callable[[str, Any], str]]:
        answers = {
            "policy": self._policy,
            "q": self._q,
            "v": self._v,
            "g1_games": self._g1_games,
            "g1_games_v": self._g1_games,
            "g1_outlooks": self._g1_outlooks,
            "g1_outlooks_v": self._g1_outlooks,
            "g2": self._g2,
            "improvement": self._improvement,
        }
        templates = load_templates(self.game.name, "plain")
        first = {name: templates[name].user.split("\n", 1)[0] for name in answers}
        return {first[name].format(setting=self.language.setting): answer for name, answer in answers.items()}

    def _by_rules(self, prompt: str, seed: int) -> str:
        task, _, rest = prompt.partition("\n")
        lines = rest.split("\n")
        found = [state for n in range(1, len(lines) + 1) if (state := self._boards.get("\n".join(lines[:n])))]
        if task not in self._tasks or not found:
            return "I do not know this prompt."
        self._writer.rng = random.Random(derive_seed("by rules", prompt, seed))
        return self._tasks[task](prompt, found[-1])

    # -- roles ---------------------------------------------------------------------------------------------------------
    def _policy(self, prompt: str, state: Any) -> str:
        move = self.game.action_text(state, self._writer.rng.choice(self.game.legal_actions(state)))
        return f"{self.language.facts(state)} I try {move}.\nbest_move: {move}"

    def _q(self, prompt: str, state: Any) -> str:
        (action,) = [
            action
            for action in self.game.legal_actions(state)
            if prompt.startswith(self._writer.roles.q.messages(ActionInput(state, action))[-1].content + "\n")
            or prompt == self._writer.roles.q.messages(ActionInput(state, action))[-1].content
        ]
        return with_ending(self._writer.noise_evaluation(state, action))

    def _v(self, prompt: str, state: Any) -> str:
        outlook = Outlook(self._writer.rng.randint(-50, 50) / 50)
        forecast = self.language.forecast(self.language.player(state), outlook)
        return with_ending(Evaluation(f"{self.language.facts(state)} {forecast}", outlook.verdict))

    def _g1_games(self, prompt: str, state: Any) -> str:
        games = [Playout(text, self._score(state, text), None) for text in _ITEM.findall(prompt)]
        return with_ending(self._writer.merge_games(state, self._action(prompt, state), games))

    def _g1_outlooks(self, prompt: str, state: Any) -> str:
        outlooks = [Outlook(float(_VERDICT.findall(text)[-1])) for text in _ITEM.findall(prompt)]
        return with_ending(self._writer.merge_outlooks(state, self._action(prompt, state), outlooks))

    def _g2(self, prompt: str, state: Any) -> str:
        steps, then = re.search(r"^steps: (.*)$", prompt, re.M), re.search(r"^then: (.*)", prompt, re.M | re.S)
        assert steps is not None, prompt
        assert then is not None, prompt
        line = self.line(state, steps[1])
        if then[1] == "the game is over.":
            outlook = Outlook(self._score(state, steps[1]))
        else:
            outlook = self.language.carry(line, Outlook(float(_VERDICT.findall(then[1])[-1])))
        return with_ending(self._writer.fuse(line, outlook))

    def _improvement(self, prompt: str, state: Any) -> str:
        labels = {self.language.label(state, action): action for action in self.game.legal_actions(state)}
        found = [
            (labels[name], text)
            for name, text in re.findall(r"^([^:\n]+): (.*)$", prompt, re.MULTILINE)
            if name in labels
        ]
        candidates = tuple((action, Evaluation(text, float(_VERDICT.findall(text)[-1]))) for action, text in found)
        return self._writer.choose(CandidatesInput(state, candidates), {})[0]

    # -- reading -------------------------------------------------------------------------------------------------------
    def _action(self, prompt: str, state: Any) -> int | None:
        """The action that a prompt of G1 is about; None where it is about the position."""
        role, kind = self._writer.roles.g1, "games" if "from these games" in prompt else "outlooks"
        for action in self.game.legal_actions(state):
            if prompt.startswith(role.messages(SamplesInput(state, action, ("",), kind))[-1].content.rstrip(": ")):
                return action
        return None

    def _score(self, state: Any, told: str) -> float:
        """What a retold game was worth for the player to move in `state`."""
        if numbers := _VERDICT.findall(told):
            return float(numbers[-1])
        if self.game.num_players == 1:
            return -1.0 if any(word in told for word in _LOST) else 1.0
        me, _, you = self.language.player(state), None, self.language.opponent(state)
        if "forfeits" in told:
            return -1.0 if f"{me} forfeits" in told else 1.0
        return 1.0 if f"{me} won" in told else -1.0 if f"{you} won" in told else 0.0

    def line(self, state: Any, told: str) -> Line:
        """The first line from a state that is retold so, whatever may be said of its end."""
        words = re.split(r", | and \d+ more", told)[0].split()
        for length in range(1, sum(int(re.sub(r"\D", "", word) or 1) for word in words) + 1):
            for line in self._lines(state, length, words):
                if told in (self.language.moves(line), self.language.cut(line), self._forfeit(line)):
                    return line
        raise AssertionError(f"no line from this state is retold as {told!r}:\n{state}")

    def _forfeit(self, line: Line) -> str:
        return "" if self.game.is_terminal(line.end) else self.language.forfeit(line)

    def _lines(self, state: Any, length: int, words: list[str]) -> list[Line]:
        lines = [Line((state,), ())]
        for _ in range(length):
            longer = [
                Line((*line.states, step.state), (*line.actions, action))
                for line in lines
                for action in self.game.legal_actions(line.end)
                for step in self.game.transitions(line.end, action)
            ]
            lines = [line for line in longer if self._begins(line, words)]
        return lines

    def _begins(self, line: Line, words: list[str]) -> bool:
        """Whether what is told of a line agrees with the words so far; its last word may still grow."""
        mine = self.language.moves(line).split(", ")[0].split()
        return mine[:-1] == words[: len(mine) - 1] and len(mine) <= len(words)


def make_model(agent: str = "", game: str = "") -> GameRuleModel:
    """What a config's `model.kind = "scripted"` asks a module for.

    Args:
        agent: a folder that `LookupTrainer.export` wrote, to begin with its texts.
        game: its spec.
    """
    model = GameRuleModel(game)
    if agent:
        model.load_weights(json.loads((Path(agent) / AGENT_FILE).read_text()), f"by-game-rules in {agent}")
    return model


def make_trainer() -> LookupTrainer:
    """Likewise."""
    return LookupTrainer()
