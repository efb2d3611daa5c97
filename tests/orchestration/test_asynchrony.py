"""Asynchronous iteration: the halves overlap, the weights are those that the staleness says, and everything else is as
in lock-step: bytes, kills, budgets, checkpoints."""

from __future__ import annotations

import io
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import to_toml
from nlrl.orchestration.loop import run
from nlrl.orchestration.methods import method_of
from nlrl.orchestration.report import report
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.session import Session
from nlrl.orchestration.worker import RolloutWorker
from nlrl.testing.by_rules import LookupTrainer, RuleModel

NLRL = str(Path(sys.executable).with_name("nlrl"))
FEW = {"games": 8, "samples_per_state": 1, "samples_at_start": 2}
AHEAD: dict[str, Any] = {
    "staleness": 1,
    "iterations": 3,
    "rollout": FEW,
    "targets": {"states": 4, "continuations": 2},
    "improvement": {"states": 4},
    "evaluation": {"games": 2, "opponents": ["random"], "value_states": 2, "exact_states": 0},
}
VALUE_TD: dict[str, Any] = {
    "game": {"name": "breakthrough", "params": {"rows": 3, "columns": 3}},
    "model": {
        "kind": "scripted",
        "name": "nlrl.testing.by_game_rules",
        "options": {"game": "breakthrough(columns=3,rows=3)"},
    },
    "value_td": {
        "policy": "random",
        "variations": 2,
        "collected": 2,
        "states": {"players": ["random", "first-move"], "games_per_pair": 4, "held_out": 6},
    },
    "evaluation": {"opponents": ["random"], "probes": []},
}
PATIENCE = 100


class SigningModel(RuleModel):
    """Signs its moves with its weights."""

    def generate(self, requests):
        answers = super().generate(requests)
        return [replace(a, text=a.text.replace("\nbest_move", f" {self._version}\nbest_move")) for a in answers]


@pytest.fixture
def scripted(monkeypatch):
    """`scripted(name, make_model, make_trainer)` is the model section of a config."""

    def make(name: str, model: Any = RuleModel, trainer: Any = LookupTrainer) -> dict[str, str]:
        module: Any = ModuleType(name)
        module.make_model, module.make_trainer = model, trainer
        monkeypatch.setitem(sys.modules, name, module)
        return {"kind": "scripted", "name": name}

    return make


@pytest.fixture(scope="module")
def ahead(small_config, tmp_path_factory):
    """An uninterrupted run of staleness 1. Read only."""
    return run(small_config(tmp_path_factory.mktemp("ahead") / "run", **AHEAD)).path


@pytest.fixture
def events(monkeypatch):
    """("begin" or "end", iteration, stage) of every stage that runs, in order."""
    log, spending = [], Session.spending

    @contextmanager
    def watched(session, iteration, name):
        log.append(("begin", iteration, name))
        with spending(session, iteration, name):
            yield
        log.append(("end", iteration, name))

    monkeypatch.setattr(Session, "spending", watched)
    return log


def metrics(folder, iteration, name):
    return RunFolder(folder).stage(iteration, name).load()["metrics"]


# -- which weights -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("staleness", [pytest.param(0, marks=pytest.mark.slow), 1, 2])
def test_games_and_targets_are_made_by_the_weights_of_exactly_so_many_iterations_before(
    small_config, tmp_path, scripted, staleness
):
    model = scripted("signing_model", SigningModel)
    changes = {"staleness": staleness, "iterations": 4, "model": model, "targets": AHEAD["targets"] | {"kind": "td"}}
    folder = run(small_config(tmp_path / "run", **(AHEAD | changes)))
    for iteration in range(1, 5):
        made_by = max(0, iteration - 1 - staleness)
        actor = f"actor@{made_by}" if made_by else "by-rules@0"
        games = list(folder.stage(iteration, "rollout").records())
        assert {turn["reply"].split()[-3] for game in games for turn in game["turns"]} == {actor}
        targets = list(folder.stage(iteration, "targets").records())
        assert {record["policy"] for record in targets} == {f"actor@{made_by}" if made_by else "base"}
        choices = list(folder.stage(iteration, "improvement").records())
        assert {record["critic"] for record in choices} == {f"critic@{iteration}"}
        for name in ("rollout", "targets", "policy"):
            told = folder.stage(iteration, name).load()["metrics"].get("staleness")
            assert told == (iteration - 1 - made_by if staleness else None)


