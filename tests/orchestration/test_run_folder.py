"""Runs: kill anything, rerun the same command, get the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration import records, tables
from nlrl.orchestration.records import RecordWriter, query
from nlrl.orchestration.run_folder import RunFolder, verify

CONFIG = {"seed": 1, "out": None, "game": {"name": "tictactoe", "sizes": (3, 3)}}
TEXT = 'seed = 1\n\n[game]\nname = "tictactoe"\nsizes = [3, 3]\n'


def record(key: str, **fields):
    return {"schema": 1, "kind": "game", "key": key, **fields}


def open_run(path, config=CONFIG, text=TEXT, **options):
    return RunFolder.open(path, config, text, **options)


@pytest.fixture
def run(tmp_path):
    with open_run(tmp_path / "run") as run:
        yield run


@pytest.fixture
def committed(run):
    stage = run.stage(3, "rollout")
    with stage.writer("one") as writer:
        writer.write_many([record("c", n=3), record("a", n=1)])
    with stage.writer("two") as writer:
        writer.write_many([record("b", n=2), record("a", n=1)])
    with stage.file("weights.safetensors") as path:
        path.write_bytes(b"weights")
    stage.commit({"win_rate": 0.5}, files=["weights.safetensors"])
    return stage


# -- config and lock ---------------------------------------------------------------------------------------------------
def test_the_same_config_resumes_a_run(tmp_path):
    open_run(tmp_path / "run").close()
    with open_run(tmp_path / "run", {"game": {"sizes": [3, 3], "name": "tictactoe"}, "seed": 1}):
        assert (tmp_path / "run" / "config.toml").read_text() == TEXT


def test_another_config_is_refused_with_both_values_and_a_way_out(tmp_path):
    open_run(tmp_path / "run").close()
    other = {"seed": 2, "game": {"name": "tictactoe", "sizes": (3, 4)}, "extra": True}
    text = 'seed = 2\nextra = true\n[game]\nname = "tictactoe"\nsizes = [3, 4]\n'
    with pytest.raises(NLRLError) as refused:
        open_run(tmp_path / "run", other, text)
    message = str(refused.value)
    assert "seed is 1 there and 2 here" in message
    assert "game.sizes is [3, 3] there and [3, 4] here" in message
    assert "extra is not set there and True here" in message
    assert "another `out`" in message
    assert (tmp_path / "run" / "config.toml").read_text() == TEXT


def test_fields_that_may_differ_are_followed(tmp_path):
    open_run(tmp_path / "run").close()
    config = {"seed": 1, "game": CONFIG["game"], "cluster": {"kind": "ray"}}
    text = TEXT + '[cluster]\nkind = "ray"\n'
    open_run(tmp_path / "run", config, text, ignore=["cluster"]).close()
    assert (tmp_path / "run" / "config.toml").read_text() == text


def test_a_text_that_does_not_say_what_the_config_says_is_a_fault(tmp_path):
    with pytest.raises(ValueError, match="seed"):
        open_run(tmp_path / "run", text=TEXT.replace("1", "2"))


def test_a_folder_with_other_things_in_it_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(NLRLError, match=r"thesis\.tex.*new folder"):
        open_run(tmp_path)


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(NLRLError, match="run"):
        open_run(tmp_path / "run")


def test_two_drivers_cannot_hold_one_run(run):
    with pytest.raises(NLRLError, match=r"being written by process \d+"):
        open_run(run.path)
    run.close()
    open_run(run.path).close()


# -- stages ------------------------------------------------------------------------------------------------------------
def test_a_manifest_names_files_counts_and_hashes(committed):
    manifest = committed.load()
    assert manifest["schema"] == 1
    assert manifest["metrics"] == {"win_rate": 0.5}
    assert manifest["files"]["records.jsonl"]["records"] == 3
    assert manifest["files"]["weights.safetensors"] == {
        "bytes": 7,
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",
    }


def test_committed_records_are_sorted_by_key_and_shards_are_gone(committed):
    assert [found["key"] for found in committed.records()] == ["a", "b", "c"]
    assert sorted(child.name for child in committed.dir.iterdir()) == [
        "games.parquet",
        "manifest.json",
        "records.jsonl",
        "weights.safetensors",
    ]


def test_a_stage_owes_what_no_complete_record_holds(run):
    stage = run.stage(0, "targets")
    assert stage.owed(["a", "b", "a"]) == ["a", "b"]
    with stage.writer("s") as writer:
        writer.write(record("b"))
    with open(stage.dir / "shards" / "s.jsonl", "ab") as torn:
        torn.write(b'{"schema":1,"kind":"game","key":"a"')
    assert run.stage(0, "targets").owed(["a", "b", "c"]) == ["a", "c"]


def test_a_committed_stage_is_read_only(committed):
    for change in (lambda: committed.writer("s"), lambda: committed.commit({}), lambda: committed.file("f")):
        with pytest.raises(NLRLError, match="complete"):
            change()


def test_a_stage_whose_shard_is_still_being_written_is_not_committed(run, monkeypatch):
    monkeypatch.setattr(records, "PATIENCE", 0.0)
    stage = run.stage(0, "rollout")
    with RecordWriter(stage.dir / "shards" / "s.jsonl") as writer:
        writer.write(record("a"))
        with pytest.raises(NLRLError, match="still open"):
            stage.commit({})
    stage.commit({})


def test_a_stage_may_have_no_records_and_folders_of_files(run):
    stage = run.stage(0, "actor")
    (stage.dir / "checkpoint").mkdir(parents=True)
    (stage.dir / "checkpoint" / "model.bin").write_bytes(b"x")
    assert list(stage.commit({}, files=["checkpoint"])["files"]) == ["checkpoint/model.bin"]
    assert list(stage.records()) == []


@pytest.mark.parametrize("name", ["missing.bin", "manifest.json", "shards"])
def test_files_that_cannot_belong_to_a_stage_are_refused(run, name):
    with pytest.raises(NLRLError, match=name):
        run.stage(0, "actor").commit({}, files=[name])


def test_an_unfinished_stage_has_no_manifest(run):
    assert not run.stage(0, "rollout").is_committed()
    with pytest.raises(NLRLError, match="not complete"):
        run.stage(0, "rollout").load()


def test_a_manifest_of_a_later_version_is_refused(committed):
    path = committed.dir / "manifest.json"
    path.write_text(json.dumps(committed.load() | {"schema": 99}))
    with pytest.raises(NLRLError, match="schema 99"):
        committed.load()


def test_stages_are_listed_in_order(run):
    for iteration, name in [(1000, "rollout"), (2, "targets"), (2, "rollout")]:
        run.stage(iteration, name).commit({})
    listed = [(stage.iteration, stage.name) for stage in RunFolder(run.path).stages()]
    assert listed == [(2, "rollout"), (2, "targets"), (1000, "rollout")]


# -- verify ------------------------------------------------------------------------------------------------------------
def test_a_whole_run_has_no_problems(run, committed):
    assert verify(run.path) == []


def test_verify_finds_changed_missing_and_unreadable_files(run, committed):
    records = committed.dir / "records.jsonl"
    whole = records.read_bytes()
    records.write_bytes(whole.replace(b'"n":1', b'"n":7'))
    assert ["sha256" in problem for problem in verify(run.path)] == [True]
    records.write_bytes(whole[: whole.index(b"\n") + 1])
    assert "records is 1, the manifest says 3" in "\n".join(verify(run.path))
    records.unlink()
    assert "records.jsonl: missing" in "\n".join(verify(run.path))
    (committed.dir / "manifest.json").write_bytes(b"{")
    assert "damaged" in "\n".join(verify(run.path))


# -- queries -----------------------------------------------------------------------------------------------------------
def test_sql_sees_compacted_committed_and_growing_stages_alike(run, committed):
    committed.compact()
    second = run.stage(4, "rollout")
    with second.writer("s") as writer:
        writer.write(record("d", n=4, moves=[1], late=1.5))
    second.commit({})
    third = run.stage(5, "rollout")
    with third.writer("s") as writer:
        writer.write(record("e", n=5, late=2))
        found = query("SELECT iteration, key, n, late FROM rollout WHERE n > ? ORDER BY key", run.path, [1])
    assert found.to_pylist() == [
        {"iteration": 3, "key": "b", "n": 2, "late": None},
        {"iteration": 3, "key": "c", "n": 3, "late": None},
        {"iteration": 4, "key": "d", "n": 4, "late": 1.5},
        {"iteration": 5, "key": "e", "n": 5, "late": 2.0},
    ]


def test_a_query_survives_a_commit_that_happens_meanwhile(run, monkeypatch):
    stage = run.stage(0, "rollout")
    with stage.writer("s") as writer:
        writer.write(record("a"))
    stale = tables.record_files(stage.dir)
    stage.commit({})
    answers = [stale]
    real = tables.record_files
    monkeypatch.setattr(tables, "record_files", lambda folder: answers.pop() if answers else real(folder))
    assert query("SELECT key FROM rollout", run.path).to_pylist() == [{"key": "a"}]


def test_a_query_cannot_touch_files(run, committed, tmp_path):
    for sql in (f"COPY (SELECT 1) TO '{tmp_path}/x.csv'", f"SELECT * FROM read_text('{run.path}/config.toml')"):
        with pytest.raises(NLRLError, match="disabled"):
            query(sql, run.path)


# -- kill -9 -----------------------------------------------------------------------------------------------------------
_DRIVER = """
import os, signal, sys, time
from nlrl.orchestration import atomic, run_folder, stage_folder
path, pause, crash_at = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])

