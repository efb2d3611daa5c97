from __future__ import annotations

from nlrl.testing import write_run
from nlrl.ui import live

from .shelf import GAMES, config, write_growing


def test_lines_are_counted_once_and_anew_when_a_file_shrinks(tmp_path):
    file, counter = tmp_path / "f", live.Counter()
    assert counter.lines(file) == 0
    file.write_text("a\nb\nc")
    assert counter.lines(file) == 2
    with open(file, "a") as more:
        more.write("\nd\n")
    assert counter.lines(file) == 4
    file.write_text("a\n")
    assert counter.lines(file) == 1


def test_only_the_newest_iteration_is_followed(tmp_path):
    run = write_run(tmp_path / "run", config=config(), records=GAMES)
    assert live.stages_now(run, {"rollout.games": 8}, live.Counter()) == [
        live.StageNow("002/league", "done", 1, None),
        live.StageNow("002/rollout", "done", 2, 8),
    ]


def test_the_newest_records_are_the_last_whole_lines(tmp_path):
    run = write_growing(tmp_path / "run", games=4)
    found = live.newest(run, 2)
    assert [one.stage for one in found] == ["001/rollout"] * 2
    assert found[0].text == "I prefer 5 at +0.40.\nbest_move: 5"
    assert live.newest(write_run(tmp_path / "empty")) == []


def test_a_record_longer_than_what_is_read_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "TAIL", 600)
    run = write_growing(tmp_path / "run", games=6)
    assert 1 <= len(live.newest(run, 5)) < 5
