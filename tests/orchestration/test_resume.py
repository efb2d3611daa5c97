"""kill -9 at any moment, the same command again: the same bytes, no game lost, none played twice."""

from __future__ import annotations

import json
import random
import re
import signal
from collections import Counter

import pytest

from nlrl.benchmarks import kills
from nlrl.envs import make_from_spec
from nlrl.orchestration.config import load_config, to_toml
from nlrl.orchestration.records import read_many, record_files
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages.rollout import visits
from nlrl.orchestration.worker import game_tasks
from nlrl.testing.full_disk import SmallDisk, can_mount
from nlrl.testing.kills import (
    DRIVER,
    GCS,
    MODEL,
    ROLLOUT,
    TRAINER,
    Life,
    Moment,
    differences,
    kill_at,
    nlrl_command,
    whole,
)

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
        return nlrl_command("run", path)

    return make


def finish(command, folder):
    with Life(command, folder) as life:
        ended = life.end()
    assert ended.code == 0, ended.errors


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
    return [Moment(*STAGES[index], rng.random() * 0.08) for index in sorted(rng.sample(range(len(STAGES)), count))]


def killed_run(command, folder, plan):
    hits = [kill_at(moment, command, folder) for moment in plan]
    assert sum(hits) >= len(plan) - 1  # the last may come too late
    finish(command, folder)


def test_a_run_that_dies_in_writes_and_between_them_ends_with_the_bytes_of_an_uninterrupted_one(
    command, tmp_path, finished
):
    folder, plan = tmp_path / "run", command()
    for death in ("os.mkdir:5", "write:40", "os.rename:5", "shutil.rmtree:1", "fsync:9"):
        dying = [plan[0], "-m", "nlrl.testing.dying", death, str(folder), *plan[3:]]
        with Life(dying, folder) as life:
            ended = life.end()
        assert (ended.code, f"dies: {death.partition(':')[0]}" in ended.errors) == (-signal.SIGKILL, True), ended.errors
    killed_run(plan, folder, moments(seed=1, count=2))
    assert differences(folder, finished) == []
    assert_nothing_is_lost_or_doubled(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 10))
def test_a_run_killed_in_nearly_every_stage_ends_with_the_same_bytes(command, tmp_path, finished, seed):
    folder = tmp_path / "run"
    killed_run(command(), folder, moments(seed, count=13))
    assert differences(folder, finished) == []
    assert_nothing_is_lost_or_doubled(folder)


@pytest.mark.timeout(180)
def test_under_ray_workers_and_servers_are_made_anew_and_any_other_death_is_told_and_mended_by_the_same_command(
    command, tmp_path, finished
):
    """The bytes are those of an inline run. Every kill hits a process in the middle of a stage."""
    folder, rng = tmp_path / "run", random.Random(0)
    ray = command(cluster={"kind": "ray", "servers": 2}, rollout={"workers": 2})
    with Life(ray, folder) as life:
        for role, stage in ((ROLLOUT, "rollout"), (MODEL, "targets"), (ROLLOUT, "improvement"), (TRAINER, "actor")):
            assert life.wait(Moment(1, stage)), life.end().errors
            assert life.kill(role, rng), f"no {role} to kill"
        died = life.end()
    assert died.code == 2
    assert re.search(r"a rollout worker died; process \d+ .* took its place", died.errors)
    assert re.search(r"nlrl: worker 'trainer' died .*rerun the same command", died.errors)
    assert not (folder / "iterations/002").exists()
    for role, iteration, stage in ((DRIVER, 1, "evaluation"), (GCS, 2, "targets")):
        with Life(ray, folder) as life:
            assert life.wait(Moment(iteration, stage)), life.end().errors
            assert life.kill(role, rng), f"no {role} to kill"
            ended = life.end(30)
    assert "nlrl: Ray's own process 'gcs_server' died" in ended.errors
    assert ended.code == 2
    finish(ray, folder)
    assert differences(folder, finished) == []
    assert_nothing_is_lost_or_doubled(folder)


@pytest.mark.skipif(not can_mount(), reason="mounts a small disk, for which it must be root")
def test_a_run_whose_disk_is_full_says_so_keeps_what_it_has_and_goes_on_when_there_is_room(command, tmp_path, finished):
    folder = tmp_path / "run"
    with SmallDisk(folder, 24_000) as disk:
        for room in (24_000, 200_000, 600_000):
            disk.resize(room)
            with Life(command(), folder) as life:
                ended = life.end()
            assert ended.code == 2, ended.errors
            assert re.search(r"nlrl: .*No space left on device", ended.errors)
            assert verify(folder) == []
            committed = {name: data for name, data in whole(folder).items() if name.endswith("manifest.json")}
            assert committed.items() <= whole(finished).items()
        disk.resize(8_000_000)
        finish(command(), folder)
        assert differences(folder, finished) == []


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
def test_a_killed_run_of_a_network_ends_with_the_same_weights(command, small_config, tmp_path):
    whole = small_config(tmp_path / "whole", **NATIVE)
    (tmp_path / "whole.toml").write_text(to_toml(whole))
    finish(nlrl_command("run", tmp_path / "whole.toml"), tmp_path / "whole")
    plan = [(1, "targets", 0.3), (1, "policy", 0.2), (1, "improvement", 0.05), (1, "evaluation", 0.1)]
    killed_run(command(**NATIVE), tmp_path / "run", [Moment(*each) for each in plan])
    assert differences(tmp_path / "run", tmp_path / "whole") == []
    assert_nothing_is_lost_or_doubled(tmp_path / "run")


@pytest.mark.slow
def test_a_run_killed_while_it_trains_goes_on_with_optimizer_and_round(
    command, small_config, tmp_path, committed_files
):
    """Of the second iteration the optimizer is that of the first; rounds are saved after every step."""
    saving = {"keep_optimizer": True, "save_every": 1, "batch_size": 8, "first_epochs": 2}
    changes = NATIVE | {"iterations": 2, "critic": saving, "actor": saving}
    (tmp_path / "whole.toml").write_text(to_toml(small_config(tmp_path / "whole", **changes)))
    finish(nlrl_command("run", tmp_path / "whole.toml"), tmp_path / "whole")
    plan = [(1, "critic", 1.0), (1, "actor", 0.6), (2, "critic", 0.8), (2, "actor", 0.4)]
    killed_run(command(**changes), tmp_path / "run", [Moment(*each) for each in plan])
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
    command, small_config, tmp_path, method
):
    whole = tmp_path / "whole" / "run"
    (tmp_path / "whole.toml").write_text(to_toml(small_config(whole, **OTHERS[method])))
    finish(nlrl_command("run", tmp_path / "whole.toml"), whole)
    rng = random.Random(method)
    plan = [Moment(iteration, name, rng.random() * 0.05) for iteration, name in KILLS[method]]
    killed_run(command(**OTHERS[method]), tmp_path / "run", plan)
    assert differences(tmp_path / "run", whole) == []


# -- two drivers, torn files -------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_two_hundred_kills_leave_no_trace(tmp_path):
    assert kills.main(["--kills", "200", "--seed", "1", "--out", str(tmp_path / "kills.json")]) == 0


def test_two_drivers_of_one_run_are_kept_apart(command, tmp_path):
    folder = tmp_path / "run"
    with Life(command(iterations=20), folder) as first:
        assert first.wait(Moment(0, "evaluation"))
        with Life(command(iterations=20), folder) as second:
            ended = second.end(60)
        assert not first.is_over()
        assert ended.code == 2
        assert f"is being written by process {first.pid}" in ended.errors


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
