"""A model that plays every Tic-Tac-Toe role by reading its prompt and following the rules of the role: no network,
milliseconds.

It writes exactly what the bundled base is taught to write: a random legal move, noise for V and Q, the counted
verdict for G1, the carried-over verdict for G2, the best candidate for I. `LookupTrainer` "trains" it by
remembering texts, so a whole language policy iteration runs, deterministically, and really improves: use it to test
stages, resumption and tools.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrl.agents.corpus.example import with_ending
from nlrl.agents.corpus.playouts import Playout
from nlrl.agents.corpus.writers import Writer
from nlrl.agents.language import Outlook, line_of
from nlrl.agents.roles import CandidatesInput, Evaluation, body
from nlrl.backbones.language_model import Completion, Message, Request
from nlrl.envs import make
from nlrl.envs.random import derive_seed
from nlrl.orchestration.fits import PolicyFit, PreferenceFit, ValueFit

AGENT_FILE = "texts.json"
_VERDICT = re.compile(r"[+-]\d\.\d\d")
_BOARD = re.compile(r"(?: \S \|){2} \S\n.*\n.*\n.*\n(?: \S \|){2} \S")
_ITEM = re.compile(r"^(?:game|outlook|move) (\d): (.*)$", re.MULTILINE)


class RuleModel:
    """Answers plain-style Tic-Tac-Toe prompts by rules, or from texts it was given as weights."""

    name = "by-rules"
    reads_expectations = False

    def __init__(self) -> None:
        self._version = "by-rules@0"
        self._texts: Mapping[str, str] = {}
        self._writer = Writer(make("tictactoe"), seed=0, varied=False)
        self._answers: dict[str, Callable[[str, Any, random.Random], str]] = {
            "Choose a move.": self._policy,
            "Value the move.": self._q,
            "Value the position.": self._v,
            "Judge the move from these games.": self._g1_games,
            "Judge the move from these outlooks.": self._g1_outlooks,
            "Judge the position from these games.": self._g1_games,
            "Judge the position from these outlooks.": self._g1_outlooks,
            "Join the steps and what follows.": self._g2,
            "Compare the moves.": self._improvement,
        }

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

    def _by_rules(self, prompt: str, seed: int) -> str:
        board = _BOARD.search(prompt)
        answer = self._answers.get(prompt.split("\n", 1)[0])
        if board is None or answer is None:
            return "I do not know this prompt."
        rng = random.Random(derive_seed("by rules", prompt, seed))
        self._writer.rng = rng
        try:
            state = self._writer.game.parse_text(board[0])
        except ValueError:  # no game passes through it
            return "I do not know this board."
        return answer(prompt, state, rng)

    def _policy(self, prompt: str, state: Any, rng: random.Random) -> str:
        move = rng.choice(self._writer.game.legal_actions(state)) + 1
        return f"{self._writer.language.facts(state)} I try {move}.\nbest_move: {move}"

    def _q(self, prompt: str, state: Any, rng: random.Random) -> str:
        action = _action(prompt)
        assert action is not None, f"no action in prompt: {prompt}"
        return with_ending(self._writer.noise_evaluation(state, action))

    def _v(self, prompt: str, state: Any, rng: random.Random) -> str:
        forecast = self._writer.language.forecast(
            self._writer.language.player(state), Outlook(rng.randint(-50, 50) / 50)
        )
        evaluation = Evaluation(
            f"{self._writer.language.facts(state)} {forecast}", float(_VERDICT.findall(forecast)[0])
        )
        return with_ending(evaluation)

    def _g1_games(self, prompt: str, state: Any, rng: random.Random) -> str:
        me = self._writer.language.player(state)
        games = [Playout(text, _result(text, me), _line(text)) for _, text in _ITEM.findall(prompt)]
        return with_ending(self._writer.merge_games(state, _action(prompt), games))

    def _g1_outlooks(self, prompt: str, state: Any, rng: random.Random) -> str:
        outlooks = [Outlook(float(_VERDICT.findall(text)[-1])) for _, text in _ITEM.findall(prompt)]
        return with_ending(self._writer.merge_outlooks(state, _action(prompt), outlooks))

    def _g2(self, prompt: str, state: Any, rng: random.Random) -> str:
        steps = re.search(r"steps: ([^,\n]*)(.*)\nthen: (.*)", prompt)
        assert steps is not None
        me, actions = self._writer.language.player(state), [int(word[1]) - 1 for word in steps[1].split()]
        verdicts = _VERDICT.findall(steps[3])
        seen = re.search(r"put (.) at|for (.) is|(.) stands at", steps[3])
        speaker = me if seen is None else next(group for group in seen.groups() if group)
        verdict = _result(steps[2], me) if not verdicts else float(verdicts[-1]) * (1 if speaker == me else -1)
        line = line_of(self._writer.game, state, actions)
        return with_ending(self._writer.fuse(line, Outlook(verdict + 0.0)))

    def _improvement(self, prompt: str, state: Any, rng: random.Random) -> str:
        found = [(int(move) - 1, text) for move, text in _ITEM.findall(prompt)]
        candidates = tuple((action, Evaluation(text, float(_VERDICT.findall(text)[-1]))) for action, text in found)
        hopes = {action: _hope(text) for action, text in found}
        return self._writer.choose(CandidatesInput(state, candidates), hopes)[0]


def _action(prompt: str) -> int | None:
    """The move that the prompt is about; None where it is about the position."""
    found = re.search(r"^[OX] plays (\d)$", prompt, re.MULTILINE)
    return int(found[1]) - 1 if found else None


def _result(text: str, me: str) -> float:
    if "forfeits" in text:
        return -1.0 if f"{me} forfeits" in text else 1.0
    won = re.search(r"([OX]) won", text)
    return 0.0 if won is None else 1.0 if won[1] == me else -1.0


def _line(text: str) -> str | None:
    found = re.search(r"by (\d-\d-\d)", text)
    return found[1] if found else None


def _hope(text: str) -> str | None:
    found = re.search(r"(?:mostly by|along|completes) (\d-\d-\d)", text)
    return found[1] if found else None


@dataclass
class LookupTrainer:
    """Learns by heart: for every prompt the text whose verdict is nearest to the mean of all it was shown, or the
    last text; of sampled answers the one that turned out best, of two the preferred one. Returns it averages."""

    def __post_init__(self) -> None:
        self._texts: dict[str, dict[str, str]] = {"critic": {}, "actor": {}}
        self._returns: dict[str, dict[str, float]] = {"critic": {}, "actor": {}}

    def fit(self, network: str, examples: Sequence[Any], settings: Any) -> dict[str, Any]:
        by_prompt: dict[str, list[Any]] = {}
        for example in examples:
            by_prompt.setdefault(_prompt(example.messages), []).append(example)
        if isinstance(settings, ValueFit):
            self._returns[network] |= {prompt: _mean_target(found) for prompt, found in by_prompt.items()}
        elif isinstance(settings, PolicyFit):
            best = {prompt: max(found, key=lambda e: e.advantage) for prompt, found in by_prompt.items()}
            self._texts[network] |= {p: bytes(e.tokens).decode() for p, e in best.items() if e.advantage > 0}
            self._returns[network] |= {prompt: found[-1].return_ for prompt, found in by_prompt.items()}
        elif isinstance(settings, PreferenceFit):
            self._texts[network] |= {prompt: found[-1].chosen for prompt, found in by_prompt.items()}
        else:
            texts = {prompt: [example.completion for example in found] for prompt, found in by_prompt.items()}
            self._texts[network] |= {prompt: _typical(found) for prompt, found in texts.items()}
        return {"loss": 0.0, "examples": len(examples), "steps": len(by_prompt)}

    def average(self, network: str, into: str, share: float) -> None:
        """A mean of texts: the newer one, with the mean of both verdicts."""
        old, new = self._texts.get(into, {}), self._texts[network]
        self._texts[into] = old | {prompt: _between(old.get(prompt, text), text, share) for prompt, text in new.items()}

    def values(self, network: str, prompts: Sequence[Sequence[Message]]) -> tuple[list[float], int]:
        found = [_prompt(messages) for messages in prompts]
        return [self._returns[network].get(prompt, 0.0) for prompt in found], sum(map(len, found))

    def save_head(self, network: str, path: str) -> None:
        Path(path).write_text(json.dumps(self._returns[network], sort_keys=True))

    def load_head(self, network: str, path: str) -> None:
        self._returns[network] = json.loads(Path(path).read_text())

    def weights(self, network: str) -> dict[str, str]:
        return dict(self._texts[network])

    def save(self, network: str, path: str) -> None:
        Path(path).write_text(json.dumps(self._texts[network], sort_keys=True))

    def load(self, network: str, path: str) -> None:
        self._texts[network] = json.loads(Path(path).read_text())

    def export(self, network: str, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.save(network, str(Path(folder) / AGENT_FILE))


def _prompt(messages: Sequence[Message]) -> str:
    return messages[-1].content


def _between(old: str, new: str, share: float) -> str:
    before, after = _VERDICT.findall(old), _VERDICT.findall(new)
    if not before or not after:
        return new
    mean = (1 - share) * float(before[-1]) + share * float(after[-1])
    return _VERDICT.sub(f"{round(mean, 2) + 0.0:+.2f}", new)


def _mean_target(examples: Sequence[Any]) -> float:
    weight = sum(example.weight for example in examples)
    return sum(example.weight * example.target for example in examples) / weight


def _typical(texts: Sequence[str]) -> str:
    verdicts = [
        float(found[-1]) if (found := _VERDICT.findall(body(text))) and "best_move" not in text else None
        for text in texts
    ]
    numbers = [verdict for verdict in verdicts if verdict is not None]
    if not numbers:
        return texts[-1]
    mean = sum(numbers) / len(numbers)
    rounded = f"{round(mean, 2) + 0.0:+.2f}"
    nearest = min(range(len(texts)), key=lambda i: abs((verdicts[i] or 0.0) - mean))
    return _VERDICT.sub(rounded, texts[nearest])


def make_model(agent: str = "") -> RuleModel:
    """What a config's `model.kind = "scripted"` asks a module for.

    Args:
        agent: a folder that `LookupTrainer.export` wrote, to begin with its texts.
    """
    model = RuleModel()
    if agent:
        model.load_weights(json.loads((Path(agent) / AGENT_FILE).read_text()), f"by-rules in {agent}")
    return model


def make_trainer() -> LookupTrainer:
    """Likewise."""
    return LookupTrainer()