steps = 0
def count():
    global steps
    steps += 1
    if steps == crash_at: os.kill(os.getpid(), signal.SIGKILL)

def dying(real):
    def call(*args, **kwargs):
        count()
        answer = real(*args, **kwargs)
        count()
        return answer
    return call
if crash_at:
    os.replace = dying(os.replace)
    stage_folder.shutil.rmtree = dying(stage_folder.shutil.rmtree)

with run_folder.RunFolder.open(path, {"seed": 1}, "seed = 1\\n") as run:
    for iteration in range(2):
        stage = run.stage(iteration, "rollout")
        if stage.is_committed():
            continue
        owed = stage.owed([f"{(n * 7919) % 100:02d}" for n in range(100)])
        with stage.writer("a") as first, stage.writer("b") as second:
            for n, key in enumerate(owed):
                time.sleep(pause)
                print("working", flush=True)
                (first, second)[n % 2].write({"schema": 1, "kind": "game", "key": key, "text": key * 50})
        with stage.file("weights.bin") as weights:
            weights.write_bytes(b"w" * 1000)
        stage.commit({"games": 100}, files=["weights.bin"])
"""


def drive(path, pause=0.0, crash_at=0):
    command = [sys.executable, "-c", _DRIVER, str(path), str(pause), str(crash_at)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(path, **options):
    driver = drive(path, **options)
    _, errors = driver.communicate(timeout=60)
    return driver.returncode, errors.decode()


def files_of(path):
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != ".lock"
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert finish(path) == (0, "")
    files = files_of(path)
    assert [name for name in files if name.endswith("manifest.json")] == [
        "iterations/000/rollout/manifest.json",
        "iterations/001/rollout/manifest.json",
    ]
    return files


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, uninterrupted):
    moments, ends = random.Random(0), []
    for _ in range(4):
        driver = drive(tmp_path / "run", pause=0.002)
        assert driver.stdout is not None
        driver.stdout.readline()  # at work: killing the start-up would test nothing
        time.sleep(moments.uniform(0, 0.15))
        driver.send_signal(signal.SIGKILL)
        driver.communicate(timeout=60)
        ends.append(driver.returncode)
    assert ends.count(-signal.SIGKILL) >= 2
    assert finish(tmp_path / "run")[0] == 0
    assert files_of(tmp_path / "run") == uninterrupted
    assert verify(tmp_path / "run") == []


@pytest.mark.parametrize("moment", range(1, 19))
def test_a_run_killed_around_any_step_of_a_commit_ends_with_the_same_bytes(tmp_path, uninterrupted, moment):
    """The steps, twice for two iterations: rename config, weights, records, manifest; remove shards. Killed before and
    after."""
    assert finish(tmp_path / "run", crash_at=moment)[0] == -signal.SIGKILL
    assert finish(tmp_path / "run") == (0, "")
    assert files_of(tmp_path / "run") == uninterrupted
