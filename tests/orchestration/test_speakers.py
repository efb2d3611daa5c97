"""Texts are made by workers: the same ones as in the driver, whoever makes which, and paid for once."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nlrl.orchestration.loop import run
from nlrl.orchestration.stages import improvement, targets, value_evaluation, value_targets
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import all_plans, run_targets, target_records

LAMBDA = {"kind": "lambda", "value": "v", "continuations": 2, "states": 20}
TINY = "breakthrough(columns=3,rows=3)"
VALUE_TD = {
    "method": "value_td",
    "iterations": 1,
    "evaluation": {"opponents": ["random"], "probes": []},
    "game": {"name": "breakthrough", "params": {"columns": 3, "rows": 3}},
    "model": {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": TINY}},
    "value_td": {
        "policy": "random", "lookahead": 2, "variations": 2, "collected": 4,
        "states": {"players": ["random", "first-move"], "games_per_pair": 6, "held_out": 12},
    },
}  # fmt: skip


def prompts(watched):
    return [request.messages[-1].content for _, requests in watched.calls for request in requests]


@pytest.mark.parametrize("kind", ["mc", "td", "lambda"])
def test_a_worker_makes_the_records_that_the_driver_would(session, kind):
    one = session(targets={"kind": kind, "continuations": 2, "states": 10})
    run_rollout(one, 1)
    plans = all_plans(one, 1)
    ((_, made),) = one.texts_of(target_records, [plans], 1, plays=True)
    assert made
    assert made == target_records(one, plans, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 1, "targets": LAMBDA, "improvement": {"states": 12}},
        {"iterations": 1, "targets": {"opponent_aware": True, "states": 10}, "improvement": {"candidates": "sampled"}},
        VALUE_TD,
    ],
    ids=["positions", "told the opponent", "value_td"],
)
def test_how_texts_fall_to_workers_leaves_no_trace(small_config, tmp_path, committed_files, monkeypatch, changes):
    """Neither in records nor in manifests, which say what was spent."""
    rollout = {"games": 8, "samples_per_state": 2, "samples_at_start": 4, "opponents": ["random", "first-move"]}
    first = run(small_config(tmp_path / "first", **changes, rollout=rollout)).path
    monkeypatch.setattr(targets, "PAIRS_AT_ONCE", 7)
    monkeypatch.setattr(improvement, "STATES_AT_ONCE", 3)
    monkeypatch.setattr(value_targets, "LABELS_AT_ONCE", 5)
    monkeypatch.setattr(value_evaluation, "POSITIONS_AT_ONCE", 5)
    second = run(small_config(tmp_path / "second", **changes, rollout=rollout | {"workers": 3})).path
    assert committed_files(first) == committed_files(second)


def test_workers_ask_the_teacher_where_there_is_one(session, watched):
    one = session(model=watched.config, teacher={"kind": "scripted", "name": "nlrl.testing.by_rules"}, targets=LAMBDA)
    run_rollout(one, 1)
    run_targets(one, 1)
    run_improvement(one, 1)
    asked = {prompt.split("\n")[0] for prompt in prompts(watched)}
    assert asked == {"Choose a move.", "Value the position."}


def test_every_worker_has_its_share(session, monkeypatch):
    one, busy = session(targets=LAMBDA, rollout={"games": 8, "workers": 3}), []
    for worker in one.workers:

        def call(method, *args, name=worker.name, usual=worker.call):
            busy.append((name, args[0][0] if method == "metered" else method))
            return usual(method, *args)

        monkeypatch.setattr(worker, "call", call)
    run_rollout(one, 1)
    run_targets(one, 1)
    assert {name for name, method in busy if method == "texts"} == {worker.name for worker in one.workers}


def test_workers_do_without_pytorch():
    """It would take each of them a second and hundreds of megabytes."""
    modules = [module.__name__ for module in (targets, improvement, value_targets, value_evaluation)]
    code = f"import sys, nlrl.orchestration.text_worker, {', '.join(modules)}\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
