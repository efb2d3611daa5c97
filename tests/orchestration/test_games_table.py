from __future__ import annotations

import pyarrow.parquet
import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.games_table import SCHEMA, games_table, write_games
from nlrl.orchestration.run_folder import RunFolder

PLAYED = {
    "schema": 1,
    "kind": "game",
    "key": "k",
    "game": "tictactoe",
    "seat": 1,
    "opponent": "random",
    "actions": [4, 0, 8],
    "result": "forfeit",
    "turns": [
        {"ply": 1, "reply": "The Straße", "failures": ["illegal", "missing"]},
        {"ply": 3, "reply": "is LONG", "failures": []},
    ],
}
MATCH = {
    "schema": 1,
    "kind": "match",
    "key": "m",
    "game": "tictactoe",
    "players": ["agent", "minimax"],
    "seed": 2**63 + 1,
    "actions": [],
    "result": "draw",
    "forfeited": None,
}


def rows(*records):
    return games_table(records).to_pylist()


def test_a_game_becomes_a_row_with_what_was_said_in_one_text_without_case():
    assert rows(PLAYED) == [
        {
            "key": "k",
            "game": "tictactoe",
            "seed": None,
            "seat": 1,
            "opponent": "random",
            "result": "forfeit",
            "forfeit": True,
            "length": 3,
            "failures": 2,
            "said": "the strasse\nis long",
        }
    ]


def test_a_match_names_both_players_and_keeps_its_whole_seed():
    (row,) = rows(MATCH)
    assert (row["opponent"], row["seed"], row["seat"], row["forfeit"]) == (
        "agent / minimax",
        str(2**63 + 1),
        None,
        False,
    )
    assert rows(MATCH | {"forfeited": 0})[0]["forfeit"]


def test_what_is_no_game_has_no_row_and_an_odd_game_hides_no_other():
    odd = {"kind": "game", "key": "o", "actions": "none", "turns": [3, {"reply": 4, "failures": 5}], "seat": True}
    found = rows({"kind": "diary", "key": "d"}, odd, PLAYED)
    assert [row["key"] for row in found] == ["o", "k"]
    assert found[0] == {name: None for name in SCHEMA.names} | {"key": "o", "forfeit": False, "failures": 0, "said": ""}


def test_committing_games_writes_rows_and_committing_anything_else_does_not(tmp_path):
    run = RunFolder(tmp_path)
    for name, record in (("rollout", PLAYED), ("targets", {"schema": 1, "kind": "target", "key": "t"})):
        stage = run.stage(1, name)
        with stage.writer("s") as writer:
            writer.write(record)
        stage.commit({})
    found = pyarrow.parquet.read_table(tmp_path / "iterations/001/rollout/games.parquet")
    assert found.schema.equals(SCHEMA)
    assert found["key"].to_pylist() == ["k"]
    assert not (tmp_path / "iterations/001/targets/games.parquet").exists()
    assert "games.parquet" not in run.stage(1, "rollout").load()["files"]


def test_rows_that_a_killed_commit_left_are_written_anew(tmp_path):
    stage = RunFolder(tmp_path).stage(1, "rollout")
    with stage.writer("s") as writer:
        writer.write(PLAYED)
    (stage.dir / "games.parquet").write_bytes(b"half")
    stage.commit({})
    assert pyarrow.parquet.read_table(stage.dir / "games.parquet").num_rows == 1


def test_many_games_are_written_in_parts(tmp_path):
    assert write_games((PLAYED | {"key": str(n)} for n in range(10_000)), tmp_path / "games.parquet") == 10_000
    assert pyarrow.parquet.ParquetFile(tmp_path / "games.parquet").num_row_groups == 3


def test_the_name_of_the_rows_belongs_to_the_stage(tmp_path):
    stage = RunFolder(tmp_path).stage(1, "rollout")
    with stage.file("games.parquet") as path:
        path.write_bytes(b"x")
    with pytest.raises(NLRLError, match="belongs to the stage"):
        stage.commit({}, ["games.parquet"])
