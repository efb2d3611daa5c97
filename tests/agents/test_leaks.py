"""Leaks are found in reports of absent evidence and not in forecasts; stripping keeps the answer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.agents.endings import last_answer
from nlrl.agents.language import language_of
from nlrl.agents.metrics import find_leaks, strip_leaks
from nlrl.agents.parser import ParseFailure, parse_evaluation, parse_move
from nlrl.envs import make

GAME = make("tictactoe")
LANGUAGE = language_of(GAME)
START = GAME.initial_states()[0]


LEAKS = {
    "given the look-ahead variations, White is better": "variation",
    "O was able to win in all rollout sequences": "rollout",
    "both variations lead to a clear path to victory for White": "variation",
    "In variation 2 the pawn falls": "variation",
    "The sampled continuations favour X": "variation",
    "The lookahead confirms it": "variation",
    "In 8 games O has 5 won, 1 drawn, 2 lost.": "count",
    "Of 8 games O won 5, drew 1 and lost 2.": "count",
    "won 5 of 8": "count",
    "O won 5 out of the 8 games": "count",
    "X wins 5/8 games": "count",
    "Outlook in 8 games: fine": "count",
    "3 wins, 1 draw and 1 loss": "count",
    "O should win in two games": "count",
    "Given the 8 games, O should win": "count",
    "O wins in 60% of the games": "count",
    "the observed win rate is 0.6": "count",
    "X won twice": "count",
    "The rollouts end badly": "rollout",
    "Every roll-out ends badly": "rollout",
    "the simulated games": "rollout",
    "play-outs favour X": "rollout",
    "Simulations show a draw": "rollout",
    "by Monte Carlo": "rollout",
    "According to the game records, X loses": "game_record",
    "the sample games end well": "game_record",
    "in game 3 O blundered": "game_record",
    "The playing history shows a win": "game_record",
    "all trajectories end in a draw": "game_record",
    "X won most of the games": "game_record",
    "O lost every game": "game_record",
    "in each game O wins": "game_record",
    "in one of the games X slipped": "game_record",
    "5 outlooks, from +0.10 to +0.90.": "evaluation",
    "The given evaluations favour 5": "evaluation",
    "the evaluations provided for 5 and 6": "evaluation",
    "According to the evaluation, 5 is best": "evaluation",
    "the successor's value is +0.40": "evaluation",
    "among the given candidates, 5": "evaluation",
    "the evidence points to X": "evidence",
    "from the results it follows": "evidence",
    "Statistically, O wins": "evidence",
}
NO_LEAKS = [
    "I put X at +0.50, clearly better.",
    "My forecast for O is -0.40, a little worse, with hopes along 3-5-7 and fearing 1-2-3.",
    "I prefer 5 at +0.50 for 3-5-7, ahead of 6 at +0.40.",
    "O should win most games.",
    "The centre wins most games.",
    "O would win 7 of 10 games.",
    "O will probably win 60% of the games.",
    "If we look ahead, O can block. Looking ahead further, nothing changes.",
    "The most likely continuation is 5.",
    "The outlook for O is good; my evaluation is +0.50.",
    "An evaluation above +0.30 would be optimistic.",
    "O has two of the three cells of 1-2-3, and X holds 2 of 3 corners.",
    "With best play the game is drawn; the result is a draw.",
    "O wins at 1 5; X wins at none.",
    "It is a difficult game, and in this game the corner counts.",
    "Let me simulate the replies: X 5, then O 7.",
    "X has two threats, and O has 1 win at most.",
    "O has a winning sequence on this board.",
]


@pytest.mark.parametrize(("text", "kind"), LEAKS.items())
def test_reference_to_absent_evidence_is_a_leak(text, kind):
    leaks = find_leaks(f"The centre is strong. {text} final_evaluation: +0.50")
    assert kind in {leak.kind for leak in leaks}, leaks


@pytest.mark.parametrize("text", NO_LEAKS)
def test_forecast_and_analysis_are_no_leaks(text):
    assert find_leaks(text) == []


def test_leaks_carry_their_words_and_place():
    text = "Fine.\nIn  8\ngames O won 5 of 8; the rollouts agree."
    leaks = find_leaks(text)
    assert [text[slice(*leak.span)] for leak in leaks] == [leak.phrase for leak in leaks]
    assert [leak.kind for leak in leaks] == ["count", "count", "rollout"]


def test_bundled_sentences_leak_exactly_where_they_count():
    phrases = LANGUAGE.phrases
    for group in ("facts", "forecast", "argument", "reader"):
        for sentences in phrases[group].values():
            for sentence in sentences:
                assert find_leaks(sentence) == [], sentence
    for sentences in phrases["counts"].values():
        for sentence in sentences:
            filled = sentence.format(n=5, me="O", won=3, drawn=0, lost=2, low="-0.50", high="+0.50")
            assert find_leaks(filled), filled


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        (
            "In 8 games O has 5 won, 1 drawn, 2 lost. I put O at +0.40, a little better.\nfinal_evaluation: +0.40",
            "I put O at +0.40, a little better.\nfinal_evaluation: +0.40",
        ),
        ("No leak here. best_move: 5", "No leak here. best_move: 5"),
        ("O won 5 of 8. Centre. **best_move: 5**", "Centre. **best_move: 5**"),
        ("Centre.\n\nIn game 3 O lost.\n\nbest_move: 5", "Centre.\n\nbest_move: 5"),
        (
            '{"thought": "O won 5 of 8. The centre is strong.", "Rollouts": "all won", "final_evaluation": 0.4}',
            '{"thought": "The centre is strong.", "final_evaluation": 0.4}',
        ),
        ("O won 5 of 8.\nbest_move: 5", None),
        ('{"thought": "O won 5 of 8.", "best_move": 5}', None),
        ("Centre. best_move: 5 since it won 5 of 8", None),
        ("Centre. The rollouts agree.", None),
        ("", None),
    ],
)
def test_stripping_drops_leaking_sentences_and_keeps_the_ending(text, stripped):
    assert strip_leaks(text) == stripped


LEAKY_TEXT = st.lists(
    st.one_of(
        st.sampled_from([*LEAKS, *NO_LEAKS, "{", "}", '"', "\n", ". ", "in 8", "games", "best_move: 5"]),
        st.text(max_size=9),
    ),
    max_size=8,
).map(" ".join)


def reading(text: str, evaluation: bool) -> float | str:
    result = parse_evaluation(text) if evaluation else parse_move(text, GAME, START)
    return result.reason if isinstance(result, ParseFailure) else result


@settings(max_examples=200, deadline=None)
@given(
    prose=LEAKY_TEXT, tail=st.sampled_from(["\nbest_move: 5", '\n{"best_move": "5"}', " final_evaluation: +0.50", ""])
)
def test_what_is_left_has_no_leak_and_the_same_answer(prose, tail):
    text = prose + tail
    stripped = strip_leaks(text)
    if stripped is not None:
        assert find_leaks(stripped) == []
        assert last_answer(stripped) is not None
        assert reading(stripped, "final" in tail) == reading(text, "final" in tail)
