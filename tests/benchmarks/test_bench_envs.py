"""`nlrl bench envs` runs, says what it left out, and judges its figures; how fast anything is, is not tested."""

import json
import os

import pytest

from nlrl.benchmarks import envs, envs_exact, envs_players, timing
from nlrl.benchmarks.figures import Figure, show

TINY = ["--rounds", "1", "--seconds", "0.001", "--size", "8"]


def test_a_run_measures_every_section_and_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert envs.main([*TINY, "--json", str(file)]) == 0
    report, printed = json.loads(file.read_text()), capsys.readouterr().out
    figures = report["figures"]
    assert report["machine"]
    assert "python" in report["versions"]
    assert {figure["section"] for figure in figures} == {"text", "scalar", "batched", "exact", "opponents"}
    assert all(figure["value"] > 0 for figure in figures)
    for figure in figures:
        assert figure["what"] in printed
        assert figure["name"] in printed
    peers = [figure for figure in figures if figure["name"].startswith("OpenSpiel")]
    assert len(peers) == 8
    assert all(figure["ratio"] > 0 for figure in peers)
    judged = [figure for figure in figures if figure["met"] is not None]
    assert len(judged) >= 8
    assert f"{sum(figure['met'] for figure in judged)} targets met" in printed
    assert "one row of pawns a side below six rows" in printed


def test_libraries_that_are_not_installed_are_left_out_by_name(capsys):
    def missing():
        raise ImportError("No module named 'pgx'")

    contest = envs.Contest("a game", {"nlrl": lambda: envs_players.ours("tictactoe"), "pgx": missing}, {"pgx": 1.0})
    figures = list(envs.hold("batched", [contest], envs.Options(2, 0.001, 8, False)))
    assert [figure.name for figure in figures] == ["nlrl"]
    assert "pgx is left out: No module named 'pgx'" in capsys.readouterr().out


def test_ratios_are_ours_over_theirs_and_targets_are_judged_by_them(monkeypatch, capsys):
    def rates(plays, rounds, seconds):
        assert list(plays) == ["nlrl", "fast", "slow"]
        return {"nlrl": [9.0, 20.0, 40.0], "fast": [10.0, 10.0, 10.0], "slow": [4.0, 5.0, 10.0]}

    monkeypatch.setattr(envs, "interleaved", rates)
    makers = dict.fromkeys(["nlrl", "fast", "slow"], lambda: lambda n: n)
    contest = envs.Contest("a game", makers, {"nlrl": 30.0, "fast": 2.0, "slow": 4.5})
    ours, fast, slow = envs.hold("text", [contest], envs.Options(3, 1.0, 8, False))
    assert (ours.value, ours.ratio, ours.met) == (20.0, None, False)
    assert (fast.value, fast.ratio, fast.met) == (10.0, 2.0, True)
    assert (slow.value, slow.ratio, slow.met) == (5.0, 4.0, False)
    for figure in (ours, fast, slow):
        show(figure, None)
    lines = [line for line in capsys.readouterr().out.splitlines() if "steps/s" in line]
    assert ["MISSED" in line for line in lines] == [True, False, True]
    assert "nlrl is 2.00x" in lines[1]


def test_check_fails_when_a_target_is_missed(monkeypatch):
    figures = [Figure("exact", "a game", "a table", 1.0, "ms", target="at most 2", met=True)]
    monkeypatch.setitem(envs.SECTIONS, "exact", ("exact values", lambda options: iter(figures)))
    assert envs.main(["--sections", "exact", "--check"]) == 0
    figures.append(Figure("exact", "a game", "another", 3.0, "ms", target="at most 2", met=False))
    assert envs.main(["--sections", "exact", "--check"]) == 1
    assert envs.main(["--sections", "exact"]) == 0


def test_an_unknown_section_is_refused():
    with pytest.raises(SystemExit):
        envs.main(["--sections", "everything"])


def test_rounds_are_taken_in_turns():
    order = []

    def play(name):
        def work(n):
            order.append(name)
            return n

        return work

    rates = timing.interleaved({"a": play("a"), "b": play("b")}, rounds=3, seconds=0.0)
    assert order[-6:] == ["a", "b"] * 3
    assert [len(values) for values in rates.values()] == [3, 3]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not pin processes")
def test_cores_are_given_back():
    before = os.sched_getaffinity(0)
    with timing.one_core():
        assert len(os.sched_getaffinity(0)) == 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("make", [envs_players.ours, envs_players.ours_with_text])
def test_players_count_moves(make):
    assert 5 * 100 <= make("tictactoe")(100) <= 9 * 100


def test_players_of_a_batch_count_moves_of_all_games():
    assert envs_players.ours_batched("tictactoe", size=8)(10) == 80


def test_the_solver_is_timed_on_a_cold_start_and_later_positions():
    pytest.importorskip("nlrl.envs.breakthrough.oracle")
    start, later = envs_exact.solver(rows=3, columns=3, positions=5)
    assert (start.unit, later.unit) == ("s", "ms")
    assert start.value > 0 < later.value
    assert start.target == "at most 15"
