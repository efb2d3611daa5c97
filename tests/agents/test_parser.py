"""Every odd reply of the corpus is read as recorded; no text raises; a clean last line is always found."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents.endings import last_answer, without_ending
from nlrl.agents.parser import FailureReason, ParseFailure, parse_choice, parse_evaluation, parse_move
from nlrl.envs import make

CORPUS = Path(__file__).parents[1] / "golden" / "replies" / "replies.jsonl"
REPLIES = [json.loads(line) for line in CORPUS.read_text(encoding="utf-8").splitlines()]
GAME = make("tictactoe")
START = GAME.initial_states()[0]
# Words and marks that a parser may stumble over, mixed at random.
MARKS = ["best_move", "final_evaluation", ":", "=", '"', "'", "{", "}", "[", "]", "\\", "*", "`", "<think>", "</think>"]
VALUES = [
    "5",
    "12",
    "+0.50",
    ",",
    "/",
    " or ",
    "null",
    "NaN",
    "\n",
    "```json",
    "N",
    "...",
    "<b>",
    "&quot;",
    "\uff0c",
    "🎉",
]
CLUTTER = st.lists(st.sampled_from([*MARKS, *VALUES]), max_size=30).map("".join)
TEXT = st.one_of(st.text(max_size=200), CLUTTER)
FINISH = st.sampled_from(["stop", "length", "error"])


def position(moves: str) -> Any:
    state = START
    for move in moves.split():
        action = GAME.parse_action(state, move)
        assert action is not None, f"the corpus plays {move} in {moves}"
        state = GAME.apply(state, action).state
    return state


def words_game(legal: list[str]) -> Any:
    """As much of a game as the parser uses: moves are the given texts, in any state."""
    return SimpleNamespace(
        parse_action=lambda state, text: legal.index(text) if text in legal else None,
        action_text=lambda state, action: legal[action],
    )


def read(reply: dict[str, Any]) -> str | float | ParseFailure:
    """What the parser makes of a recorded reply; moves as text."""
    text, finish = reply["reply"], reply.get("finish", "stop")
    if reply["role"] == "critic":
        return parse_evaluation(text, finish)
    game, state = (words_game(reply["legal"]), None) if "legal" in reply else (GAME, position(reply["moves"]))
    if reply["role"] == "improvement":
        candidates = [game.parse_action(state, move) for move in reply["candidates"].split()]
        move = parse_choice(text, candidates, game, state, finish)
    else:
        move = parse_move(text, game, state, finish)
    return move if isinstance(move, ParseFailure) else game.action_text(state, move)


@pytest.mark.parametrize("reply", REPLIES, ids=[reply["id"] for reply in REPLIES])
def test_reply_is_read_as_recorded(reply):
    outcome = read(reply)
    if "failure" in reply:
        assert isinstance(outcome, ParseFailure), f"read {outcome!r}"
        assert outcome.reason == reply["failure"], outcome
    else:
        assert outcome == reply["value"]


def test_corpus_covers_every_reason_and_role():
    failures = Counter(reply["failure"] for reply in REPLIES if "failure" in reply)
    assert set(failures) == set(get_args(FailureReason))
    assert {reply["role"] for reply in REPLIES} == {"policy", "improvement", "critic"}
    assert len({reply["reply"] for reply in REPLIES}) >= 60


@settings(max_examples=400, deadline=None)
@given(text=TEXT, finish=FINISH)
def test_no_text_raises(text, finish):
    move = parse_move(text, GAME, START, finish)
    assert isinstance(move, ParseFailure) or move in range(9)
    choice = parse_choice(text, [4], GAME, START, finish)
    assert isinstance(choice, ParseFailure) or choice == 4
    verdict = parse_evaluation(text, finish)
    assert isinstance(verdict, ParseFailure) or -1 <= verdict <= 1
    without_ending(text)


@settings(max_examples=400, deadline=None)
@given(junk=st.lists(TEXT, max_size=4), action=st.sampled_from(range(9)))
def test_clean_move_is_found_below_any_junk(junk, action):
    text = "\n".join([*junk, f"best_move: {action + 1}"])
    assert parse_move(text, GAME, START) == action
    assert parse_move(text + "\n", GAME, START, "length") == action or "<think>" in text.rpartition("</think>")[2]


@settings(max_examples=400, deadline=None)
@given(junk=st.lists(TEXT, max_size=4), hundredths=st.integers(-100, 100))
def test_clean_verdict_is_found_below_any_junk(junk, hundredths):
    text = "\n".join([*junk, f"final_evaluation: {hundredths / 100:+.2f}"])
    assert parse_evaluation(text) == pytest.approx(hundredths / 100)


PIECES = ("best_move", ": ", "\n", "{", "}", '"', "[", "]", "<think>", "</think>", "_", " or ", "=", "\\", "**", ",")
VALUES = ("5", "12", "a4b3", "*", "b", "\u00e9", "\uff5b")
GAMES = (make("tictactoe"), make("breakthrough"))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *VALUES]), max_size=8), st.sampled_from(GAMES))
def test_the_plain_ending_is_read_as_any_other(pieces, game):
    """A blank at the end takes the long way."""
    text, state = "".join(pieces), game.initial_states()[0]
    for move in ("5", "12", "a4b3", "a4b3*", "4", ""):
        answer = f"{text}\nbest_move: {move}"
        assert parse_move(answer, game, state) == parse_move(f"{answer} ", game, state)


@settings(max_examples=200, deadline=None)
@given(number=st.integers(10, 10**30), dress=st.sampled_from(["{}", '"{}"', "**{}**", "[{}]", "`{}`", "{}.", "({})"]))
def test_long_numbers_are_never_cut_to_a_legal_digit(number, dress):
    outcome = parse_move(f"best_move: {dress.format(number)}", GAME, START)
    assert isinstance(outcome, ParseFailure)
    assert outcome.reason == "illegal"


@settings(max_examples=200, deadline=None)
@given(
    first=st.integers(1, 9), second=st.integers(1, 9), joint=st.sampled_from([" or ", ", ", "/", " and ", " | ", " "])
)
def test_two_moves_in_one_answer_count_only_if_they_are_the_same(first, second, joint):
    outcome = parse_move(f"best_move: {first}{joint}{second}", GAME, START)
    if first == second:
        assert outcome == first - 1
    else:
        assert isinstance(outcome, ParseFailure)
        assert outcome.reason == "ambiguous"


@pytest.mark.parametrize("cut", range(len("best_move: 5")))
def test_a_cut_answer_is_never_read(cut):
    outcome = parse_move("A corner. " + "best_move: 5"[:cut], GAME, START, "length")
    assert isinstance(outcome, ParseFailure)
    assert outcome.reason == "truncated"


def test_deeply_nested_json_is_refused_without_a_crash():
    text = '{"best_move": ' * 20_000 + "5"
    assert isinstance(parse_move(text, GAME, START), int | ParseFailure)


@pytest.mark.parametrize(
    ("text", "body"),
    [
        ("The centre is best.\nbest_move: 5", "The centre is best."),
        ("I put O at +0.50. **final_evaluation: +0.50**", "I put O at +0.50."),
        ('{"thought": "The centre.", "plan": ["win"], "best_move": 5}', "The centre.\nwin"),
        ('Text\n```json\n{"thought": "Deep.", "final_evaluation": 0}\n```', "Deep."),
        ("no answer ", "no answer"),
        ("best_move: 5", ""),
    ],
)
def test_what_was_said_is_separated_from_the_ending(text, body):
    assert without_ending(text) == body
    assert (last_answer(text) is None) == (text == "no answer ")
