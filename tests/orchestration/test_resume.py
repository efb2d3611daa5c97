"""kill -9 at any moment, the same command again: the same bytes, no game lost, none played twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nlrl.envs import make_from_spec
from nlrl.orchestration.config import load_config, to_toml
from nlrl.orchestration.records import read_many, record_files
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages.rollout import visits
from nlrl.orchestration.tracking import read_metrics
from nlrl.orchestration.worker import game_tasks

NLRL = str(Path(sys.executable).with_name("nlrl"))
STAGES = [
    (0, "evaluation"),
    *(
        (i, name)
        for i in (1, 2)
        for name in ("rollout", "targets", "policy", "critic", "improvement", "actor", "evaluation")
    ),
]


@pytest.fixture
def command(small_config, tmp_path):
    """The command of a small run in `tmp_path / "run"`; its options may be those of another machine."""

    def make(**changes):
        path = tmp_path / "config.toml"
        path.write_text(to_toml(small_config(tmp_path / "run", **changes)))
        return [NLRL, "run", str(path)]

    return make


def start(command):
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def kill_in(command, folder, iteration, name, delay):
    """Starts the run and kills it `delay` seconds after a stage has left its first trace on disk.

    Returns whether it was in time: the run had not ended. (The stage may have.)
    """
    stage = folder / "iterations" / f"{iteration:03d}" / name
    process = start(command)
    try:
        deadline = time.monotonic() + 100
        while process.poll() is None and not stage.exists():
            assert time.monotonic() < deadline, "the stage never began"
            time.sleep(0.001)
        time.sleep(delay)
    finally:
        process.kill()
        errors = process.communicate()[1]
    assert process.returncode in (-signal.SIGKILL, 0), errors
    return process.returncode == -signal.SIGKILL


def assert_nothing_is_lost_or_doubled(folder):
    """Every task of every stage has exactly one record; nothing else has any."""
    config, run = load_config(folder / "config.toml"), RunFolder(folder)
    for iteration in range(1, config.iterations + 1):
        lines = (folder / f"iterations/{iteration:03d}/rollout/records.jsonl").read_text().splitlines()
        keys = Counter(json.loads(line)["key"] for line in lines)
        rollout = (config.name, config.seed, iteration, "rollout", config.rollout.games, config.rollout.opponents)
        assert keys == {task.key: 1 for task in game_tasks(*rollout)}
        for name in ("targets", "improvement", "policy", "evaluation"):
            records = run.stage(iteration, name).dir / "records.jsonl"
            assert max(Counter(json.loads(line)["key"] for line in records.read_text().splitlines()).values()) == 1
        from nlrl.envs import make

        seen = visits(make("tictactoe"), run.stage(iteration, "rollout").records())
        assert len(list(run.stage(iteration, "improvement").records())) == len(seen)


def moments(seed, count):
    """Stages in the order of a run, each with a delay of up to 80 ms after its beginning."""
    rng = random.Random(seed)
    return [(*STAGES[index], rng.random() * 0.08) for index in sorted(rng.sample(range(len(STAGES)), count))]


def killed_run(command, folder, plan):
    kills = [kill_in(command, folder, *moment) for moment in plan]
    assert sum(kills) >= len(plan) - 1  # the last may come too late
    finish(command)


def test_a_run_killed_in_six_stages_ends_with_the_bytes_of_an_uninterrupted_one(
    command, tmp_path, finished, committed_files
):
    folder = tmp_path / "run"
    killed_run(command(), folder, moments(seed=1, count=6))
    assert committed_files(folder) == committed_files(finished)
    assert verify(folder) == []
    assert_nothing_is_lost_or_doubled(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_a_run_killed_in_nearly_every_stage_ends_with_the_same_bytes(
    command, tmp_path, finished, committed_files, seed
):
    folder = tmp_path / "run"
    killed_run(command(), folder, moments(seed, count=13))
    assert committed_files(folder) == committed_files(finished)
    assert_nothing_is_lost_or_doubled(folder)


def test_a_run_killed_under_ray_goes_on_under_ray_to_the_bytes_of_an_inline_one(
    command, tmp_path, finished, committed_files
):
    folder = tmp_path / "run"
    ray = command(cluster={"kind": "ray", "servers": 2}, rollout={"workers": 2})
    assert kill_in(ray, folder, 1, "targets", 0.05)
    assert not (folder / "iterations/002").exists()
    finish(ray)
    assert committed_files(folder) == committed_files(finished)
    assert_nothing_is_lost_or_doubled(folder)


NATIVE = {
    "iterations": 1,
    "model": {"kind": "native", "name": "transformer-base", "device": "cpu"},
    "rollout": {"games": 8, "samples_per_state": 1, "samples_at_start": 2},
    "targets": {"texts_max": 1, "continuations": 2, "actions": "visited"},
    "critic": {"first_epochs": 1},
    "actor": {"first_epochs": 1},
    "evaluation": {"games": 0, "opponents": ["random"], "value_states": 2},
    "cluster": {"threads": 2},
}


@pytest.mark.slow
def test_a_killed_run_of_a_network_ends_with_the_same_weights(command, small_config, tmp_path, committed_files):
    whole = small_config(tmp_path / "whole", **NATIVE)
    (tmp_path / "whole.toml").write_text(to_toml(whole))
    finish([NLRL, "run", str(tmp_path / "whole.toml")])
    plan = [(1, "targets", 0.3), (1, "policy", 0.2), (1, "improvement", 0.05), (1, "evaluation", 0.1)]
    killed_run(command(**NATIVE), tmp_path / "run", plan)
    assert committed_files(tmp_path / "run") == committed_files(tmp_path / "whole")
    assert_nothing_is_lost_or_doubled(tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_while_it_trains_goes_on_with_optimizer_and_round(
    command, small_config, tmp_path, committed_files
):
    """Of the second iteration the optimizer is that of the first; rounds are saved after every step."""
    saving = {"keep_optimizer": True, "save_every": 1, "batch_size": 8, "first_epochs": 2}
    changes = NATIVE | {"iterations": 2, "critic": saving, "actor": saving}
    (tmp_path / "whole.toml").write_text(to_toml(small_config(tmp_path / "whole", **changes)))
    finish([NLRL, "run", str(tmp_path / "whole.toml")])
    plan = [(1, "critic", 1.0), (1, "actor", 0.6), (2, "critic", 0.8), (2, "actor", 0.4)]
    killed_run(command(**changes), tmp_path / "run", plan)
    assert committed_files(tmp_path / "run") == committed_files(tmp_path / "whole")
    assert_nothing_is_lost_or_doubled(tmp_path / "run")


# -- other games, other methods ----------------------------------------------------------------------------------------
def on(spec, **changes):
    """A small run on another game, with the model that follows its rules."""
    game = make_from_spec(spec)
    alone = game.num_players == 1
    return {
        "game": {"name": game.name, "params": game.params},
        "model": {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": spec}},
        "evaluation": {"opponents": ["none" if alone else "random"], "probes": []},
    } | changes


OTHERS = {
    "actor_critic": on(
        "frozen_lake(layout=random,maps=3,slippery=True)",
        rollout={"games": 24},
        targets={"kind": "lambda", "value": "both"},
    ),
    "gpi": on("maze(layout=umaze,observed=full)", method="gpi", gpi={"variations": 3, "repeats": 2}),
    "value_td": on(
        "breakthrough(columns=3,rows=3)",
        method="value_td",
        value_td={"policy": "random", "states": {"players": ["random"], "games_per_pair": 40, "held_out": 20}},
    ),
}
KILLS = {
    "actor_critic": [(1, "rollout"), (1, "targets"), (1, "policy"), (2, "targets"), (2, "improvement")],
    "gpi": [(1, "improvement"), (1, "evaluation"), (2, "improvement")],
    "value_td": [(0, "lookaheads"), (1, "targets"), (2, "targets")],
}


@pytest.mark.parametrize(
    "method",
    [pytest.param("actor_critic", marks=pytest.mark.slow), pytest.param("gpi", marks=pytest.mark.slow), "value_td"],
)
def test_a_killed_run_of_another_method_ends_with_the_bytes_of_an_uninterrupted_one(
    command, small_config, tmp_path, committed_files, method
):
    whole = tmp_path / "whole" / "run"
    (tmp_path / "whole.toml").write_text(to_toml(small_config(whole, **OTHERS[method])))
    finish([NLRL, "run", str(tmp_path / "whole.toml")])
    rng = random.Random(method)
    plan = [(iteration, name, rng.random() * 0.05) for iteration, name in KILLS[method]]
    killed_run(command(**OTHERS[method]), tmp_path / "run", plan)
    assert committed_files(tmp_path / "run") == committed_files(whole)
    assert verify(tmp_path / "run") == []


# -- an engine dies, the run goes on -----------------------------------------------------------------------------------
def descendants(pid):
    """Processes below one, with the names they go by."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            found[int(path.name)] = parent, (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue  # it has just ended
    below, size = {pid}, 0
    while size < len(below):
        size = len(below)
        below |= {child for child, (parent, _) in found.items() if parent in below}
    return {child: found[child][1] for child in below - {pid}}