def test_newer_weights_that_are_there_already_are_not_used(small_config, tmp_path, monkeypatch, events):
    """Targets of iteration 3 wait until iteration 2 is learned: then there are its weights, and those of iteration 1,
    which iteration 4 has to take."""
    original = RolloutWorker.continue_games

    def waiting(self, job):
        deadline = time.monotonic() + PATIENCE
        while ("begin", 3, "targets") in events and ("end", 2, "evaluation") not in events:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return original(self, job)

    monkeypatch.setattr(RolloutWorker, "continue_games", waiting)
    folder = run(small_config(tmp_path / "run", **(AHEAD | {"staleness": 2, "iterations": 4})))
    assert events.index(("end", 2, "evaluation")) < events.index(("begin", 4, "rollout"))
    assert {record["policy"] for record in folder.stage(4, "targets").records()} == {"actor@1"}


def test_look_aheads_end_in_texts_of_the_critic_of_that_iteration(small_config, tmp_path, scripted):
    asked = []

    class Watched(RuleModel):
        def generate(self, requests):
            asked.extend((self._version, r.messages[-1].content.split("\n", 1)[0]) for r in requests)
            return super().generate(requests)

    model = scripted("watched_critic", Watched)
    run(
        small_config(
            tmp_path / "run",
            **(AHEAD | {"iterations": 2, "model": model, "targets": AHEAD["targets"] | {"kind": "td"}}),
        )
    )
    joined = [(version, place) for place, (version, what) in enumerate(asked) if what.startswith("Join")]
    valued = {version for version, what in asked if what == "Value the move."}
    assert joined
    assert valued == {"by-rules@0", "critic@1", "critic@2"}


# -- both at once ------------------------------------------------------------------------------------------------------
def test_the_next_games_are_played_while_networks_learn(small_config, tmp_path, scripted, events):
    """Training of iteration 1 ends only once iteration 2 is gathered: in lock-step it never would."""

    class Waiting(LookupTrainer):
        def fit(self, network, examples, settings):
            deadline = time.monotonic() + PATIENCE
            while ("end", 2, "targets") not in events and time.monotonic() < deadline:
                time.sleep(0.002)
            return super().fit(network, examples, settings)

    model = scripted("waiting_trainer", trainer=Waiting)
    run(small_config(tmp_path / "run", **(AHEAD | {"model": model})))
    at = {event: place for place, event in enumerate(events)}
    assert at["begin", 1, "critic"] < at["end", 2, "targets"] < at["end", 1, "critic"]
    assert at["end", 1, "evaluation"] < at["begin", 3, "rollout"]  # its weights are those of iteration 1
    assert at["end", 2, "policy"] < at["begin", 2, "critic"]


def test_gathering_is_never_further_ahead_than_the_staleness(small_config, tmp_path, events):
    run(small_config(tmp_path / "run", **(AHEAD | {"staleness": 2, "iterations": 4})))
    for place, (what, iteration, name) in enumerate(events):
        if (what, name) == ("begin", "rollout") and iteration > 3:
            assert ("end", iteration - 3, "evaluation") in events[:place]
    learned = [event for event in events if event[2] == "evaluation"]
    assert learned == [(what, i, "evaluation") for i in range(5) for what in ("begin", "end")]


# -- the same again ----------------------------------------------------------------------------------------------------
def test_two_runs_are_equal_byte_for_byte_whoever_works_for_them(ahead, small_config, tmp_path, committed_files):
    changes = AHEAD | {"rollout": FEW | {"workers": 3}, "cluster": {"servers": 2}}
    again = run(small_config(tmp_path / "again", **changes)).path
    assert committed_files(again) == committed_files(ahead)
    assert verify(ahead) == []


