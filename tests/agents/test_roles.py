"""Roles: typed inputs to prompts, answers to typed outputs, in both prompt styles."""

from __future__ import annotations

import pytest

from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import (
    GAME_OVER,
    ActionInput,
    CandidatesInput,
    Choice,
    Evaluation,
    Roles,
    SamplesInput,
    StateInput,
    TransitionInput,
    body,
)
from nlrl.backbones.language_model import Completion
from nlrl.envs import make
from nlrl.errors import NLRLError

GAME = make("tictactoe")
START = GAME.initial_states()[0]
STATE = GAME.apply(GAME.apply(START, 4).state, 0).state  # O in the middle, X in the corner; O to move
SAMPLES = ("O2 X8 O3 X7 O6 X9, X won by 7-8-9", "O2 X3, O forfeits")
OUTLOOKS = ("O plays 2. I put O at +0.50, clearly better.", "O plays 2. I put O at -0.20, a little worse.")
CANDIDATES = ((1, Evaluation("Quiet. I put O at +0.10.", 0.1)), (8, Evaluation("Bold. I put O at -0.30.", -0.3)))
INPUTS = {
    "policy": StateInput(STATE),
    "v": StateInput(STATE),
    "q": ActionInput(STATE, 1),
    "g1": SamplesInput(STATE, 1, SAMPLES),
    "g2": TransitionInput(STATE, "O2 X8", OUTLOOKS[0]),
    "improvement": CandidatesInput(STATE, CANDIDATES),
}
STYLES = ("plain", "instruct")


@pytest.fixture(params=STYLES)
def roles(request):
    return Roles(GAME, request.param)


def text(role, inp):
    return "\n".join(message.content for message in role.messages(inp))


def said(words, finish_reason="stop"):
    return Completion(words, finish_reason=finish_reason)


# -- prompts -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", INPUTS)
def test_every_prompt_shows_the_board_and_who_is_to_move(roles, name):
    prompt = getattr(roles, name).messages(INPUTS[name])
    assert GAME.to_text(STATE) in prompt[-1].content
    assert "O" in prompt[-1].content.replace(GAME.to_text(STATE), "")
    assert prompt[-1].role == "user"
    assert [message.role for message in prompt[:-1]] in ([], ["system"])
    assert "{" not in prompt[-1].content


def test_the_policy_is_given_the_legal_moves_and_the_critic_the_move(roles):
    assert "2 3 4 6 7 8 9" in text(roles.policy, INPUTS["policy"])
    assert roles.q.messages(ActionInput(STATE, 1)) != roles.q.messages(ActionInput(STATE, 2))


def test_g1_is_given_its_samples_numbered_and_nothing_else(roles):
    games = text(roles.g1, INPUTS["g1"])
    for number, sample in enumerate(SAMPLES, 1):
        assert f"game {number}: {sample}" in games
    outlooks = text(roles.g1, SamplesInput(STATE, 1, OUTLOOKS, "outlooks"))
    for number, sample in enumerate(OUTLOOKS, 1):
        assert f"outlook {number}: {sample}" in outlooks


def test_g1_judges_a_move_or_a_position():
    roles = Roles(GAME)
    assert "O plays 2" in text(roles.g1, INPUTS["g1"])
    of_the_state = text(roles.g1, SamplesInput(STATE, None, SAMPLES))
    assert "plays" not in of_the_state
    assert "O to move" in of_the_state


def test_g1_has_no_part_in_g2s_work_nor_g2_in_g1s(roles):
    fused, merged = text(roles.g2, INPUTS["g2"]), text(roles.g1, INPUTS["g1"])
    assert OUTLOOKS[0] in fused
    assert "O2 X8" in fused
    assert not any(sample in fused for sample in SAMPLES)
    assert OUTLOOKS[0] not in merged
    assert GAME_OVER in text(roles.g2, TransitionInput(STATE, "O2", GAME_OVER))


def test_i_is_given_each_candidate_with_its_evaluation_in_the_order_given(roles):
    prompt = text(roles.improvement, INPUTS["improvement"])
    places = [prompt.index(f"move {action + 1}: {evaluation.text}") for action, evaluation in CANDIDATES]
    assert places == sorted(places)
    backwards = text(roles.improvement, CandidatesInput(STATE, CANDIDATES[::-1]))
    assert backwards.index("move 9:") < backwards.index("move 2:")