def engines(run):
    """Processes of the run's model servers: workers that Ray makes anew."""
    return sorted(pid for pid, name in descendants(run.pid).items() if name.startswith("ray::MortalHost"))


def kill_an_engine_in(run, folder, iteration, name):
    """Waits until a stage has left its first trace on disk and kills an engine before the stage has ended."""
    stage = folder / "iterations" / f"{iteration:03d}" / name
    deadline = time.monotonic() + 100
    while not stage.exists():
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline, "the stage never began"
        time.sleep(0.001)
    os.kill(engines(run)[0], signal.SIGKILL)  # the oldest, so that it is another one each time
    assert not (stage / "manifest.json").exists(), "the stage was over before"


def run_whose_engines_die(command, folder, stages):
    run = start(command)
    try:
        for iteration, name in stages:
            kill_an_engine_in(run, folder, iteration, name)
        errors = run.communicate(timeout=240)[1]
    finally:
        run.kill()
        run.communicate()
    assert run.returncode == 0, errors
    return sum(entry["metrics"]["model/restarts"] for entry in read_metrics(folder / "metrics.jsonl"))


@pytest.mark.timeout(120)
def test_a_run_whose_engines_are_killed_ends_with_the_bytes_of_an_undisturbed_one(
    command, tmp_path, finished, committed_files
):
    folder = tmp_path / "run"
    ray = command(cluster={"kind": "ray", "servers": 2}, rollout={"workers": 2})
    assert run_whose_engines_die(ray, folder, [(1, "targets"), (2, "rollout"), (2, "improvement")]) == 3
    assert committed_files(folder) == committed_files(finished)
    assert_nothing_is_lost_or_doubled(folder)