def test_the_first_iteration_is_that_of_lock_step_but_for_what_its_manifests_tell(ahead, small_config, tmp_path):
    lock_step = run(small_config(tmp_path / "run", **(AHEAD | {"staleness": 0, "iterations": 1})))
    for name in ("rollout", "targets", "policy", "critic", "improvement", "actor", "evaluation"):
        mine, other = RunFolder(ahead).stage(1, name).load(), lock_step.stage(1, name).load()
        assert mine["files"] == other["files"]
        assert mine["metrics"] | {"staleness": 0} == other["metrics"] | {"staleness": 0}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("nlac", {}),
        ("value_td", VALUE_TD),
        *(
            pytest.param(method, changes, marks=pytest.mark.slow)
            for method, changes in [
                ("rejection_sampling", {}),
                ("grpo", {}),
                ("ppo", {}),
                ("dpo", {"targets": {"kind": "lambda"}}),
                ("scalar_q", {}),
            ]
        ),
    ],
)
def test_every_method_that_gathers_tells_the_staleness_and_repeats_itself(
    small_config, tmp_path, committed_files, method, changes
):
    config = AHEAD | {"method": method} | changes
    runs = []
    for workers in (1, 2):
        config |= {"rollout": FEW | {"workers": workers}}
        runs.append(run(small_config(tmp_path / f"runs-{workers}" / "run", **config)).path)
    assert committed_files(runs[0]) == committed_files(runs[1])
    chosen = method_of(small_config(tmp_path / "none", **config))
    for iteration in (1, 2, 3):
        told = [metrics(runs[0], iteration, name)["staleness"] for name, _ in chosen.stages[: chosen.gathers]]
        assert told == [min(1, iteration - 1)] * chosen.gathers
        learns = [metrics(runs[0], iteration, name) for name, _ in chosen.stages[chosen.gathers :]]
        assert not any("staleness" in each for each in learns)


def test_checkpoints_among_the_opponents_are_those_known_when_the_weights_were(small_config, tmp_path, committed_files):
    changes = {
        "iterations": 5,
        "method": "rejection_sampling",
        "rollout": FEW | {"games": 24, "opponents": ["checkpoint(last)", "checkpoint(random)"]},
        "league": {"every": 2, "pairs": 2, "members": ["random", "checkpoint(all)"]},
    }
    runs = []
    for workers in (1, 2):
        config = AHEAD | changes | {"rollout": changes["rollout"] | {"workers": workers}}
        runs.append(run(small_config(tmp_path / str(workers), **config)).path)
    assert committed_files(runs[0]) == committed_files(runs[1])
    for iteration in range(1, 6):
        current = max(0, iteration - 2)
        past = {f"checkpoint({i})" for i in range(current)} or {"checkpoint(0)"}
        met = {record["opponent"] for record in RunFolder(runs[0]).stage(iteration, "rollout").records()}
        assert met <= past
        assert f"checkpoint({max(0, current - 1)})" in met


# -- kills and failures ------------------------------------------------------------------------------------------------
PLACES = [(1, "targets"), (1, "critic"), (2, "rollout"), (1, "evaluation"), (3, "targets"), (2, "actor"), (3, "critic")]


