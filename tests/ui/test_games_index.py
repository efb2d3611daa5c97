from __future__ import annotations

import csv
import io

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.games_table import write_games
from nlrl.testing import write_run
from nlrl.ui.games_index import EVERY, Error, Filters, GamesIndex, source_stamp, sources_of

from .shelf import EVIL, GAMES, config, played, turn, write_growing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", config=config(), records=GAMES)


@pytest.fixture(scope="module")
def index(run):
    return GamesIndex(sources_of("run", run, "3"))


def keys(index, filters=EVERY, **order):
    return [row["key"] for row in index.page(filters, **order).rows]


def test_games_and_matches_are_rows_and_nothing_else_is(index):
    page = index.page()
    assert page.total == 5
    assert page.rows[1] == {
        "run": "run",
        "iteration": 1,
        "stage": "001/rollout",
        "game": "tictactoe",
        "seed": "3",
        "seat": 1,
        "opponent": "minimax",
        "result": "loss",
        "length": 5,
        "failures": 0,
        "key": "a2",
    }
    match = next(row for row in page.rows if row["key"] == "c1")
    assert (match["opponent"], match["seed"], match["stage"]) == ("agent / minimax", str(2**63 + 5), "002/league")


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(run=("run",)), "a1 a2 a3 b1 c1"),
        (Filters(run=("another",)), ""),
        (Filters(stage=("league",)), "c1"),
        (Filters(game=("tictactoe",), seed=("3",)), "a1 a2 a3 b1"),
        (Filters(seat=(1,)), "a2"),
        (Filters(opponent=("minimax", "agent / minimax")), "a2 c1"),
        (Filters(result=("win", "draw")), "a1 b1"),
        (Filters(iterations=(2, 9)), "b1 c1"),
        (Filters(lengths=(5, 7)), "a1 a2"),
        (Filters(forfeits=True), "a3 c1"),
        (Filters(failures=True), "a3"),
        (Filters(text="nothing TO say"), "a2"),
        (Filters(text="%_"), "a2"),
        (Filters(text="100_"), ""),
        (Filters(text="STRASSE"), "b1"),
        (Filters(text="+0.40.\nbest"), "a1"),
        (Filters(text="tokens"), ""),
        (Filters(text=EVIL), "a3"),
        (Filters(text="best_move: 5", result=("loss",), iterations=(1, 1)), "a2"),
    ],
)
def test_filters_let_through_what_they_say(index, filters, found):
    assert sorted(keys(index, filters)) == found.split()
    assert index.page(filters).total == index.count(filters) == len(found.split())


def test_games_are_ordered_by_a_column_and_equal_ones_by_their_place(index):
    assert keys(index, sort="length", descending=True) == ["b1", "a1", "a2", "c1", "a3"]
    assert keys(index, sort="failures", descending=True)[0] == "a3"
    assert keys(index, sort="seat") == ["a1", "a3", "b1", "a2", "c1"]  # a match has no seat: last
    with pytest.raises(ValueError, match="sort"):
        index.page(sort="key; DROP TABLE sources")


def test_games_come_in_pages_of_fifty(tmp_path):
    records = [played(f"{n:03d}", [4] * (n % 9), "win") for n in range(120)]
    index = GamesIndex(sources_of("run", write_run(tmp_path / "run", records={"001/rollout": records})))
    assert [len(index.page(number=n).rows) for n in range(4)] == [50, 50, 20, 0]
    assert [index.page(number=n).total for n in range(4)] == [120] * 4
    assert keys(index, number=2)[-1] == "119"


def test_a_run_without_rows_or_with_broken_ones_is_read_from_its_records(run, index, tmp_path):
    copy = write_run(tmp_path / "run", config=config(), records=GAMES)
    for number, rows in enumerate(sorted(copy.rglob("games.parquet"))):
        rows.write_bytes(b"broken") if number else rows.unlink()
    again = GamesIndex(sources_of("run", copy, "3"))
    assert again.page().rows == index.page().rows
    assert again.count(Filters(text="strasse")) == 1


def test_games_that_are_being_written_are_read_up_to_the_torn_line(tmp_path):
    run = write_growing(tmp_path / "run", games=5)
    (source,) = sources_of("run", run)
    index, before = GamesIndex([source]), source_stamp(source)
    assert index.count() == 5
    shard = source.folder / "shards" / "games.jsonl"
    shard.write_text(shard.read_text() + '","result":"win"}\n')
    assert source_stamp(source) != before
    assert GamesIndex([source]).count(Filters(result=("win",))) == 6


def test_rows_that_a_killed_commit_left_are_not_taken_for_all_games(tmp_path):
    run = write_growing(tmp_path / "run", games=5)
    write_games([GAMES["001/rollout"][0]], run / "iterations/001/rollout/games.parquet")
    assert GamesIndex(sources_of("run", run)).count() == 5


def test_damage_in_the_middle_is_named(tmp_path):
    run = write_growing(tmp_path / "run")
    shard = run / "iterations/001/rollout/shards/games.jsonl"
    shard.write_text(shard.read_text() + "\n" + shard.read_text())
    with pytest.raises(NLRLError, match="line 6"):
        GamesIndex(sources_of("run", run))


def test_odd_names_of_folders_are_names(tmp_path):
    for name in ("it's [a] *run*?", "two"):
        write_run(tmp_path / name, records={"1000/rollout": [played("k", [4], "win")]})
    index = GamesIndex([source for path in tmp_path.iterdir() for source in sources_of(path.name, path)])
    assert index.count() == 2
    assert index.choices()["run"] == ["it's [a] *run*?", "two"]
    assert index.ranges() == {"iteration": (1000, 1000), "length": (1, 1)}


def test_nothing_to_index_is_an_empty_index(tmp_path):
    assert sources_of("run", write_run(tmp_path / "run")) == []
    index = GamesIndex([])
    assert index.page() == ([], 0)
    assert index.ranges() == {}


def test_value_errors_are_a_column_a_filter_and_an_order(run):
    errors = [Error("run", "001/rollout", "a1", 0.25), Error("run", "001/rollout", "a2", 0.75)]
    index = GamesIndex(sources_of("run", run), errors)
    assert index.columns[-1] == "value_error"
    assert keys(index, Filters(least_error=0.5)) == ["a2"]
    assert keys(index, sort="value_error", descending=True)[:2] == ["a2", "a1"]  # unknown ones last


def test_csv_has_all_games_and_no_cell_that_a_spreadsheet_would_run(tmp_path):
    records = [played(f"{n:03d}", [4], "win", '=HYPERLINK("http://x")', turns=[turn(0, "x")]) for n in range(60)]
    index = GamesIndex(sources_of("run", write_run(tmp_path / "run", records={"001/rollout": records})))
    rows = list(csv.DictReader(io.StringIO(index.csv(Filters(seat=(0,)), "result"))))
    assert len(rows) == 60
    assert tuple(rows[0]) == index.columns
    assert {row["opponent"] for row in rows} == {'\'=HYPERLINK("http://x")'}