@pytest.mark.slow
def test_a_run_of_a_network_whose_engines_are_killed_ends_with_the_same_weights(
    command, small_config, tmp_path, committed_files
):
    whole = small_config(tmp_path / "whole", **NATIVE)
    (tmp_path / "whole.toml").write_text(to_toml(whole))
    finish([NLRL, "run", str(tmp_path / "whole.toml")])
    ray = command(**NATIVE | {"cluster": {"kind": "ray", "servers": 2, "threads": 2}})
    assert run_whose_engines_die(ray, tmp_path / "run", [(1, "targets"), (1, "improvement")]) == 2
    assert committed_files(tmp_path / "run") == committed_files(tmp_path / "whole")
    assert_nothing_is_lost_or_doubled(tmp_path / "run")


def test_two_drivers_of_one_run_are_kept_apart(command, tmp_path):
    first = start(command(iterations=20))
    try:
        while first.poll() is None and not (tmp_path / "run/iterations").exists():
            time.sleep(0.002)
        second = subprocess.run(command(iterations=20), capture_output=True, text=True, timeout=60)
        assert first.poll() is None
        assert second.returncode == 2
        assert f"is being written by process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.communicate()


@pytest.mark.parametrize(
    ("stage", "shard", "torn"),
    [
        ("rollout", "games", b'{"schema":1,"kind":"game","key":"abc","act'),
        ("targets", "targets", b'{"schema":1,"kind":"target"}\n'),
        ("improvement", "choices", b"\x00\x00\x00"),
    ],
)
def test_a_torn_last_line_is_a_record_that_is_owed_again(
    finished, small_config, tmp_path, committed_files, stage, shard, torn
):
    """The state after a power cut: half of a stage's records in a shard, the last line torn."""
    from nlrl.orchestration.loop import run

    folder = half_done(finished, tmp_path, stage, shard, torn)
    run(small_config(folder))
    assert committed_files(folder) == committed_files(finished)


