"""The viewer as a whole: which pages there are, and that the first one is drawn."""

from __future__ import annotations

import sys

import pytest
from streamlit.testing.v1 import AppTest

import nlrl.ui.app
import nlrl.ui.launch
from nlrl.testing import write_run
from nlrl.ui.links import LAB, PLAY, REPLAY
from nlrl.ui.pages.common import PAGES, plain

from .replayed import params
from .shelf import GAMES, METRICS, config

APP = nlrl.ui.launch.ENTRY


@pytest.fixture
def open_app(tmp_path, monkeypatch):
    """Runs the viewer on the runs under tmp_path."""
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path)])

    def run() -> AppTest:
        app = AppTest.from_file(APP, default_timeout=60).run()
        assert not app.exception
        return app

    return run


def test_the_viewer_opens_with_its_runs(open_app, tmp_path):
    write_run(tmp_path / "first")
    app = open_app()
    assert app.title[0].value == "Runs"
    assert list(app.dataframe[0].value["run"]) == ["first"]
    assert str(tmp_path) in app.sidebar.caption[0].value.replace("\\", "")


def test_every_page_has_its_address(open_app):
    pages = open_app().session_state[PAGES]
    assert list(pages) == list(nlrl.ui.app.TITLES)
    assert {REPLAY, LAB, PLAY} <= set(pages)
    assert all(page.url_path == ("" if name == "runs" else name) for name, page in pages.items())


def test_a_page_whose_module_is_missing_is_left_out(open_app, monkeypatch):
    monkeypatch.setattr("nlrl.ui.app.find_spec", lambda name: None if name.endswith(".play") else name)
    assert "play" not in open_app().session_state[PAGES]


def visit(app: AppTest, page: str, **params: str) -> AppTest:
    """Opens a page by its address."""
    app._page_hash = app.session_state[PAGES][page]._script_hash
    for name, value in params.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception
    return app


def choose(app: AppTest, key: str, **selection: object) -> AppTest:
    app.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": [], **selection}}
    app.run()
    assert not app.exception
    return app


def test_a_point_leads_to_its_iterations_games_and_a_game_to_its_replay(open_app, tmp_path):
    write_run(tmp_path / "run", config=config(), metrics=METRICS, records=GAMES)
    app = visit(open_app(), "learning", run="run")
    assert app.title[0].value == "run"
    app = choose(app, "chart wins exact", point=[{"iteration": 1, "run": "run"}])
    assert app.title[0].value == "Games"
    assert params(app) == {"run": "run", "iteration": "1"}
    app = choose(visit(open_app(), "games", run="run"), "games", rows=[1])
    assert params(app) == {"run": "run", "stage": "001/rollout", "game": "a2"}
    assert any("Move 1" in shown.value for shown in app.markdown)


def test_streamlit_finds_no_pages_of_its_own():
    """Beside the entry, a folder called `pages` would be scripts that answer the viewer's addresses."""
    assert not (nlrl.ui.launch.ENTRY.parent / "pages").exists()


def test_names_are_shown_as_they_are():
    assert plain("a*b_c <i> [x](y)\n$z$") == "a\\*b\\_c \\<i\\> \\[x\\](y) \\$z\\$"
