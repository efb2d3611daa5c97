"""The words of a game: verdict bands, facts, retold moves; every phrasing says the same."""

from __future__ import annotations

import pytest

from nlrl.agents.language import BANDS, Outlook, band, language_of, line_of, load_phrases, number
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import find_leaks
from nlrl.envs import make
from nlrl.errors import NLRLError

GAME = make("tictactoe")
LANGUAGE = language_of(GAME)
PHRASES = load_phrases("tictactoe")
START = GAME.initial_states()[0]


def after(*cells):
    state = START
    for cell in cells:
        state = GAME.apply(state, cell - 1).state
    return state


class Nth:
    """Always the n-th phrasing, around."""

    def __init__(self, n):
        self._n = n

    def choice(self, items):
        return items[self._n % len(items)]


EVERY = [Nth(n) for n in range(4)]


# -- verdicts ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("verdict", "name"),
    [
        (1, "winning"),
        (0.85, "winning"),
        (0.84, "much_better"),
        (0.5, "much_better"),
        (0.49, "better"),
        (0.15, "better"),
        (0.14, "level"),
        (0, "level"),
        (-0.14, "level"),
        (-0.15, "worse"),
        (-0.5, "much_worse"),
        (-0.85, "losing"),
        (-1, "losing"),
    ],
)
def test_bands_by_their_bounds(verdict, name):
    assert band(verdict) == name


def test_bands_are_symmetric_and_all_have_words():
    mirror = {"winning": "losing", "much_better": "much_worse", "better": "worse", "level": "level"}
    mirror |= {there: here for here, there in mirror.items()}
    for hundredth in range(-100, 101):
        assert band(-hundredth / 100) == mirror[band(hundredth / 100)]
    assert set(mirror) == set(PHRASES["bands"]) == {name for _, name in BANDS} | {"losing"}
    words = [word for band_words in PHRASES["bands"].values() for word in band_words]
    assert len(set(words)) == len(words)
    assert not any(
        a in b for a in words for b in words if a != b
    )  # or the words of one band would be found in another's


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "+0.50"), (-0.0, "+0.00"), (-0.004, "+0.00"), (1, "+1.00"), (-1 / 3, "-0.33")]
)
def test_numbers_have_a_sign_two_decimals_and_no_negative_zero(value, text):
    assert number(value) == text


@pytest.mark.parametrize("pick", EVERY)
@pytest.mark.parametrize("hope", [None, "1-2-3"])
@pytest.mark.parametrize("danger", [None, "3-5-7"])
def test_a_forecast_says_its_verdict_in_number_and_words_and_only_the_lines_it_has(pick, hope, danger):
    for verdict in (-1.0, -0.6, -0.2, 0.0, 0.3, 0.7, 1.0):
        text = LANGUAGE.forecast("X", Outlook(verdict, hope, danger), pick)
        assert number(verdict) in text
        assert any(words in text for words in PHRASES["bands"][band(verdict)])
        assert ("1-2-3" in text, "3-5-7" in text) == (hope is not None, danger is not None)
        assert "None" not in text
        assert not find_leaks(text)


# -- facts -------------------------------------------------------------------------------------------------------------
def test_facts_name_the_winning_cells_of_both_sides_the_movers_first():
    assert LANGUAGE.facts(after(1, 4, 2)) == "X wins at none; O wins at 3."
    assert LANGUAGE.facts(after(1, 4, 2, 5)) == "O wins at 3; X wins at 6."
    assert LANGUAGE.facts_after(after(1, 4, 2, 5), 8) == "Then O wins at 3; X wins at 6."
    assert LANGUAGE.facts_after(after(1, 4, 2, 5), 2) == "That completes 1-2-3 and wins."


