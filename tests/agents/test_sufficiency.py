"""A blind reader recovers the verdict from narratives that carry it, and nothing from those that do not."""

from __future__ import annotations

import random

import numpy as np
import pytest

from nlrl.agents.language import Outlook, language_of
from nlrl.agents.metrics.consistency import without_judgements
from nlrl.agents.metrics.sufficiency import (
    BlindInput,
    BlindReader,
    in_part,
    narrative,
    r_squared,
    recover,
    same_sign,
)
from nlrl.agents.parser import ParseFailure
from nlrl.backbones.language_model import Completion
from nlrl.envs import make

GAME = make("tictactoe")
LANGUAGE = language_of(GAME)
BANDS = LANGUAGE.phrases["bands"]
START = GAME.initial_states()[0]
AFTER = GAME.apply(START, 4).state


@pytest.mark.parametrize(
    ("text", "state", "left"),
    [
        ("I put O at +0.50, well ahead.\nfinal_evaluation: +0.50", START, "I put self at _, well ahead."),
        ("I put O at +0.50, mostly by 3-5-7.", AFTER, "I put rival at _, mostly by 3-5-7."),
        ("X wins at 7 8, a chance of 62.5% or 5/8, 5 of 8.", AFTER, "self wins at 7 8, a chance of _ or _, _."),
        ("My number is \u22120,25 or -1.", START, "My number is _ or _."),
        ('{"thought": "O is better.", "final_evaluation": 0.5}', START, "self is better."),
    ],
)
def test_a_narrative_has_no_number_and_no_ending_and_keeps_cells_and_lines(text, state, left):
    assert narrative(text, GAME, state) == left


def test_narratives_of_one_player_keep_their_words():
    lake = make("frozen_lake")
    assert narrative("The player is safe at +0.30.", lake, lake.initial_states()[0]) == "The player is safe at _."


def written(count: int, words: bool):
    """Bundled evaluations of random verdicts; without `words`, their facts and numbers alone."""
    rng, texts, verdicts = random.Random(1), [], []
    for _ in range(count):
        verdict = round(rng.uniform(-1, 1), 2)
        text = f"Then O wins at {rng.randint(1, 9)}; X wins at none. "
        text += LANGUAGE.forecast("O", Outlook(verdict, "1-4-7", rng.choice(("3-5-7", None))), rng)
        text = text if words else without_judgements(text, GAME, BANDS)
        texts.append(narrative(f"{text}\nfinal_evaluation: {verdict:+.2f}", GAME, START))
        verdicts.append(verdict)
    return texts, verdicts, [index // 3 for index in range(count)]


def test_words_that_carry_the_verdict_are_read_and_shuffled_ones_are_not():
    found = recover(*written(600, words=True))
    assert r_squared(found.read, found.truth) > 0.9
    assert same_sign(found.read, found.truth).mean() > 0.85
    assert r_squared(found.shuffled, found.truth) < 0.05
    assert same_sign(found.shuffled, found.truth).mean() < 0.6


def test_texts_that_say_only_a_number_fail():
    found = recover(*written(600, words=False))
    assert r_squared(found.read, found.truth) < 0.1
    assert same_sign(found.read, found.truth).mean() < 0.6


def test_what_is_learned_from_is_never_what_is_tested_on():
    texts, verdicts, groups = written(300, words=True)
    found = recover(texts, verdicts, groups)
    assert found.train + len(found.truth) == 300
    tested = set(found.groups)
    held = in_part(groups, 0.3, 7)
    assert {group for group, part in zip(groups, held, strict=True) if part}.isdisjoint(
        group for group, part in zip(groups, held, strict=True) if not part
    )
    assert 0.2 < len(tested) / 100 < 0.4
    assert len(found.groups) == sum(group in tested for group in groups)


def test_equal_texts_and_seeds_give_equal_readers():
    first, second = (recover(*written(90, words=True), seed=3) for _ in range(2))
    assert np.array_equal(first.read, second.read)
    assert np.array_equal(first.shuffled, second.shuffled)


def test_too_few_positions_and_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="cannot be divided"):
        recover(["a", "b"], [0.0, 1.0], ["s", "s"])
    with pytest.raises(ValueError, match="not the same"):
        recover(["a"], [0.0, 1.0], ["s", "t"])


def test_r_squared_is_that_of_the_definition():
    truth = np.array([0.0, 1.0, -1.0])
    assert r_squared(truth, truth) == 1
    assert r_squared(np.zeros(3), truth) == 0
    assert r_squared(-truth, truth) == -3
    assert np.isnan(r_squared(np.zeros(2), np.ones(2)))


def test_the_chat_reader_is_told_for_whom_and_sees_the_narrative_alone():
    role = BlindReader()
    inp = BlindInput("I put self at _, well ahead.")
    system, user = role.messages(inp)
    assert "stands" in system.content
    assert "well ahead" in user.content
    assert "self" in user.content
    assert role.parse(inp, Completion("final_evaluation: +0.40")) == 0.4
    assert isinstance(role.parse(inp, Completion("I cannot say.")), ParseFailure)
