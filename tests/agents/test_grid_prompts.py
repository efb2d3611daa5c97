"""The prompts of lakes and mazes for chat models: complete, their examples true, their notation the language's own."""

from __future__ import annotations

import re

import pytest

from nlrl.agents.language import language_of, line_of, number
from nlrl.agents.metrics import check_claims, find_leaks
from nlrl.agents.parser import parse_evaluation, parse_move
from nlrl.agents.prompts import load_templates
from nlrl.agents.roles import Roles, StateInput
from nlrl.envs import make
from nlrl.envs.frozen_lake import FrozenLakeState
from nlrl.envs.maze import MazeState

FIRM = make("frozen_lake", slippery=False)
SLIPPERY = make("frozen_lake")
MAZE = make("maze")
LAKE_CASE = (FrozenLakeState(FIRM.initial_states()[0].map, 9), "down")
CASES = {"firm": (FIRM, *LAKE_CASE), "slippery": (SLIPPERY, *LAKE_CASE), "maze": (MAZE, MazeState(5, 4), "move right")}
"""Game, state and move of the worked examples."""
ROLES = {"policy", "v", "q", "g1_games", "g1_games_v", "g1_outlooks", "g1_outlooks_v", "g2", "improvement"}


def case(name):
    game, state, move = CASES[name]
    return game, state, move, load_templates(game.name, "instruct")


def filled(game, state, template):
    fields = Roles(game, "instruct").policy.fields(StateInput(state))
    extra = dict.fromkeys(("action", "samples", "transition", "successor", "candidates", "critique"), "what was given")
    return template.messages(**fields, **extra)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("role", sorted(ROLES | {"refinement"}))
def test_every_prompt_has_a_true_example_that_parses(name, role):
    game, state, move, templates = case(name)
    system, user = filled(game, state, templates[role])
    board = language_of(game).board(state)
    assert board in system.content
    assert board in user.content
    assert "{" not in system.content + user.content
    example = system.content.rpartition("A good answer:\n")[2]
    if role in ("policy", "improvement", "refinement"):
        assert game.action_text(state, parse_move(example, game, state)) == move
    else:
        assert isinstance(parse_evaluation(example), float)
    about_move = role in ("q", "g1_games", "g1_outlooks")
    claims = check_claims(example, game, state, game.parse_action(state, move) if about_move else None)
    assert all(claim.true for claim in claims), claims
    assert claims or role == "g2"
    assert find_leaks(example) == []


@pytest.mark.parametrize("name", CASES)
def test_prompts_exist_for_every_role_and_hide_evidence_from_actor_and_critic(name):
    game, state, _, templates = case(name)
    assert set(templates) == ROLES | {"refinement"}
    assert set(load_templates(game.name, "plain")) == ROLES | {"descriptor", "reader"}
    for role in ("policy", "v", "q"):
        assert find_leaks("\n".join(message.content for message in filled(game, state, templates[role]))) == []


def test_the_walks_of_the_examples_are_told_as_the_language_tells_them():
    text = load_templates("maze", "instruct")["g1_games"].system
    language, scores = language_of(MAZE), []
    for told in re.findall(r"^game \d: (.*)$", text, re.MULTILINE):
        actions = []
        for letter, count in re.findall(r"([LRUDx])(\d)", told):
            actions += ["LRUD".index("U" if letter == "x" else letter)] * int(count)
        line = line_of(MAZE, MazeState(5, 4), actions)
        assert language.moves(line) == told
        scores.append(language.score(line))
    assert f"final_evaluation: {number(sum(scores) / 3)}" in text


def test_the_scale_and_the_cap_are_the_game_s():
    short = make("maze", max_steps=20)
    system, _ = filled(short, MazeState(5, 4), load_templates("maze", "instruct")["q"])
    language = language_of(short)
    assert f"{number(language.score_of_steps(3))} in 3 steps" in system.content
    assert "after 20 steps" in system.content
    assert "30 steps" not in system.content
    assert "slippery" in filled(*CASES["slippery"][:2], load_templates("frozen_lake", "plain")["policy"])[-1].content