def test_i_is_told_the_verdict_where_the_words_do_not_say_it():
    silent = CandidatesInput(STATE, ((1, Evaluation("A quiet move.", 0.5)),))
    assert "+0.50" in text(Roles(GAME, "instruct").improvement, silent)


def test_prompts_of_the_critic_and_the_actor_name_no_evidence(roles):
    from nlrl.agents.metrics.leaks import find_leaks

    for name in ("policy", "v", "q"):
        assert not find_leaks(text(getattr(roles, name), INPUTS[name]))


# -- answers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["v", "q", "g1", "g2"])
def test_an_evaluation_is_its_text_and_its_verdict(roles, name):
    output = getattr(roles, name).parse(INPUTS[name], said("O is slightly ahead.\nfinal_evaluation: +0.25"))
    assert output == Evaluation("O is slightly ahead.", 0.25)


@pytest.mark.parametrize("name", ["v", "q", "g1", "g2"])
def test_an_evaluation_out_of_range_or_without_a_number_is_a_failure(roles, name):
    role = getattr(roles, name)
    assert role.parse(INPUTS[name], said("final_evaluation: +1.50")).reason == "out_of_range"
    assert role.parse(INPUTS[name], said("O is slightly ahead.")).reason == "missing"
    assert role.parse(INPUTS[name], said("final_evaluation: +0.", "length")).reason == "truncated"


def test_a_choice_is_a_legal_move_and_the_whole_argument(roles):
    answer = "I take the side.\nbest_move: 2"
    assert roles.policy.parse(INPUTS["policy"], said(answer)) == Choice(1, answer)
    assert roles.policy.parse(INPUTS["policy"], said("best_move: 5")).reason == "illegal"
    assert roles.improvement.parse(INPUTS["improvement"], said(answer)) == Choice(1, answer)


def test_i_may_only_choose_what_it_was_offered(roles):
    assert roles.improvement.parse(INPUTS["improvement"], said("best_move: 3")).reason == "not_candidate"
    assert roles.improvement.parse(INPUTS["improvement"], said("best_move: 1")).reason == "illegal"


def test_a_request_that_failed_is_a_failure_whatever_its_words(roles):
    failed = roles.policy.parse(INPUTS["policy"], said("best_move: 2", "error"))
    assert isinstance(failed, ParseFailure)
    assert failed.reason == "error"


@pytest.mark.parametrize(
    "words",
    [
        "O is ahead.\nfinal_evaluation: +0.25",
        "O is ahead.\n\n**final_evaluation**: +0.25",
        'O is ahead.\n{"final_evaluation": 0.25}',
        'O is ahead.\n```json\n{"final_evaluation": 0.25}\n```',
        '{"thoughts": "O is ahead.", "final_evaluation": 0.25}',
    ],
)
def test_the_body_of_an_evaluation_is_without_its_ending(words):
    assert body(words) == "O is ahead."
    assert body("O is ahead.") == "O is ahead."


# -- templates ---------------------------------------------------------------------------------------------------------
def test_prompts_can_be_replaced_by_a_folder_of_ones_own(tmp_path):
    tables = "\n".join(f'[roles.{name}]\nuser = "{name}: {{board}}"' for name in INPUTS)
    (tmp_path / "tictactoe.plain.toml").write_text(tables)
    roles = Roles(GAME, "plain", str(tmp_path))
    assert text(roles.g1, INPUTS["g1"]) == f"g1: {GAME.to_text(STATE)}"  # no variant: the role's own
    assert text(roles.policy, INPUTS["policy"]) == f"policy: {GAME.to_text(STATE)}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('[roles.policy]\nsystem = "x"', "role 'policy' needs a 'user' template"),
        ('[roles.policy]\nuser = "{bord}"', r"unknown field '\{bord\}'; known: .*board"),
    ],
)
def test_templates_that_cannot_work_are_refused_by_file_and_role(tmp_path, content, complaint):
    (tmp_path / "tictactoe.plain.toml").write_text(content)
    with pytest.raises(NLRLError, match=rf"tictactoe.plain.toml: .*{complaint}"):
        Roles(GAME, "plain", str(tmp_path))


def test_a_style_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(NLRLError, match=r"style 'formal'.*tictactoe.instruct.toml, tictactoe.plain.toml"):
        Roles(GAME, "formal")
