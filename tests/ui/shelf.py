"""A folder of scripted runs, for the tests of the pages that find runs and games: a whole one, one that differs in its
config, one that is being written, an empty one, a torn one, and an older one without rows to search in."""

from __future__ import annotations

import json
from pathlib import Path

from nlrl.envs import make
from nlrl.orchestration.records import record_key
from nlrl.testing import write_run

GAME = make("tictactoe")
START = GAME.to_text(GAME.initial_states()[0])
EVIL = "<script>alert(1)</script> **[a](http://evil.test)** \x1b[31mred\x1b[0m $x$ '; DROP TABLE games; --"
CONFIG = (
    'name = "{name}"\nseed = {seed}\niterations = 3\n[game]\nname = "tictactoe"\n'
    '[rollout]\ngames = 8\nopponents = ["random"]\n'
)


def turn(ply, reply, *failures):
    return {"ply": ply, "reply": reply, "tokens": 9, "failures": list(failures)}


def played(key, actions, result, opponent="random", seat=0, turns=()):
    return {
        "kind": "game",
        "key": key,
        "game": "tictactoe",
        "start": START,
        "seat": seat,
        "opponent": opponent,
        "actions": actions,
        "result": result,
        "turns": list(turns),
    }


GAMES = {
    "001/rollout": [
        played("a1", [4, 1, 0, 8, 2, 3, 6], "win", turns=[turn(0, "I prefer 5 at +0.40.\nbest_move: 5")]),
        played("a2", [0, 4, 1, 2, 6], "loss", "minimax", 1, [turn(1, "NOTHING to say: 100%_done.\nbest_move: 5")]),
        played("a3", [4], "forfeit", turns=[turn(0, EVIL, "illegal", "missing"), turn(1, "no", "missing")]),
    ],
    "002/rollout": [
        played("b1", [4, 0, 8, 2, 1, 7, 6, 3, 5], "draw", turns=[turn(0, "Straße. I put O at -0.50.\nbest_move: 5")]),
        {"kind": "note", "key": "b2", "text": "no game"},
    ],
    "002/league": [
        {
            "kind": "match",
            "key": "c1",
            "game": "tictactoe",
            "players": ["agent", "minimax"],
            "pair": 0,
            "seed": 2**63 + 5,
            "start": START,
            "actions": [4, 0],
            "result": "loss",
            "forfeited": 0,
        }
    ],
}
WIN = "evaluation/sampled/greedy/random/win/"
METRICS = [
    {
        **{f"{WIN}share": share, f"{WIN}low": share - 0.05, f"{WIN}high": share + 0.05},
        "evaluation/sampled/greedy/random/loss/share": 1 - share,
        "evaluation/exact/against/random/win": share,
        "evaluation/exact/exploitability": 1 - share,
        "evaluation/turns/failed_first": 0.1,
        "evaluation/texts/against_policy/text/brier": 0.2,
        "league/agent/rating": 100.0 * share,
        "league/agent/low": 0.0,
        "league/agent/high": 120.0,
        "league/ratings/random/rating": 0.0,
        "seconds/rollout": 1.5,
    }
    for share in (0.44, 0.74)
]
AFTER = GAME.to_text(GAME.apply(GAME.initial_states()[0], 4).state)
CHOICES = [
    {
        "kind": "improvement",
        "state": START,
        "ply": 0,
        "candidates": [{"action": 4, "text": "level", "verdict": 0.5}, {"action": 0, "text": "x", "verdict": None}],
    },
    {"kind": "improvement", "state": AFTER, "ply": 1, "candidates": [{"action": 0, "text": "x", "verdict": -0.25}]},
    {"kind": "improvement", "state": "no board", "ply": 2, "candidates": [{"action": 0, "text": "x", "verdict": 1.0}]},
]


def config(name="whole", seed=3):
    return CONFIG.format(name=name, seed=seed)


def write_shelf(folder: Path) -> Path:
    """All runs, in `folder`."""
    write_run(
        folder / "whole",
        config=config(),
        metrics=METRICS,
        diary=f"# Diary\n\n> {EVIL}\n",
        records={**GAMES, "002/improvement": CHOICES},
    )
    write_run(folder / "group" / "other", config=config("other", 4), metrics=METRICS[:1], records=GAMES)
    write_run(folder / "empty", config=config("empty"))
    (folder / "empty" / "metrics.jsonl").unlink()
    torn = write_run(folder / "torn", config=config("torn"), metrics=METRICS) / "metrics.jsonl"
    first, second = torn.read_text().splitlines()
    torn.write_text("\n".join([first, "torn", second, ""]))
    write_growing(folder / "growing")
    old = write_run(folder / "old", config=config("old"), records=GAMES)
    for rows in old.rglob("games.parquet"):
        rows.unlink()
    return folder


def write_growing(folder: Path, games: int = 5) -> Path:
    """A run in its first rollout, killed in the middle of a line."""
    run = write_run(folder, config=config("growing"))
    shards = run / "iterations" / "001" / "rollout" / "shards"
    shards.mkdir(parents=True)
    lines = [
        json.dumps({"schema": 1, **GAMES["001/rollout"][0], "key": record_key(n)}, separators=(",", ":"))
        for n in range(games)
    ]
    (shards / "games.jsonl").write_text("\n".join(lines) + '\n{"schema":1,"kind":"game","key":"torn')
    return run