def half_done(finished, tmp_path, stage, shard, tail):
    """A copy of a run that was cut off in the middle of a stage of its second iteration."""
    import shutil

    folder = shutil.copytree(finished, tmp_path / "cut")
    names = [name for _, name in STAGES[8:]]
    for later in names[names.index(stage) + 1 :]:
        shutil.rmtree(folder / "iterations/002" / later, ignore_errors=True)
    place = folder / "iterations/002" / stage
    lines = (place / "records.jsonl").read_bytes().splitlines(keepends=True)
    (place / "shards").mkdir()
    (place / "shards" / f"{shard}.jsonl").write_bytes(b"".join(lines[::2]) + tail)
    shutil.copy(finished.parent / "ledgers/iterations/002" / stage / "spent.ledger", place / "shards")
    (place / "records.jsonl").unlink()
    (place / "manifest.json").unlink()
    return folder


def test_only_what_is_owed_is_made(finished, small_config, tmp_path, watched):
    folder = half_done(finished, tmp_path, "rollout", "games", b"")
    before = {record["key"] for record in read_many(record_files(folder / "iterations/002/rollout"))}
    assert len(before) == 8
    watched_config = small_config(folder, model=watched.config)
    text = (folder / "config.toml").read_text().replace("nlrl.testing.by_rules", "watched_model")
    (folder / "config.toml").write_text(text)
    from nlrl.orchestration.loop import run

    run(watched_config)
    asked = [(version, request) for version, requests in watched.calls for request in requests]
    assert max(Counter(asked).values()) == 1
    tasks = {(version, request.messages[-1].content.split("\n", 1)[0]) for version, request in asked}
    assert tasks == {  # iterations 0 and 1 cost nothing
        ("actor@1", "Choose a move."),
        ("by-rules@0", "Judge the move from these games."),
        ("critic@2", "Value the move."),
        ("by-rules@0", "Compare the moves."),
        ("actor@2", "Choose a move."),
    }
    assert [fit.network for fit in watched.fits] == ["critic", "actor"]


@pytest.mark.parametrize("stage", ["rollout", "targets"])
def test_games_that_are_on_disk_are_not_played_again(finished, small_config, tmp_path, monkeypatch, stage):
    from nlrl.orchestration.loop import run
    from nlrl.orchestration.worker import RolloutWorker

    method, shard = {"rollout": ("play", "games"), "targets": ("continue_games", "targets")}[stage]
    original, played = getattr(RolloutWorker, method), []

    def watched(self, job):
        played.append(job)
        return original(self, job)

    monkeypatch.setattr(RolloutWorker, method, watched)
    folder = half_done(finished, tmp_path, stage, shard, b"")
    there = list(read_many(record_files(folder / "iterations/002" / stage)))
    run(small_config(folder))
    if stage == "rollout":
        keys = {task.key for job in played for task in job.tasks if job.temperature == 1 and job.version == "actor@1"}
        assert len(keys) == 8
        assert not keys & {record["key"] for record in there}
    else:
        every = {(r["state"], r["action"]) for r in RunFolder(finished).stage(2, "targets").records()}
        pairs = [(task.state, task.action) for job in played for task in job.tasks]
        assert 0.3 * len(every) < len(pairs) == len(set(pairs)) < 0.8 * len(every)


def test_damage_before_the_last_line_is_refused_by_file_and_line_and_nothing_is_lost(
    finished, small_config, tmp_path, committed_files
):
    from nlrl.errors import NLRLError
    from nlrl.orchestration.loop import run

    folder = half_done(finished, tmp_path, "targets", "targets", b"")
    shard = folder / "iterations/002/targets/shards/targets.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[:3], lines[3][:50] + b"\n", *lines[4:]]))
    before = committed_files(folder)
    with pytest.raises(NLRLError, match=rf"{shard}, line 4: not a whole record.*delete that line"):
        run(small_config(folder))
    assert committed_files(folder) == before
    shard.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    run(small_config(folder))
    assert committed_files(folder) == committed_files(finished)
