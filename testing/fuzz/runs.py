"""Files of a run folder: records, metrics, manifests, and what readers and the viewer make of them."""

from __future__ import annotations

from typing import Any

import orjson

from nlrl.errors import NLRLError
from nlrl.orchestration.records import RecordWriter, is_record, read_records, scan_lines
from nlrl.orchestration.run_folder import verify
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.tables import query
from nlrl.orchestration.tracking import read_metrics
from nlrl.testing.fuzz import holds, target
from nlrl.testing.fuzz.folders import file_with
from nlrl.testing.fuzz.texts import positions

_START = " 1 | 2 | 3\n---+---+---\n 4 | 5 | 6\n---+---+---\n 7 | 8 | 9"
_GAME: dict[str, Any] = {
    "schema": 1,
    "kind": "game",
    "key": "aa11",
    "game": "tictactoe",
    "start": _START,
    "seat": 0,
    "opponent": "random",
    "actions": [4, 1, 0, 8, 5, 3],
    "result": "loss",
    "turns": [{"ply": 0, "reply": "I prefer 5 at +0.40.\nbest_move: 5", "tokens": 21, "failures": ["missing"]}],
}
_CHOICE: dict[str, Any] = {
    "schema": 1,
    "kind": "improvement",
    "key": "bb22",
    "state": _START,
    "candidates": [{"action": 4, "text": "O wins at 3. I put O at +0.10.", "verdict": 0.6}],
    "unread": [8],
    "action": 4,
    "text": "best_move: 5",
    "failures": [],
}
_TARGET: dict[str, Any] = {
    "schema": 1,
    "kind": "target",
    "key": "cc33",
    "state": _START,
    "action": 4,
    "policy": "actor@7",
    "evidence": "games",
    "samples": ["O5 X2 O1, draw"],
    "text": "Of 2 games O won 1.\nfinal_evaluation: +0.50",
    "target": "O has the middle.\nfinal_evaluation: +0.50",
    "verdict": 0.5,
    "failures": [],
}
_METRICS = (
    b'{"step":0,"time":1.5,"metrics":{"evaluation/exact/against/random/win":0.5}}\n{"step":1,"time":2,"text":"a"}\n'
)


def _lines(*records: dict[str, Any]) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def _records() -> list[bytes]:
    return [_lines(_GAME, _CHOICE, _TARGET), _lines(_GAME), _lines(_GAME)[:-9], b"\n"]


@target("record files", _records, NLRLError)
def record_files(data: bytes) -> None:
    """Readers agree with the writer that repairs the file: it cuts what they leave out, and nothing else."""
    path = file_with(data, "shard.jsonl")
    whole = [record for record, _, _ in scan_lines(path)]
    holds(all(map(is_record, whole)), "a line that is no record was read")
    with RecordWriter(path) as writer:
        writer.write({"schema": 1, "kind": "mark", "key": "\0"})
    holds([record for record, _, _ in scan_lines(path)][:-1] == whole, "repairing the file changed its records")


@target("record tables", _records, NLRLError)
def record_tables(data: bytes) -> None:
    from nlrl.orchestration.games_table import games_table

    records = list(read_records(file_with(data, "tables/iterations/001/rollout/shards/a.jsonl")))
    games = sum(record["kind"] in ("game", "match") for record in records)
    holds(games_table(records).num_rows == games, "a game is missing from the table")


@target("queries", _records, NLRLError, slow=True)
def queries(data: bytes) -> None:
    path = file_with(data, "sql/iterations/001/rollout/shards/a.jsonl")
    found = query("SELECT count(*) AS n FROM rollout", path.parents[4])
    holds(found["n"][0].as_py() == len(list(read_records(path))), "the query counts other records")


@target("metrics", lambda: [_METRICS, b'{"step":1,"metrics":5}\n'], NLRLError)
def metrics(data: bytes) -> None:
    from nlrl.ui import learning, library, reading

    entries = read_metrics(file_with(data, "metrics.jsonl"))
    reading.learning_table(reading.shares(entries))
    library.last_figures(entries)
    for curve in (learning.exploitability, learning.ratings, learning.verdict_errors, learning.failures):
        curve(entries)


def _manifests() -> list[bytes]:
    files = {"records.jsonl": {"bytes": 3, "records": 1, "sha256": "ab"}}
    manifest = {"schema": 1, "iteration": 1, "stage": "rollout", "files": files, "metrics": {"a": 1.5}}
    return [orjson.dumps(manifest), orjson.dumps(manifest | {"files": {"../../../../../etc/passwd": {"bytes": 1}}})]


@target("manifests", _manifests, NLRLError)
def manifests(data: bytes) -> None:
    """`verify` gives lines, whatever a manifest says, and looks at no file outside the stage's folder."""
    path = file_with(data, "verified/iterations/001/rollout/manifest.json")
    problems = verify(path.parents[3])
    holds(all(isinstance(line, str) for line in problems), "a problem that is no text")
    holds(not any(f"/{place}/" in line for place in ("etc", "dev", "proc") for line in problems), f"{problems}")
    Stage(path.parent, 1, "rollout").load()


@target("run configs", lambda: [b'name = "a"\n[game]\nname = "maze"\nparams = {}\n[model]\nname = "x"\n'])
def run_configs(data: bytes) -> None:
    """The viewer lists runs whatever their configs are."""
    from nlrl.ui import library, reading
    from nlrl.ui.game_records import run_config

    run = file_with(data, "listed/config.toml").parent
    reading.game_spec(run)
    library.read_config(run)
    run_config(run)
    library.differences([library.read_run("listed", run)])


@target("replays", _records, NLRLError, slow=True)
def replays(data: bytes) -> None:
    """A game of any record is shown as far as it can be, or refused."""
    from nlrl.ui.cards import make_card
    from nlrl.ui.export import export_html
    from nlrl.ui.replay import make_replay

    records = list(read_records(file_with(data, "replayed.jsonl")))
    game, _ = positions()[0]
    about = {_START: [record for record in records if record["kind"] != "game"]}
    for record in [record for record in records if record["kind"] == "game"][:3]:
        replay = make_replay(game, record, about, seconds=0.1, nodes=50)
        for number in range(len(replay.plies))[:4]:
            make_card(replay, number)
        page = export_html(replay)
        holds(page.count("<script") == 1, "the page has a script that is not its own")


@target("live pages", _records)
def live_pages(data: bytes) -> None:
    from nlrl.ui import game_records, live

    path = file_with(data, "live/iterations/001/rollout/shards/a.jsonl")
    for key in game_records.game_keys(path.parent.parent, 3):
        game_records.find_game(path.parent.parent, key)
    game_records.records_about(path.parents[4], 1, {_START})
    live._tail(path, 5)


_RATING = {"name": "a", "rating": 1.0, "low": 0, "high": 2, "games": 3, "score": 0.5}


@target("ratings", lambda: [orjson.dumps({"game": "tictactoe", "ratings": [_RATING]})], NLRLError)
def ratings(data: bytes) -> None:
    from nlrl.orchestration.league import read_ratings

    read_ratings(file_with(data, "ratings.json"))
