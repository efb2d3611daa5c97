"""Leagues: who meets whom, what is kept, and what a kill costs."""

import json
import subprocess
import sys
import time

import pytest

from nlrl.envs import make_from_spec
from nlrl.errors import NLRLError
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.config import validated
from nlrl.orchestration.league import LeagueConfig, matches, meetings, run_league
from nlrl.orchestration.run_folder import RunFolder


def config(**fields) -> LeagueConfig:
    return validated(LeagueConfig, {"members": ("random", "first-move", "minimax"), "pairs": 4} | fields, "league")


def records(out):
    return [record for stage in RunFolder(out).stages() for record in stage.records()]


def test_better_players_are_rated_higher(tmp_path):
    ratings = run_league(config(pairs=30, anchor="random"), tmp_path / "league")
    assert [rating.name for rating in ratings] == ["minimax", "first-move", "random"]
    assert ratings[-1].rating == 0
    assert ratings[0].interval.low > 0
    saved = json.loads((tmp_path / "league" / "ratings.json").read_text())
    assert [row["name"] for row in saved["ratings"]] == [rating.name for rating in ratings]


def test_every_pair_has_both_seats_and_one_seed(tmp_path):
    run_league(config(), tmp_path)
    found = records(tmp_path)
    assert len(found) == 3 * 4 * 2
    by_pair = {}
    for record in found:
        by_pair.setdefault((frozenset(record["players"]), record["pair"]), []).append(record)
    for first, second in by_pair.values():
        assert first["players"] == second["players"][::-1]
        assert first["seed"] == second["seed"]
    assert all(meeting.games == 2 for meeting in meetings(found))


def test_records_replay_to_their_results(tmp_path):
    game = make_from_spec("breakthrough(rows=4,columns=3)")
    run_league(config(game=game.spec, members=("random", "first-move")), tmp_path)
    for record in records(tmp_path):
        state = game.parse_text(record["start"])
        for action in record["actions"]:
            state = game.apply(state, action).state
        value = game.returns(state)[0]
        assert record["result"] == ("win" if value > 0 else "loss" if value < 0 else "draw")


def test_a_new_member_plays_its_games_only(tmp_path):
    run_league(config(members=("random", "first-move")), tmp_path)
    before = {record["key"] for record in records(tmp_path)}
    run_league(config(), tmp_path)
    after = [record["key"] for record in records(tmp_path)]
    assert before < set(after)
    assert len(after) == len(set(after)) == 24
    assert [stage.iteration for stage in RunFolder(tmp_path).stages()] == [1, 2]
    run_league(config(), tmp_path)
    assert len(list(RunFolder(tmp_path).stages())) == 2  # nothing was owed


def test_the_order_of_members_changes_nothing():
    game = make_from_spec("tictactoe")
    one, other = (matches(config(members=m), game) for m in (("random", "minimax"), ("minimax", "random")))
    assert [match.key for match in one] == [match.key for match in other]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"members": ("random", "random")}, "would meet itself"),
        ({"members": ("random",)}, "members"),
        ({"members": ("random", "nobody")}, "members: .*nobody"),
        ({"game": "maze(layout=double_t)", "members": ("random", "minimax")}, "for games for two"),
        ({"anchor": "minimax(2)"}, "anchor: 'minimax\\(2\\)' is not a member"),
        ({"pairs": 0}, "pairs"),
    ],
)
def test_what_cannot_be_played_is_refused(tmp_path, fields, message):
    with pytest.raises(NLRLError, match=message):
        run_league(config(**fields), tmp_path / "league")
    assert not (tmp_path / "league").exists() or not records(tmp_path / "league")


def test_another_league_in_the_folder_is_refused(tmp_path):
    run_league(config(), tmp_path)
    with pytest.raises(NLRLError, match="seed"):
        run_league(config(seed=1), tmp_path)


def test_the_command_prints_the_table(tmp_path, capsys):
    command = ["league", str(tmp_path / "l"), "--members", "random", "minimax", "--pairs", "3", "--anchor", "random"]
    assert run_cli(command) == 0
    printed = capsys.readouterr().out
    assert "minimax" in printed
    assert "95 % interval" in printed


def test_a_killed_league_ends_as_if_it_had_not_been(tmp_path):
    members = ["random", "mcts(10,1)", "mcts(20,1)", "minimax"]
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "league", "--members", *members, "--pairs", "12"]
    process = subprocess.Popen([*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
    shard = tmp_path / "killed/iterations/001/matches/shards/games.jsonl"
    deadline = time.monotonic() + 60
    while not (shard.exists() and shard.stat().st_size) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    whole = config(members=tuple(members), pairs=12)
    run_league(whole, tmp_path / "killed")
    run_league(whole, tmp_path / "whole")
    manifest = "iterations/001/matches/manifest.json"
    assert (tmp_path / "killed" / manifest).read_bytes() == (tmp_path / "whole" / manifest).read_bytes()
    assert (tmp_path / "killed/ratings.json").read_bytes() == (tmp_path / "whole/ratings.json").read_bytes()
