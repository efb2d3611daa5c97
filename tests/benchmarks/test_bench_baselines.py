"""`nlrl bench baselines` runs methods to one budget, judges them within it, and reads its own files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from nlrl.benchmarks import baselines
from nlrl.benchmarks.baselines import METHODS, best, curve, table, within
from nlrl.orchestration.checks import check
from nlrl.orchestration.cli import run_command
from nlrl.orchestration.config import load_config

ROOT = Path(__file__).parents[2]
TOY = ["--model.kind", "scripted", "--model.name", "nlrl.testing.by_rules", "--cluster.kind", "inline"]
TOY += ["--rollout.games", "32", "--rollout.workers", "1"]


def row(win, steps, tokens=0, **more):
    outcome = {"win": win, "draw": 0.1, "loss": 0.9 - win, "forfeit": 0.0}
    spent = {"environment_steps": steps, "prompt_tokens": tokens, "generated_tokens": 0, "trained_tokens": 0}
    exact = {"random": outcome, "minimax": outcome | {"loss": 0.5}}
    return {"exact": exact, "exploitability": 0.5, "forfeits": 0.0, "spent": spent} | more


def result(method, rows, seed=0, steps=100, tokens=None):
    named = {str(iteration): each for iteration, each in enumerate(rows)}
    return {
        "method": method, "seed": seed, "steps": steps, "tokens": tokens, "seconds": 60.0, "iterations": named
    }  # fmt: skip


def test_a_run_is_judged_by_what_it_had_learned_within_the_budget():
    rows = [row(0.4, 0), row(0.5, 40), row(0.6, 90), row(0.7, 140)]
    assert within(result("grpo", rows)) == (2, True)
    assert within(result("grpo", rows), 0.5) == (1, True)
    assert within(result("grpo", rows, steps=30)) == (1, False)
    tokens = [row(0.4, 0), row(0.5, 10, 500), row(0.6, 20, 1500)]
    assert within(result("grpo", tokens, tokens=1000)) == (1, True)


def test_the_table_has_means_with_intervals_and_marks_what_cost_more():
    results = [result("grpo", [row(0.4, 0), row(win, 90)], seed) for seed, win in enumerate((0.6, 0.7, 0.8))]
    results += [result("actor_critic", [row(0.4, 0), row(0.9, 120)])]
    lines = table(results).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| actor_critic", "| grpo"]
    assert " 0.700 (0.452 to 0.948) " in lines[3]  # t with 2 degrees of freedom: 4.303 * 0.1 / sqrt(3)
    assert " 90 " in lines[3]
    assert " > 120 " in lines[2]
    assert best(results).startswith("Most wins against random: actor_critic 0.900, grpo 0.700")


def test_a_scalar_critics_own_choice_has_a_row():
    argmax = {"against": {"random": row(0.8, 0)["exact"]["random"]}, "exploitability": 0.25}
    found = table([result("scalar_q", [row(0.4, 0), row(0.6, 50, argmax=argmax)])])
    assert "| scalar_q, argmax | " in found
    assert " 0.800 " in found


def test_the_curve_shows_nothing_before_the_first_iteration():
    rows = [row(0.4, 0), row(0.5, 60), row(0.6, 100)]
    assert curve([result("ppo", rows)]).splitlines()[-1] == "| ppo | 0.400 |  |  |  | 0.500 | 0.600 |"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_config_that_can_run(method):
    config = load_config(ROOT / f"configs/baselines/tictactoe_{method}.toml")
    assert config.method == method
    check(config)


def test_methods_run_to_their_budget_and_files_are_read_back(tmp_path, capsys, monkeypatch):
    here = SimpleNamespace(run=lambda command, **_: run_command(command[4:]), DEVNULL=None)
    monkeypatch.setattr(baselines, "subprocess", here)  # starting a process takes longer than the run
    out = tmp_path / "figures.json"
    options = ["--methods", "grpo", "tabular", "--seeds", "0", "1", "--steps", "700", "--out", str(out)]
    options += ["--configs", str(ROOT / "configs/baselines"), "--runs", str(tmp_path / "runs")]
    baselines.main([*options, *TOY])
    printed = capsys.readouterr().out
    printed = printed[printed.index("| method |") :]
    found = json.loads(out.read_text())["results"]
    assert [(result["method"], result["seed"]) for result in found] == [
        ("grpo", 0), ("grpo", 1), ("tabular", 0), ("tabular", 1)
    ]  # fmt: skip
    for result in found:
        spent = [row["spent"]["environment_steps"] for row in result["iterations"].values()]
        assert spent[0] == 0
        assert spent[-2] < 700 <= spent[-1]
    baselines.main(["--read", str(out)])
    assert capsys.readouterr().out == printed
    assert "| grpo | 0 1 |" in printed
