"""`nlrl bench viewer`: that what it times is what the viewer does, on a few games."""

from __future__ import annotations

import json

from nlrl.benchmarks import viewer
from nlrl.envs import make
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.run_folder import RunFolder, verify


def test_made_up_games_are_games_of_a_sound_run(tmp_path):
    run = viewer.write_games(tmp_path / "run", games=50, iterations=3)
    assert verify(run) == []
    records = [record for stage in RunFolder(run).stages() for record in stage.records()]
    game = make("tictactoe")
    assert len({record["key"] for record in records}) == 50
    for record in records:
        end = line_of_record(game, record).end
        assert record["result"] == "forfeit" or game.is_terminal(end)


def test_all_figures_are_told_and_kept(tmp_path, capsys):
    assert viewer.main(["--games", "300", "--opened", "60", "--rounds", "1", "--json", str(tmp_path / "f.json")]) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    passed = {row["filter"]: row["games"] for row in found["filters"]}
    assert passed["no filter"] == 300
    assert passed["text that no game contains"] == 0
    assert 0 < passed["seat, opponent and length"] < 300
    assert all(value > 0 for value in found["opening_ms"].values())
    assert "text that every game contains" in capsys.readouterr().out