def killed_and_finished(small_config, folder, kills):
    path = folder.parent / "config.toml"
    path.write_text(to_toml(small_config(folder, **AHEAD)))
    for iteration, name, delay in kills:
        process = subprocess.Popen([NLRL, "run", str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 100
        while process.poll() is None and not (folder / f"iterations/{iteration:03d}" / name).exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        errors = process.communicate()[1]
        assert process.returncode in (-signal.SIGKILL, 0), errors
    done = subprocess.run([NLRL, "run", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def kills_of(seed: int, count: int) -> list[tuple[int, str, float]]:
    rng = random.Random(seed)
    return [(*place, rng.random() * 0.06) for place in PLACES[:: max(1, len(PLACES) // count)]]


def test_a_run_killed_while_both_halves_work_ends_with_the_same_bytes(ahead, small_config, tmp_path, committed_files):
    killed_and_finished(small_config, tmp_path / "run", kills_of(0, 3))
    assert committed_files(tmp_path / "run") == committed_files(ahead)
    assert verify(tmp_path / "run") == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_a_run_killed_at_seven_moments_ends_with_the_same_bytes(ahead, small_config, tmp_path, committed_files, seed):
    killed_and_finished(small_config, tmp_path / "run", kills_of(seed, 7))
    assert committed_files(tmp_path / "run") == committed_files(ahead)


@pytest.mark.parametrize("lost", ["001/critic", "002/rollout", "003/improvement"])
def test_a_deleted_stage_is_made_again_with_the_same_bytes(ahead, small_config, tmp_path, committed_files, lost):
    copy = shutil.copytree(ahead, tmp_path / "copy")
    shutil.rmtree(copy / "iterations" / lost)
    run(small_config(copy, **AHEAD))
    assert committed_files(copy) == committed_files(ahead)


def test_more_iterations_go_on_where_the_run_ended(ahead, small_config, tmp_path, committed_files):
    short = run(small_config(tmp_path / "run", **(AHEAD | {"iterations": 1}))).path
    assert committed_files(run(small_config(short, **AHEAD)).path) == committed_files(ahead)


class Failing(LookupTrainer):
    def fit(self, network, examples, settings):
        raise NLRLError("the trainer is broken")


def test_what_fails_in_learning_ends_gathering_too_and_loses_nothing(
    ahead, small_config, tmp_path, scripted, committed_files
):
    folder = tmp_path / "run"
    model = scripted("failing_trainer", trainer=Failing)
    with pytest.raises(NLRLError, match="the trainer is broken"):
        run(small_config(folder, **(AHEAD | {"model": model})))
    assert [thread.name for thread in threading.enumerate() if thread.name == "gathering"] == []
    assert RunFolder(folder).stage(1, "targets").is_committed()
    resumed(folder, "failing_trainer")
    assert committed_files(run(small_config(folder, **AHEAD)).path) == committed_files(ahead)


def test_what_fails_in_gathering_ends_learning_too_and_loses_nothing(
    ahead, small_config, tmp_path, monkeypatch, committed_files, events
):
    folder, original = tmp_path / "run", RolloutWorker.continue_games

    def failing(self, job):
        if ("begin", 2, "targets") in events:
            raise NLRLError("no more games")
        return original(self, job)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutWorker, "continue_games", failing)
        with pytest.raises(NLRLError, match="no more games"):
            run(small_config(folder, **AHEAD))
    assert RunFolder(folder).stage(2, "rollout").is_committed()
    assert not RunFolder(folder).stage(2, "critic").dir.exists()
    assert committed_files(run(small_config(folder, **AHEAD)).path) == committed_files(ahead)


def resumed(folder, module):
    path = folder / "config.toml"
    path.write_text(path.read_text().replace(module, "nlrl.testing.by_rules"))


# -- limits ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_budget_ends_the_run_before_the_same_iteration_every_time(small_config, tmp_path, committed_files, staleness):
    """One game's moves are too many for a second iteration, however far ahead games are played; the agent of a run that
    is over stays what it is."""
    changes = AHEAD | {"staleness": staleness, "iterations": 9, "budget": {"environment_steps": 1}}
    folder = run(small_config(tmp_path / "run", **changes)).path
    before = committed_files(folder)
    assert {stage.iteration for stage in RunFolder(folder).stages()} == {0, 1}
    assert committed_files(run(small_config(folder, **changes)).path) == before


def test_a_run_stops_in_time(small_config, tmp_path):
    folder = run(small_config(tmp_path / "run", **(AHEAD | {"iterations": 50, "max_minutes": 0.001})))
    stages = list(folder.stages())
    assert max(stage.iteration for stage in stages) <= 3  # nothing is known of the pace before the first has ended
    assert all(stage.is_committed() for stage in stages)


@pytest.mark.parametrize("method", ["gpi", "prompted", "tabular", "teacher_only"])
def test_methods_with_nothing_to_gather_refuse_it_by_name(small_config, tmp_path, method):
    game = {"name": "maze", "params": {"layout": "double_t"}} if method == "gpi" else {"name": "tictactoe"}
    opponents = {} if method != "gpi" else {"evaluation": {"opponents": []}, "rollout": {"opponents": []}}
    probes = {"evaluation": {"opponents": [], "probes": [], "games": 0}} if method == "gpi" else {}
    config = small_config(tmp_path / "run", **({"staleness": 1, "method": method, "game": game} | opponents | probes))
    with pytest.raises(NLRLError, match=f"staleness is 1, but method '{method}' has nothing to gather"):
        check(config)


def test_a_staleness_out_of_range_is_refused(small_config, tmp_path):
    with pytest.raises(NLRLError, match=r"staleness.*less than or equal to 2"):
        small_config(tmp_path / "run", staleness=3)


# -- what one sees -----------------------------------------------------------------------------------------------------
def test_the_report_tells_the_staleness_of_every_iteration_where_there_is_any(ahead, finished):
    def shown(folder):
        console = Console(width=200, file=io.StringIO())
        console.print(report(folder))
        return console.file.getvalue()

    assert "gathered each iteration's sets: 1: 0, 2: 1, 3: 1" in shown(ahead)
    assert "taleness" not in shown(finished)
