"""Breakthrough's prompts are complete, their examples true, and they show evidence only to those who have it."""

from __future__ import annotations

import re

import pytest

from nlrl.agents.headings import HEADINGS, Report, parse_report, parse_verdict
from nlrl.agents.language import language_of
from nlrl.agents.metrics import check_claims, find_leaks
from nlrl.agents.parser import parse_move
from nlrl.agents.prompts import load_templates
from nlrl.agents.roles import ActionInput, CandidatesInput, Evaluation, Roles, SamplesInput, StateInput, TransitionInput
from nlrl.envs import make

GAME = make("breakthrough")
LANGUAGE = language_of(GAME)
EXAMPLE = GAME.parse_text(
    "5  b . . b .\n4  . b . . .\n3  . . w . b\n2  w . . . w\n1  . w . w .\n   a b c d e\n"
    "To move: black\nBlack: a5 d5 b4 e3\nWhite: c3 a2 e2 b1 d1"
)
"""The position of the worked examples in the instruct prompts."""
MOVE = "e3d2"
ACTION = GAME.parse_action(EXAMPLE, MOVE)
PLAIN, INSTRUCT = (load_templates("breakthrough", style) for style in ("plain", "instruct"))
REPORTS = ("v", "g1_games_v", "g1_outlooks_v")
CASE = {
    "board": LANGUAGE.board(EXAMPLE),
    "diagram": GAME.to_text(EXAMPLE),
    "player": "black",
    "opponent": "white",
    "legal": LANGUAGE.legal(EXAMPLE),
    "action": MOVE,
    "samples": "game 1: e3d2 c3b4* d2c1, black won at c1",
    "transition": "e3d2",
    "successor": "I put white at -0.60, clearly worse.",
    "candidates": "move e3d2: I put black at +0.80, clearly better.",
    "critique": "I put black at +0.80, clearly better.",
}


def system_and_example(role):
    system, user = INSTRUCT[role].messages(**CASE)
    shown, _, answer = system.content.rpartition("A good answer:\n")
    return system.content, user.content, shown, answer


@pytest.mark.parametrize("role", INSTRUCT)
def test_instruct_prompt_shows_a_true_example_that_parses(role):
    system, user, _, answer = system_and_example(role)
    assert CASE["diagram"] in user
    assert CASE["diagram"] in system
    assert "{" not in system + user
    if role in ("policy", "improvement", "refinement"):
        assert parse_move(answer, GAME, EXAMPLE) == ACTION
    else:
        assert isinstance(parse_verdict(answer, GAME, EXAMPLE), float)
    about = ACTION if role in ("q", "g1_games", "g1_outlooks") else None
    claims = check_claims(answer, GAME, EXAMPLE, about)
    assert claims
    assert all(claim.true for claim in claims), claims
    assert find_leaks(answer) == []


@pytest.mark.parametrize("role", REPORTS)
def test_evaluations_of_positions_have_the_four_headings(role):
    system, _, _, answer = system_and_example(role)
    assert all(f"*{heading}*" in system for heading in HEADINGS)
    report = parse_report(answer, GAME.player_names)
    assert isinstance(report, Report)
    assert report.advantage == EXAMPLE.player
    assert re.search(r"I put black at [+-]\d\.\d\d", answer)  # what G2 and G1 read once the ending is cut off


@pytest.mark.parametrize(("role", "verdict"), [("g1_games", 1 / 3), ("g1_games_v", 1 / 3)])
def test_the_games_of_the_examples_are_legal_and_the_answer_counts_them(role, verdict):
    _, _, shown, answer = system_and_example(role)
    games = re.findall(r"^game \d: (.*), (black|white) won at (..)$", shown, re.MULTILINE)
    assert len(games) == 3
    for moves, winner, goal in games:
        state = EXAMPLE
        for move in moves.split():
            action = GAME.parse_action(state, move)
            assert action is not None, (move, moves)
            state = GAME.apply(state, action).state
        assert LANGUAGE.result(state) == f"{winner} won at {goal}"
    won = sum(winner == "black" for _, winner, _ in games)
    assert parse_verdict(answer, GAME, EXAMPLE) == pytest.approx((2 * won - 3) / 3, abs=0.005)
    assert (2 * won - 3) / 3 == pytest.approx(verdict)


@pytest.mark.parametrize("role", ["g1_outlooks", "g1_outlooks_v"])
def test_the_answer_to_outlooks_is_their_mean(role):
    _, _, shown, answer = system_and_example(role)
    numbers = [float(n) for n in re.findall(r"^outlook .*I put black at ([+-]\d\.\d\d)", shown, re.MULTILINE)]
    assert len(numbers) == 2
    assert parse_verdict(answer, GAME, EXAMPLE) == pytest.approx(sum(numbers) / 2)


def test_prompts_exist_for_every_role_and_hide_evidence_from_actor_and_critic():
    roles = {"policy", "v", "q", "g1_games", "g1_games_v", "g1_outlooks", "g1_outlooks_v", "g2", "improvement"}
    assert set(INSTRUCT) == roles | {"refinement"}
    assert set(PLAIN) == roles | {"descriptor", "reader"}
    for templates in (PLAIN, INSTRUCT):
        for role in ("policy", "v", "q"):
            assert find_leaks("\n".join(message.content for message in templates[role].messages(**CASE))) == []


INPUTS = {
    "policy": StateInput(EXAMPLE),
    "v": StateInput(EXAMPLE),
    "q": ActionInput(EXAMPLE, ACTION),
    "g1": SamplesInput(EXAMPLE, ACTION, ("e3d2 c3b4* d2c1, black won at c1",)),
    "g2": TransitionInput(EXAMPLE, "e3d2", "I put white at -0.60."),
    "improvement": CandidatesInput(EXAMPLE, ((ACTION, Evaluation("Quick. I put black at +0.80.", 0.8)),)),
}


@pytest.mark.parametrize("style", ["plain", "instruct"])
@pytest.mark.parametrize("size", ["breakthrough", "breakthrough(rows=4,columns=3)", "breakthrough(rows=8,columns=8)"])
def test_every_prompt_shows_all_pawns_and_the_side_to_move_on_any_board(style, size):
    from nlrl.envs import make_from_spec

    game = make_from_spec(size)
    state, roles = game.initial_states()[0], Roles(game, style)
    action = game.legal_actions(state)[0]
    for inp, role in (
        (StateInput(state), roles.v),
        (StateInput(state), roles.policy),
        (ActionInput(state, action), roles.q),
    ):
        shown = role.messages(inp)[-1].content
        assert all(re.search(rf"\b{name}\b", shown) for name in game.board.names(state.black | state.white))
        assert "to move: black" in shown.lower() or "black plays" in shown
    assert game.action_text(state, action) in roles.q.messages(ActionInput(state, action))[-1].content


@pytest.mark.parametrize("name", INPUTS)
def test_each_role_is_given_its_evidence(name):
    for style in ("plain", "instruct"):
        shown = getattr(Roles(GAME, style), name).messages(INPUTS[name])[-1].content
        for evidence in {"g1": "black won at c1", "g2": "I put white at", "improvement": "move e3d2: Quick"}.values():
            owner = {"black won at c1": "g1", "I put white at": "g2", "move e3d2: Quick": "improvement"}[evidence]
            assert (evidence in shown) == (owner == name)
