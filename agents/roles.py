"""The language roles of NLRL: policy, V, Q, the aggregators G1 and G2, and the improvement operator I.

1. A role turns a typed input into chat messages and a model's answer into a typed output, or into a `ParseFailure`
   that says why.
2. Roles do not know which model answers, where it runs, or what happens to the output.
3. G2 fuses one described transition with the evaluation of its successor; G1 merges samples (retold games, or texts
   of G2) into one evaluation. They are separate roles and separate calls.
4. A verdict is a number in [-1, 1] from the view of the player to move in the role's input state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

from nlrl.agents.endings import without_ending
from nlrl.agents.headings import parse_verdict
from nlrl.agents.language import language_of, number
from nlrl.agents.parser import ParseFailure, parse_choice, parse_move
from nlrl.agents.prompts import FIELDS, Template, fields_of, load_templates
from nlrl.backbones.language_model import Completion, Message
from nlrl.envs.game import Game

In = TypeVar("In")
Out = TypeVar("Out")
State = Any
SampleKind = Literal["games", "outlooks"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a language value function says: the text without its machine-readable ending, and the verdict it ends
    with."""

    text: str
    verdict: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What a policy or the improvement operator says: its argument (the whole answer) and the move it ends with."""

    action: int
    argument: str


@dataclass(frozen=True, slots=True)
class StateInput:
    """Input of the policy and of V."""

    state: State
    against: str = ""
    """The opponent, as it is named in configs, where a value is told."""


@dataclass(frozen=True, slots=True)
class ActionInput:
    """Input of Q."""

    state: State
    action: int
    against: str = ""
    """As in `StateInput`."""


@dataclass(frozen=True, slots=True)
class SamplesInput:
    """Input of G1: samples of what followed `state` (and `action`, where a Q target is made)."""

    state: State
    action: int | None
    samples: tuple[str, ...]
    kind: SampleKind = "games"


@dataclass(frozen=True, slots=True)
class TransitionInput:
    """Input of G2: the moves played from `state`, retold, and the evaluation of where they led (from that state's
    mover's view)."""

    state: State
    transition: str
    successor: str


@dataclass(frozen=True, slots=True)
class RefinementInput:
    """Input of a refinement: the move that the policy proposes, and the critique of it."""

    state: State
    action: int
    critique: Evaluation


@dataclass(frozen=True, slots=True)
class CandidatesInput:
    """Input of I: candidate moves, each with the critic's evaluation."""

    state: State
    candidates: tuple[tuple[int, Evaluation], ...]


GAME_OVER = "the game is over."
"""What G2 is given in place of an evaluation when the transition ended the game."""


def body(text: str) -> str:
    """An evaluation without its machine-readable ending."""
    return without_ending(text).strip()


def shown(evaluation: Evaluation, style: str) -> str:
    """An evaluation in a prompt. Bundled models write their verdict into the text; other models' prose may leave it to
    the ending."""
    return evaluation.text if style == "plain" else f"{evaluation.text} (evaluation: {number(evaluation.verdict)})"


class Role(ABC, Generic[In, Out]):
    """One role for one game, in one prompt style."""

    name: str

    def __init__(self, game: Game, style: str = "plain", folder: str | None = None):
        self.game, self.style = game, style
        self.language = language_of(game)
        self._templates = load_templates(game.name, style, folder)

    def messages(self, inp: In) -> tuple[Message, ...]:
        """The prompt for one input; its last line names the opponent where the input does."""
        template = self._template(self.variant(inp))
        messages = template.messages(**self.fields(inp, fields_of(template)))
        against = getattr(inp, "against", "")
        if not against:
            return messages
        return (*messages[:-1], replace(messages[-1], content=f"{messages[-1].content}\nagainst {against}"))

    def variant(self, inp: In) -> str:
        """The template this input needs; falls back to the role's name where a style has no such variant."""
        return self.name

    def fields(self, inp: In, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        """The template fields for one input; of those that tell of the state, the wanted ones."""
        state = inp.state  # type: ignore[attr-defined]
        return {name: write(self, state) for name, write in _STATE_FIELDS.items() if name in wanted}

    @abstractmethod
    def parse(self, inp: In, completion: Completion) -> Out | ParseFailure:
        """The typed output, or why there is none."""

    def _template(self, variant: str) -> Template:
        return self._templates.get(variant) or self._templates[self.name]


_STATE_FIELDS: dict[str, Callable[[Role[Any, Any], State], str]] = {
    "board": lambda role, state: role.language.board(state),
    "diagram": lambda role, state: role.game.to_text(state),
    "player": lambda role, state: role.language.player(state),
    "opponent": lambda role, state: role.language.opponent(state),
    "legal": lambda role, state: role.language.legal(state),
    "setting": lambda role, state: role.language.setting,
    "longest": lambda role, state: str(role.game.max_length),
    "scale": lambda role, state: role.language.scale,
}
"""What prompts may tell of a state; written where the template asks for it."""


class _ValueRole(Role[In, Evaluation]):
    def parse(self, inp: In, completion: Completion) -> Evaluation | ParseFailure:
        state = inp.state  # type: ignore[attr-defined]
        verdict = parse_verdict(completion.text, self.game, state, completion.finish_reason)
        return verdict if isinstance(verdict, ParseFailure) else Evaluation(body(completion.text), verdict)


class PolicyRole(Role[StateInput, Choice]):
    """pi(argument, move | state)."""

    name = "policy"

    def parse(self, inp: StateInput, completion: Completion) -> Choice | ParseFailure:
        action = parse_move(completion.text, self.game, inp.state, completion.finish_reason)
        return action if isinstance(action, ParseFailure) else Choice(action, completion.text)


class VRole(_ValueRole[StateInput]):
    """V(state): an evaluation of a position."""

    name = "v"


class QRole(_ValueRole[ActionInput]):
    """Q(state, action): an evaluation of a move."""

    name = "q"

    def fields(self, inp: ActionInput, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        return super().fields(inp, wanted) | {"action": self.game.action_text(inp.state, inp.action)}


class G1Role(_ValueRole[SamplesInput]):
    """G1: merges samples into one evaluation (the expectation of the scalar Bellman equation)."""

    name = "g1"

    def variant(self, inp: SamplesInput) -> str:
        return f"g1_{inp.kind}" + ("_v" if inp.action is None else "")

    def fields(self, inp: SamplesInput, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        label = "game" if inp.kind == "games" else "outlook"
        samples = "\n".join(f"{label} {i}: {sample}" for i, sample in enumerate(inp.samples, 1))
        action = "" if inp.action is None else self.game.action_text(inp.state, inp.action)
        return super().fields(inp, wanted) | {"samples": samples, "action": action}

    def _template(self, variant: str) -> Template:
        return self._templates.get(variant) or self._templates["g1_v" if variant.endswith("_v") else "g1"]


class G2Role(_ValueRole[TransitionInput]):
    """G2: fuses a described transition with its successor's evaluation (the sum r + gamma V of the scalar equation)."""

    name = "g2"

    def fields(self, inp: TransitionInput, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        return super().fields(inp, wanted) | {"transition": inp.transition, "successor": inp.successor}


class ImprovementRole(Role[CandidatesInput, Choice]):
    """I: argues among evaluated candidates and chooses one of them."""

    name = "improvement"

    def fields(self, inp: CandidatesInput, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        lines = [f"{self.language.label(inp.state, a)}: {shown(e, self.style)}" for a, e in inp.candidates]
        return super().fields(inp, wanted) | {"candidates": "\n".join(lines)}

    def parse(self, inp: CandidatesInput, completion: Completion) -> Choice | ParseFailure:
        candidates = [action for action, _ in inp.candidates]
        action = parse_choice(completion.text, candidates, self.game, inp.state, completion.finish_reason)
        return action if isinstance(action, ParseFailure) else Choice(action, completion.text)


class RefinementRole(Role[RefinementInput, Choice]):
    """The policy, shown the critique of the one move it proposes: keeps it or chooses another (arXiv 2512.04601)."""

    name = "refinement"

    @property
    def is_known(self) -> bool:
        """Whether the style has a prompt for it: bundled models were never taught one."""
        return self.name in self._templates

    def fields(self, inp: RefinementInput, wanted: Collection[str] = FIELDS) -> dict[str, str]:
        action = self.game.action_text(inp.state, inp.action)
        return super().fields(inp, wanted) | {"action": action, "critique": shown(inp.critique, self.style)}

    def parse(self, inp: RefinementInput, completion: Completion) -> Choice | ParseFailure:
        action = parse_move(completion.text, self.game, inp.state, completion.finish_reason)
        return action if isinstance(action, ParseFailure) else Choice(action, completion.text)


class Roles:
    """All roles of a game in one style, made once and shared."""

    def __init__(self, game: Game, style: str = "plain", folder: str | None = None):
        self.game = game
        self.policy = PolicyRole(game, style, folder)
        self.v = VRole(game, style, folder)
        self.q = QRole(game, style, folder)
        self.g1 = G1Role(game, style, folder)
        self.g2 = G2Role(game, style, folder)
        self.improvement = ImprovementRole(game, style, folder)
        self.refinement = RefinementRole(game, style, folder)
