"""A scripted model that answers at once, whatever it is asked, in plain prompts of any game that names its legal moves:
what is left of a stage's time is what everything around the model takes."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from nlrl.backbones.language_model import Completion, Request
from nlrl.testing.by_rules import LookupTrainer

TOKENS = 60
"""Of an answer."""
_TOKENS, _LOGPROBS = tuple(range(TOKENS)), (-0.5,) * TOKENS
_CANDIDATE = re.compile(r"^move (\S+):", re.MULTILINE)


class InstantModel:
    """Names some legal move, some candidate, or some verdict, always the same for the same prompt and seed."""

    name = weight_version = "instant@0"
    reads_expectations = False

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        return [self._complete(request) for request in requests]

    def load_weights(self, state: object, version: str) -> None:
        """Only its name changes."""
        self.weight_version = version

    def _complete(self, request: Request) -> Completion:
        prompt = request.messages[-1].content
        text = _answer(prompt, zlib.crc32(prompt.encode(), request.seed & 0xFFFFFFFF))
        return Completion(text, _TOKENS, _LOGPROBS, "stop", self.weight_version, len(prompt) // 3)


def _answer(prompt: str, draw: int) -> str:
    _, listed, moves = prompt.rpartition("\nmoves: ")
    offered = moves.split() if listed else _CANDIDATE.findall(prompt)
    if offered:
        return f"Each side has as much to lose, and so this move.\nbest_move: {offered[draw % len(offered)]}"
    verdict = f"{draw % 201 / 100 - 1:+.2f}"
    return (
        f"Both sides have pawns left, and each may still be caught. I expect {verdict}.\nfinal_evaluation: {verdict}"
    ).replace("-0.00", "+0.00")


def make_model() -> InstantModel:
    return InstantModel()


def make_trainer() -> LookupTrainer:
    return LookupTrainer()
