"""The other games' table, from runs as they lie in a folder."""

import json

import pytest

from nlrl.benchmarks import games


@pytest.fixture
def run(tmp_path):
    def make(seed, returns):
        folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "config.toml").write_text(f'name = "walks"\nseed = {seed}\n[game]\nname = "maze"\n')
        lines = [
            {
                "step": step,
                "metrics": {
                    "evaluation/exact/against/none/return": value,
                    "evaluation/exact/optimum": -6.84,
                    "evaluation/sampled/greedy/none/return/mean": 99.0,
                    "evaluation/texts/leaks": 0.25,
                },
            }
            for step, value in enumerate(returns)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return folder

    return make


def test_seeds_are_averaged_and_those_that_got_less_far_are_counted(run, tmp_path, capsys):
    out = tmp_path / "figures.json"
    games.main(["--collect", str(run(0, [-90.0, -10.0, -7.0])), str(run(1, [-90.0, -12.0])), "--out", str(out)])
    first = capsys.readouterr().out
    assert "| walks | 0 1 | exact return | -6.840 | -90.000 ± 0.000 | -11.000 ± 1.414 | -7.000 (1) |" in first
    games.main(["--read", str(out), "--texts"])
    again = capsys.readouterr().out
    assert again.startswith(first)
    assert "| walks | 1 | 1 |  |  |  |  | 0.2500 |  |" in again


def test_a_run_can_be_given_another_name(run, capsys):
    games.main(["--collect", f"mixed={run(0, [-90.0])}"])
    assert "| mixed | 0 |" in capsys.readouterr().out


def test_a_critic_is_judged_by_the_winners_it_names():
    found = games.figures_of({"evaluation/values/text/side_accuracy": 0.86, "evaluation/exact/against/none/return": 1})
    assert found == {"winner named": 0.86}


def test_players_are_judged_by_their_games():
    numbers = {
        "evaluation/sampled/greedy/random/win/share": 0.9,
        "evaluation/sampled/greedy/mcts(100,1)/win/share": 0.4,
        "evaluation/sampled/greedy/random/win/low": 0.8,
        "evaluation/sampled/sampled/random/win/share": 0.1,
    }
    assert games.figures_of(numbers) == {"won against mcts(100,1)": 0.4, "won against random": 0.9}
