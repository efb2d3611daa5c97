"""Evaluations under the paper's four headings are taken apart in any dress; what has no clear tag is a failure."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents.headings import HEADINGS, Report, parse_advantage, parse_report, parse_verdict, read_sections
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import Evaluation, Roles, StateInput
from nlrl.backbones.language_model import Completion
from nlrl.envs import make

NAMES = ("black", "white")
PARTS = ("White threatens c4d5.", "Black's pawns are further ahead.", "b4c3*, which takes a pawn.")


def dressed(heading: str, conclusion: str = "<black>") -> str:
    """A whole evaluation; `heading` is how a heading is written, with {n} and {name}."""
    sections = zip(HEADINGS, (*PARTS, conclusion), strict=True)
    return "\n\n".join(f"{heading.format(n=n, name=name)}{text}" for n, (name, text) in enumerate(sections, 1))


@pytest.mark.parametrize(
    "heading",
    [
        "{n}. *{name}*: ",
        "{n}. **{name}:** ",
        "**{name}**\n",
        "*{name}:*\n",
        "### {n}. {name}\n",
        "## {name}:\n",
        "- {name} - ",
        "{name}: ",
        "{n}) __{name}__: ",
        "> **{n}. {name}**: ",
    ],
)
@pytest.mark.parametrize(("conclusion", "player"), [("<black>", 0), ("White is ahead in the race: <white>.", 1)])
def test_the_four_headings_are_read_in_any_dress(heading, conclusion, player):
    text = dressed(heading, conclusion)
    assert parse_report(text, NAMES) == Report(*PARTS, player)
    assert list(read_sections(text)) == list(HEADINGS)


@pytest.mark.parametrize(
    ("text", "player"),
    [
        ("Advantage: <white>", 1),
        ("**Advantage**: <Black>", 0),
        ("Advantage:\n\nAfter all, **<white>** stands better.", 1),
        ("<white> looks fine at first.\nAdvantage: <black>", 0),  # what stands before the heading is no conclusion
        ("Advantage: <white>\nOn second thought.\nAdvantage: <black>", 0),
        ("So the Advantage goes to <white>", 1),
        ("<think>Advantage: <black></think>\n4. *Advantage*: <white>", 1),
        ("Advantage: \uff1cwhite\uff1e", 1),
        ("Advantage: <white> <white> </white>", 1),
    ],
)
def test_the_tag_behind_the_last_heading_counts(text, player):
    assert parse_advantage(text, NAMES) == player


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("", "stop", "empty"),
        ("", "length", "truncated"),
        ("Advantage: <white>", "error", "error"),
        ("<white> wins.", "stop", "missing"),
        ("Advantage: white", "stop", "missing"),
        ("Advantage: White is clearly better.", "stop", "missing"),
        ("Advantage: <red>", "stop", "missing"),
        ("Advantage: <white> or <black>", "stop", "ambiguous"),
        ("Advantage: <white> now, later <black>", "stop", "ambiguous"),
        ("1. *Tactical Considerations*: White thr", "length", "truncated"),
        ("Advantage: Based on all this, <whi", "length", "truncated"),
        ("<think>Advantage: <white>", "length", "truncated"),
        ("the advantage is <white>", "stop", "missing"),  # not a conclusion under its heading
    ],
)
def test_what_has_no_clear_tag_is_a_failure_and_never_a_default(text, finish, reason):
    outcome = parse_advantage(text, NAMES, finish)
    assert isinstance(outcome, ParseFailure)
    assert outcome.reason == reason
    assert isinstance(parse_report(text, NAMES, finish), ParseFailure)


@pytest.mark.parametrize("missing", HEADINGS[:3])
def test_a_report_needs_every_heading_and_something_under_it(missing):
    text = dressed("*{name}*: ")
    gone = parse_report(text.replace(f"*{missing}*", "*Remarks*"), NAMES)
    part = PARTS[HEADINGS.index(missing)]
    silent = parse_report(text.replace(part, ""), NAMES)
    for outcome, what in ((gone, "no heading"), (silent, "nothing under the heading")):
        assert isinstance(outcome, ParseFailure)
        assert (outcome.reason, outcome.detail) == ("missing", f"{what} {missing!r}")


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([*HEADINGS, "<white>", "<black>", "*", ":", "\n", "1. ", "</think>", "<", "white", ">", "## "]),
        max_size=30,
    ).map("".join),
    st.sampled_from(["stop", "length", "error"]),
)
def test_no_text_raises(text, finish):
    advantage, report = parse_advantage(text, NAMES, finish), parse_report(text, NAMES, finish)
    assert isinstance(advantage, ParseFailure) or advantage in (0, 1)
    assert isinstance(report, ParseFailure) or report.advantage == advantage


# -- as a verdict ------------------------------------------------------------------------------------------------------
GAME = make("breakthrough")
BLACKS_TURN = GAME.initial_states()[0]
WHITES_TURN = GAME.apply(BLACKS_TURN, GAME.legal_actions(BLACKS_TURN)[0]).state


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Advantage: <black>", 1.0),
        ("Advantage: <white>", -1.0),
        ("Advantage: <black>\nfinal_evaluation: +0.40", 0.4),  # the number says more
        ("Advantage: <white>\nfinal_evaluation: -0.40", -0.4),
        ("Advantage: <white>\nfinal_evaluation: +0.00", 0.0),
        ("Advantage: <white> or <black>\nfinal_evaluation: +0.40", 0.4),
        ("final_evaluation: +0.40", 0.4),
    ],
)
def test_a_tag_is_a_verdict_for_the_player_to_move_unless_there_is_a_number(text, verdict):
    assert parse_verdict(text, GAME, BLACKS_TURN) == verdict
    answer = Roles(GAME, "plain").v.parse(StateInput(BLACKS_TURN), Completion(text))
    assert isinstance(answer, Evaluation)
    assert answer.verdict == verdict
    if "final_evaluation" not in text:
        assert parse_verdict(text, GAME, WHITES_TURN) == -verdict


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("Advantage: <white>\nfinal_evaluation: +0.40", "stop", "ambiguous"),
        ("Advantage: <white>\nfinal_evaluation: much", "stop", "malformed"),
        ("Advantage: <white>\nfinal_evaluation:", "stop", "missing"),
        ("Advantage: <white>\nfinal_eval", "length", "truncated"),
        ("Advantage: white", "stop", "missing"),
        ("White wins.", "stop", "missing"),
    ],
)
def test_a_tag_never_stands_in_for_a_number_that_cannot_be_read(text, finish, reason):
    outcome = parse_verdict(text, GAME, BLACKS_TURN, finish)
    assert isinstance(outcome, ParseFailure)
    assert outcome.reason == reason


def test_a_game_for_one_has_no_sides_to_tag():
    maze = make("maze")
    assert parse_verdict("Advantage: <white>\nfinal_evaluation: -0.20", maze, maze.initial_states()[0]) == -0.2
