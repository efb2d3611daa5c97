"""The checks of texts that ask the run's models: images of positions, exchanged evaluations, blind reading.

Models are asked as the run asks them: the critic's verdict is read as `improvement.verdict` says, the actor is greedy,
I is the run's teacher.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from nlrl.agents.asking import ask
from nlrl.agents.metrics.counterfactual import Choices, Swap, choose_all, make_swap
from nlrl.agents.metrics.sufficiency import BlindInput, BlindReader
from nlrl.agents.metrics.symmetry import MovedChoice, Reading, images, moved_choices
from nlrl.agents.roles import CandidatesInput, Evaluation, Role, Roles, StateInput
from nlrl.backbones.language_model import Completion, Message
from nlrl.envs.game import Game
from nlrl.envs.random import Rng
from nlrl.envs.symmetries import Symmetry, exchange_names, symmetries_of
from nlrl.orchestration.session import Session
from nlrl.orchestration.stages.opinions import evaluate_moves
from nlrl.orchestration.texts import Asked, Pair

NAMES_EXCHANGED = "names exchanged"
"""The same position in a prompt whose players have each other's names: for games whose rules know no such exchange."""


# -- symmetry ----------------------------------------------------------------------------------------------------------
def symmetry_readings(session: Session, pairs: Sequence[Pair]) -> list[Reading]:
    """The critic's verdicts of (state, action) pairs and of their images under every symmetry of the game."""
    symmetries = symmetries_of(session.game)
    by_symmetry = images(session.game, symmetries, pairs)
    originals = _verdicts(session, session.game, session.student_roles, pairs)
    wanted: dict[str, list[tuple[str, Pair, Pair]]] = defaultdict(list)
    games: dict[str, Game[Any]] = {}
    for symmetry in symmetries:
        for pair, image in by_symmetry[symmetry.name].items():
            other = symmetry.game(pair[0])
            games[other.spec] = other
            wanted[other.spec].append((symmetry.name, pair, image))
    found = []
    for spec, group in wanted.items():
        roles = _roles_for(session, games[spec])
        said = _verdicts(session, games[spec], roles, list(dict.fromkeys(image for *_, image in group)))
        found += [Reading(name, pair, originals[pair], said[image]) for name, pair, image in group]
    if _needs_names(session.game, symmetries):
        said = _verdicts(session, session.game, _exchanged(session.student_roles), pairs)
        found += [Reading(NAMES_EXCHANGED, pair, originals[pair], said[pair]) for pair in pairs]
    return found


def symmetry_choices(session: Session, states: Sequence[Any]) -> list[MovedChoice]:
    """The actor's greedy moves in states and in their images."""
    symmetries = symmetries_of(session.game)
    choices = _moves(session, session.student_roles, states)
    wanted: dict[str, list[tuple[Symmetry, Any]]] = defaultdict(list)
    games: dict[str, Game[Any]] = {}
    for symmetry in symmetries:
        for state in states:
            other = symmetry.game(state)
            games[other.spec] = other
            wanted[other.spec].append((symmetry, state))
    of_image = {}
    for spec, group in wanted.items():
        asked = list(dict.fromkeys(symmetry.state(state) for symmetry, state in group))
        said = _moves(session, _roles_for(session, games[spec]), asked)
        of_image |= {(symmetry.name, state): said[symmetry.state(state)] for symmetry, state in group}
    found = moved_choices(session.game, symmetries, choices, of_image)
    if _needs_names(session.game, symmetries):
        said = _moves(session, _exchanged(session.student_roles), states)
        found += [_same_move(session.game, state, choices[state], said[state]) for state in states]
    return found


def _same_move(game: Game[Any], state: Any, move: int | None, other: int | None) -> MovedChoice:
    chance = 0.0 if move is None else 1 / len(game.legal_actions(state))
    return MovedChoice(NAMES_EXCHANGED, state, move is not None and move == other, chance)


def _needs_names(game: Game[Any], symmetries: Iterable[Symmetry]) -> bool:
    return game.num_players == 2 and not any(symmetry.swaps_players for symmetry in symmetries)