@pytest.mark.parametrize("pick", EVERY)
def test_every_phrasing_of_the_facts_is_true_of_every_position(pick):
    from nlrl.agents.corpus.states import states_by_ply

    states = [state for layer in states_by_ply("tictactoe").values() for state in layer][::17]
    for state in states:
        facts = check_claims(LANGUAGE.facts(state, pick), GAME, state)
        assert len(facts) == 2
        assert all(claim.true for claim in facts)
        action = GAME.legal_actions(state)[-1]
        facts = check_claims(LANGUAGE.facts_after(state, action, pick), GAME, state, action)
        assert facts
        assert all(claim.true for claim in facts)


@pytest.mark.parametrize("pick", EVERY)
def test_reading_the_board_names_every_cell(pick):
    state = after(5, 1, 9)
    claims = check_claims(LANGUAGE.read(state, pick), GAME, state)
    assert len(claims) >= 4
    assert all(claim.true for claim in claims)


# -- moves -------------------------------------------------------------------------------------------------------------
def test_moves_are_retold_compactly_with_their_result():
    state = after(5, 1)
    assert LANGUAGE.moves(line_of(GAME, state, [1, 7])) == "O2 X8"
    assert LANGUAGE.moves(line_of(GAME, after(1, 4, 2, 5), [2])) == "O3, O won by 1-2-3"
    assert LANGUAGE.moves(line_of(GAME, after(1, 2, 3, 5, 4, 7, 6, 9), [7])) == "O8, draw"
    assert LANGUAGE.moves(line_of(GAME, state, [])) == ""


def test_a_forfeit_names_who_had_to_move():
    assert LANGUAGE.forfeit(line_of(GAME, after(5, 1), [1])) == "O2, X forfeits"
    assert LANGUAGE.forfeit(line_of(GAME, after(5, 1), [1, 7])) == "O2 X8, O forfeits"


@pytest.mark.parametrize("pick", EVERY)
def test_a_retold_game_names_every_move_in_order_and_how_it_ended(pick):
    text = LANGUAGE.retell(line_of(GAME, after(1, 4, 2, 5), [7, 5]), pick)
    assert text.index("O ") < text.index("8") < text.index("X ") < text.index("6")
    assert "4-5-6" in text
    assert "draw" in LANGUAGE.retell(line_of(GAME, after(1, 2, 3, 5, 4, 7, 6, 9), [7]), pick)
    unfinished = LANGUAGE.retell(line_of(GAME, START, [4]), pick)
    assert unfinished.endswith(".")
    assert "wins" not in unfinished


def test_players_and_legal_moves_are_named_as_people_name_them():
    assert (LANGUAGE.player(START), LANGUAGE.opponent(START)) == ("O", "X")
    assert (LANGUAGE.player(after(5)), LANGUAGE.opponent(after(5))) == ("X", "O")
    assert LANGUAGE.legal(after(5, 1)) == "2 3 4 6 7 8 9"


def test_the_content_of_a_reading_does_not_depend_on_its_phrasing():
    one = "O on 1 7; X on 5 8; free 2 3 4 6 9. O is to move."
    other = "O is to move. O stands on 1 7, X on 5 8; 2 3 4 6 9 is free."
    wrong = "O is to move. O stands on 1 7, X on 5 9; 2 3 4 6 8 is free."
    assert LANGUAGE.content(one) == LANGUAGE.content(other) != LANGUAGE.content(wrong)


def test_the_content_of_a_retelling_does_not_depend_on_its_phrasing():
    one = "First O takes 8, X answers 1 and completes 1-4-7."
    other = "O plays 8, then X takes 1 and wins by 1-4-7."
    wrong = "O plays 8, then X takes 1 and wins by 1-2-3."
    assert LANGUAGE.content(one) == LANGUAGE.content(other) != LANGUAGE.content(wrong)


# -- other games -------------------------------------------------------------------------------------------------------
def test_a_game_without_language_is_refused_with_those_that_have_one(scripted_game):
    with pytest.raises(NLRLError, match=r"'scripted' has no language; known: .*tictactoe"):
        language_of(scripted_game(["one", "two"]))
    with pytest.raises(NLRLError, match=r"phrases/chess.toml\); known: .*tictactoe"):
        load_phrases("chess")
