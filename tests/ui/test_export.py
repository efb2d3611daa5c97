from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from nlrl.ui.export import export_html, file_name, text
from nlrl.ui.game_records import run_config
from nlrl.ui.replay import load_replay, make_replay

from .replayed import EVIL, GAME, KEY, PLAYED, write_played


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = write_played(tmp_path_factory.mktemp("runs") / "run")
    return export_html(load_replay(run, "001/rollout", KEY), run_config(run))


class Reader(HTMLParser):
    """The tags of a page, with their attributes, and its words."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.words = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data


def test_the_file_asks_nobody_for_anything(page):
    reader = Reader(page)
    assert "http://" not in page.replace(text(EVIL), "").replace("evil.test", "")
    for tag, attrs in reader.tags:
        assert tag not in ("link", "iframe", "object", "embed", "a", "form", "base")
        assert not any(name.startswith("on") for name in attrs)
        assert all(attrs[name].startswith("data:") for name in ("src", "href") if name in attrs)


def test_only_its_own_script_may_run(page):
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = next(attrs["content"] for tag, attrs in Reader(page).tags if tag == "meta" and "http-equiv" in attrs)
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_a_models_words_are_in_it_as_words(page):
    reader = Reader(page)
    assert "<script>alert(1)</script><img src=x onerror=alert(2)>" in reader.words
    assert "\x1b" not in page
    assert "\\x1b[31mred" in reader.words


def test_it_has_every_ply_with_its_board_judgement_and_texts(page):
    reader = Reader(page)
    plies = [attrs["id"] for tag, attrs in reader.tags if tag == "section"]
    assert plies == [f"ply-{ply}" for ply in range(len(PLAYED["actions"]) + 1)]
    boards = [attrs for tag, attrs in reader.tags if tag == "img" and attrs["alt"] == "board"]
    assert len(boards) == len(plies)
    assert base64.b64decode(boards[0]["src"].partition(",")[2]).startswith(b"<svg")
    for words in ("Blunder: 1, 3, 7 and 9 were best.", "four lines", "Of 2 games O won", "Choose a move."):
        assert words in reader.words


def test_it_steps_through_the_game(page):
    buttons = [attrs["data-does"] for tag, attrs in Reader(page).tags if tag == "button"]
    assert buttons == ["first", "back", "play", "next", "last"]
    assert "ArrowRight" in page


def test_hostile_fields_of_a_record_are_escaped():
    record = {**PLAYED, "opponent": EVIL, "result": EVIL, "key": "../../etc/passwd<b>"}
    replay = make_replay(GAME, record)
    page = export_html(replay)
    assert [tag for tag, _ in Reader(page).tags].count("script") == 1
    assert re.fullmatch(r"tictactoe-[A-Za-z0-9]+\.html", file_name(replay))


def test_signs_that_turn_texts_around_are_made_visible():
    assert text("a\u202eb\x00\x9b") == "a\\x202eb\\x00\\x9b"
    assert text("a\n\tb<&\"'") == "a\n\tb&lt;&amp;&quot;&#x27;"
