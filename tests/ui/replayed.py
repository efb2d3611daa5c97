"""A run whose records say hostile things about one game, and the pages of it; for the tests of Replay, Lab and Play."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest

from nlrl.envs import make
from nlrl.testing import write_run

GAME = make("tictactoe")
START = GAME.to_text(GAME.initial_states()[0])
KEY = "aa11"
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> **[a](http://evil.test)** \x1b[31mred\x1b[0m $x$"
REPLY = f"{EVIL} O wins at 9. I prefer 5 at +0.40.\nbest_move: 5"
CONFIG = 'name = "made up"\n[game]\nname = "tictactoe"\n[model]\nkind = "scripted"\nname = "nlrl.testing.by_rules"\n'
PLAYED = {
    "kind": "game",
    "key": KEY,
    "game": "tictactoe",
    "start": START,
    "seat": 0,
    "opponent": "random",
    "actions": [4, 1, 0, 8, 5, 3, 2, 6, 7],  # O 5, X 2 (a blunder), O 1, X 9, O 6, X 4, O 3, X 7, O 8
    "result": "draw",
    "turns": [
        {"ply": 0, "reply": REPLY, "tokens": 21, "failures": []},
        {"ply": 2, "reply": "best_move: 1", "tokens": 4, "failures": ["missing"], "seconds": 0.25},
        {"ply": 4, "reply": "I put O at +1.50.\nbest_move: 6", "tokens": 4, "failures": []},
    ],
}
CHOICE = {
    "kind": "improvement",
    "state": START,
    "critic": "critic@1",
    "candidates": [
        {"action": 4, "text": f"four lines {EVIL}", "verdict": 0.6},
        {"action": 0, "text": "O wins at 3. I put O at +0.10.", "verdict": 0.1},
    ],
    "unread": [8],
    "action": 4,
    "text": "I prefer 5 at +0.60.\nbest_move: 5",
    "failures": [],
}
TARGETS = [
    {
        "kind": "target",
        "state": START,
        "action": 4,
        "policy": "actor@7",
        "evidence": "games",
        "samples": ["O5 X2 O1, draw", f"O5 {EVIL}"],
        "text": f"Of 2 games O won {EVIL}.\nfinal_evaluation: +0.50",
        "target": "O has the middle.\nfinal_evaluation: +0.50",
        "verdict": 0.5,
        "failures": [],
    },
    {
        "kind": "target",
        "state": START,
        "action": 0,
        "samples": [],
        "text": "no",
        "verdict": None,
        "failures": ["missing"],
    },
]
POLICY = {"kind": "policy", "state": START, "moves": {"4": 3, "0": 1, "forfeit": 1}}
STAGES = {
    "001/rollout": [PLAYED, {**PLAYED, "key": "bb22", "actions": [0]}],
    "001/improvement": [CHOICE],
    "001/targets": TARGETS,
    "001/policy": [POLICY],
}
PAGE = "from pathlib import Path\nfrom nlrl.ui.pages import {page}\n{page}.show(Path({folder!r}))\n"


def write_played(folder: Path) -> Path:
    """The run, in `folder`."""
    return write_run(folder, config=CONFIG, records=STAGES)


def open_page(page: str, folder: Path, **params: str) -> AppTest:
    """A page of the viewer, drawn once at an address."""
    app = AppTest.from_string(PAGE.format(page=page, folder=str(folder)), default_timeout=60)
    for name, value in params.items():
        app.query_params[name] = value
    return draw(app)


def draw(app: AppTest) -> AppTest:
    app.run()
    assert not app.exception, app.exception
    return app


def params(app: AppTest) -> dict[str, str]:
    """The address, each parameter once."""
    return {name: value if isinstance(value, str) else value[0] for name, value in app.query_params.items()}


def words(app: AppTest) -> str:
    """All Markdown of a page: none of it may be what a model wrote."""
    kinds = (app.markdown, app.caption, app.info, app.warning, app.error, app.success, app.title)
    return "\n".join(str(element.value) for kind in kinds for element in kind)