def _roles_for(session: Session, game: Game[Any]) -> Roles:
    own = game.spec == session.game.spec
    return session.student_roles if own else Roles(game, session.config.model.prompt_style)


def _verdicts(session: Session, game: Game[Any], roles: Roles, pairs: Sequence[Pair]) -> dict[Pair, float | None]:
    """Verdicts as the run reads them, of a game and in prompts that need not be its own. About positions V is asked:
    no look-ahead, whose moves are drawn, comes between its texts."""
    moves = [(state, action) for state, action in pairs if action is not None]
    if len(moves) < len(pairs):
        sampling = session.sampling(0.0, expected_number=session.critic.reads_expectations)
        replies = ask(session.critic, roles.v, [StateInput(state) for state, _ in pairs], sampling)
        return {pair: r.output.verdict if r.output else None for pair, r in zip(pairs, replies, strict=True)}
    other = copy.copy(session)
    other.game, other.student_roles = game, roles
    return {pair: said.verdict if said else None for pair, said in evaluate_moves(other, moves).items()}


def _moves(session: Session, roles: Roles, states: Sequence[Any]) -> dict[Any, int | None]:
    inputs = [StateInput(state) for state in states]
    replies = ask(session.actor, roles.policy, inputs, session.sampling(0.0), retries=session.config.rollout.retries)
    moves = (reply.output.action if reply.output else None for reply in replies)
    return dict(zip(states, moves, strict=True))


class _ExchangedRole:
    """A role whose prompts call each player by the other's name; answers are read as ever."""

    def __init__(self, role: Role[Any, Any]):
        self._role = role

    def messages(self, inp: Any) -> tuple[Message, ...]:
        game = self._role.game
        return tuple(
            Message(message.role, exchange_names(game, message.content)) for message in self._role.messages(inp)
        )

    def parse(self, inp: Any, completion: Completion) -> Any:
        return self._role.parse(inp, completion)


def _exchanged(roles: Roles) -> Any:
    other: Any = copy.copy(roles)
    other.q, other.v, other.policy = (_ExchangedRole(role) for role in (roles.q, roles.v, roles.policy))
    return other


# -- counterfactual ----------------------------------------------------------------------------------------------------
def counterfactual(session: Session, asked: Iterable[Asked], prompts: int) -> tuple[list[Swap], list[Choices]]:
    """What I chooses among candidates as they were, with two evaluations exchanged, and in another order.

    Args:
        prompts: of so many states, drawn by the run's seed.
    """
    rng = Rng(session.seed("counterfactual"))
    swaps = [make_swap(CandidatesInput(state, tuple(rng.shuffled(offer))), rng) for state, offer in _offers(asked)]
    chosen = rng.shuffled([swap for swap in swaps if swap is not None])[:prompts]
    return chosen, choose_all(chosen, lambda inputs: _choose(session, inputs))


def _offers(asked: Iterable[Asked]) -> list[tuple[Any, list[tuple[int, Evaluation]]]]:
    """The candidates of each choice, which stand in a row; a state may be chosen in several times."""
    found: list[tuple[Any, list[tuple[int, Evaluation]]]] = []
    for one in asked:
        if one.action is None or one.text is None or one.verdict is None:
            continue
        if not found or found[-1][0] != one.state or one.action in dict(found[-1][1]):
            found.append((one.state, []))
        found[-1][1].append((one.action, Evaluation(one.text, one.verdict)))
    return found


def _choose(session: Session, inputs: Sequence[CandidatesInput]) -> list[int | None]:
    replies = ask(session.teacher, session.teacher_roles.improvement, inputs, session.teacher_sampling)
    return [reply.output.action if reply.output else None for reply in replies]


# -- sufficiency -------------------------------------------------------------------------------------------------------
def read_blindly(session: Session, narratives: Sequence[str]) -> list[float | None]:
    """What the teacher, a chat model, makes of narratives without numbers; None where its answer could not be read."""
    player = "self" if session.game.num_players == 2 else session.game.player_names[0]
    role: Any = BlindReader()
    replies = ask(session.teacher, role, [BlindInput(text, player) for text in narratives], session.teacher_sampling)
    return [reply.output for reply in replies]
