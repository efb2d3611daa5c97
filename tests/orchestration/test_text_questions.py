"""Symmetric positions are asked about in every game, in prompts of the game that the image belongs to."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import Completion, Sampling
from nlrl.envs import make_from_spec
from nlrl.envs.symmetries import symmetries_of
from nlrl.orchestration.text_questions import NAMES_EXCHANGED, symmetry_choices, symmetry_readings

LARGER = ("breakthrough(rows=5,columns=5)", "frozen_lake", "maze(layout=umaze)")


class Model:
    """Answers by a function of the prompt and keeps the prompts."""

    name, weight_version, reads_expectations = "stub", "stub@0", False

    def __init__(self, answer):
        self.answer, self.prompts = answer, []

    def generate(self, requests):
        prompts = [request.messages[-1].content for request in requests]
        self.prompts += prompts
        return [Completion(self.answer(prompt)) for prompt in prompts]


def session_of(spec: str, answer):
    game, model = make_from_spec(spec), Model(answer)
    config = SimpleNamespace(
        improvement=SimpleNamespace(verdict="greedy", mean_samples=2),
        targets=SimpleNamespace(value="q", opponent_aware=False),
        rollout=SimpleNamespace(retries=0),
        model=SimpleNamespace(prompt_style="plain"),
    )
    return SimpleNamespace(
        game=game,
        config=config,
        student_roles=Roles(game, "plain"),
        critic=model,
        actor=model,
        sampling=lambda temperature, expected_number=False: Sampling(temperature=temperature),
        seed=lambda *keys: 0,
    )


def pairs_of(game):
    state = game.initial_states()[0]
    return [(state, action) for action in game.legal_actions(state)]


def said(prompt: str) -> str:
    """A verdict that the prompt's length decides: the same for all images of a position."""
    return f"Well.\nfinal_evaluation: {len(prompt) % 100 / 100:+.2f}"


@pytest.mark.parametrize("spec", ["tictactoe", *LARGER])
def test_images_are_asked_about_in_their_own_game(spec):
    session = session_of(spec, said)
    readings = symmetry_readings(session, pairs_of(session.game))
    names = {symmetry.name for symmetry in symmetries_of(session.game)}
    assert {reading.symmetry for reading in readings} - {NAMES_EXCHANGED} <= names
    assert readings
    assert all(reading.original is not None and reading.image is not None for reading in readings)
    if spec == "frozen_lake":
        asked = "\n".join(session.critic.prompts)
        assert all(picture in asked for picture in ("_ O _ O\n", "O _ O _\n"))  # the lake and its mirror image


def test_a_critic_that_reads_the_picture_alone_differs_between_images():
    session = session_of("tictactoe", lambda prompt: f"final_evaluation: {(hash(prompt) % 201 - 100) / 100:+.2f}")
    readings = [r for r in symmetry_readings(session, pairs_of(session.game)) if r.symmetry != NAMES_EXCHANGED]
    assert sum(r.original != r.image for r in readings) > 0.8 * len(readings)


def test_names_are_exchanged_in_the_prompt_where_rules_know_no_exchange_of_colours():
    session = session_of("tictactoe", said)
    readings = symmetry_readings(session, pairs_of(session.game))
    assert sum(reading.symmetry == NAMES_EXCHANGED for reading in readings) == 9
    assert any("X plays 1" in prompt for prompt in session.critic.prompts)  # O moves first, but for its name
    board = session_of(LARGER[0], said)
    assert NAMES_EXCHANGED not in {reading.symmetry for reading in symmetry_readings(board, pairs_of(board.game))}


def test_moves_are_held_to_the_symmetries_of_the_image():
    session = session_of("tictactoe", lambda prompt: "best_move: 5")
    start = session.game.initial_states()[0]
    corner = session.game.apply(start, 0).state
    assert all(choice.equivariant for choice in symmetry_choices(session, [corner]))
    session = session_of("tictactoe", lambda prompt: f"best_move: {re.findall('[1-9]', prompt)[0]}")
    found = [choice for choice in symmetry_choices(session, [corner]) if choice.symmetry != NAMES_EXCHANGED]
    assert found
    assert not any(choice.equivariant for choice in found)  # 2, beside the corner, becomes 1, the next corner


def test_a_critic_of_positions_is_asked_about_positions():
    session = session_of("tictactoe", said)
    state = session.game.apply(session.game.initial_states()[0], 0).state
    readings = symmetry_readings(session, [(state, None)])
    assert len(readings) == 7  # one symmetry keeps the position; names make one more
    assert all(prompt.startswith("Value the position.") for prompt in session.critic.prompts)
