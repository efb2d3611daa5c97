from __future__ import annotations

import pytest

from nlrl.ui.word_diff import Piece, diff_html, word_diff


def test_words_that_differ_are_told_by_side():
    assert word_diff("I prefer 5 at +0.50.", "I prefer 7 at +0.50.") == [
        Piece("same", "I prefer "),
        Piece("only left", "5"),
        Piece("only right", "7"),
        Piece("same", " at +0.50."),
    ]


@pytest.mark.parametrize(("left", "right"), [("", "a b"), ("a b", ""), ("a  b\nc", "a b c"), ("x", "x"), ("", "")])
def test_both_texts_come_back_from_the_pieces(left, right):
    pieces = word_diff(left, right)
    assert "".join(one.text for one in pieces if one.mark != "only right") == left
    assert "".join(one.text for one in pieces if one.mark != "only left") == right


def test_the_html_holds_texts_and_no_tags_of_theirs():
    html = diff_html("<script>a</script> b", "<img onerror=x> b")
    assert "<script" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    assert "<del>" in html
    assert "<ins>" in html
