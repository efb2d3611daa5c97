"""A run in a store: the same bytes as in a folder, whatever dies, and one writer."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration import lease as lease_module
from nlrl.orchestration.budget import Entry, Meter
from nlrl.orchestration.fetching import fetch
from nlrl.orchestration.loop import run as run_config
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.store import Store
from nlrl.orchestration.store_config import StoreConfig
from nlrl.orchestration.verify import verify_run

QUICK = StoreConfig(every_seconds=0.05, lease_seconds=0.6)
RARELY = StoreConfig(every_seconds=600, lease_seconds=600)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("nlrl.orchestration.store.PAUSES", ())


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(lease_module, "_machine", lambda: f"machine {time.monotonic_ns()}")


def open_run(url, settings=RARELY):
    return RunFolder.open(url, {"seed": 1}, "seed = 1\n", store=settings)


def record(key, **fields):
    return {"schema": 1, "kind": "game", "key": key, **fields}


def write(stage, *keys, **fields):
    with stage.writer("games") as writer:
        writer.write_many([record(key, **fields) for key in keys])


def commit(run, iteration=0, name="rollout", keys="abc", **fields):
    stage = run.stage(iteration, name)
    write(stage, *keys, **fields)
    with stage.file("weights.bin") as path:
        path.write_bytes(f"weights {fields}".encode() * 100)
    stage.commit({"games": len(keys)}, files=["weights.bin"])
    return stage


def until(true):
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def silence(run):
    """What `kill -9` leaves of a driver: no farewell, and the operating system drops the lock."""
    mirror, run._mirror = run._mirror, None
    mirror._stopped.set()
    mirror._thread.join()
    mirror._lease._stopped.set()
    mirror._lease._thread.join()
    run.close()
    return mirror


def objects(url):
    return {name: Store(url).read(name) for name in Store(url).sizes() if not name.startswith(".nlrl")}


# -- the same run ------------------------------------------------------------------------------------------------------
def test_a_run_in_a_store_has_the_bytes_of_one_in_a_folder(far_url, cache, small_config, finished, committed_files):
    url = far_url
    folder = run_config(small_config(url)).path
    assert committed_files(folder) == committed_files(finished)
    cache("b")
    copy = fetch(url)
    assert copy != folder
    assert committed_files(copy) == committed_files(finished)
    assert {"metrics.jsonl", "evaluations.md"} <= {path.name for path in copy.iterdir()}
    assert verify_run(url).problems == verify_run(copy).problems == []
    assert not [name for name in objects(url) if "shards" in name]


def test_a_finished_run_is_run_again_on_another_machine_without_any_work(tmp_path, cache, small_config, watched):
    url = f"file://{tmp_path}/run"
    config = small_config(url, model=watched.config, iterations=1)
    run_config(config)
    before = objects(url)
    watched.calls.clear()
    cache("b")
    run_config(config)
    assert watched.calls == []
    after = objects(url)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == set()


# -- kill -9 -----------------------------------------------------------------------------------------------------------
_DRIVER = """
import os, signal, sys
from nlrl.orchestration import store as store_module
from nlrl.orchestration.budget import Entry, Meter
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.store_config import StoreConfig
url, crash_at = sys.argv[1], int(sys.argv[2])

steps = 0
def count():
    global steps
    steps += 1
    if steps == crash_at: os.kill(os.getpid(), signal.SIGKILL)

real = store_module.Store._try
def dying(self, what, act):
    if not what.startswith(("write", "remove")):
        return real(self, what, act)
    count()
    answer = real(self, what, act)
    count()
    return answer
store_module.Store._try = dying
store_module.PAUSES = ()

with RunFolder.open(url, {"seed": 1}, "seed = 1\\n", store=StoreConfig(every_seconds=600, lease_seconds=600)) as run:
    (run.path / "metrics.jsonl").write_bytes(b"{}")
    for iteration in range(2):
        stage = run.stage(iteration, "rollout")
        if stage.is_committed():
            continue
        meter = Meter()
        meter.open(stage.dir / "shards")
        with stage.writer("a") as first, stage.writer("b") as second:
            for n, key in enumerate(stage.owed([f"{(n * 7919) % 40:02d}" for n in range(40)])):
                meter.note([Entry(int(key), 1, 2, 3)])
                (first, second)[n % 2].write({"schema": 1, "kind": "game", "key": key, "text": key * 50})
                if n % 15 == 14:
                    run._mirror._put_new()
        meter.close()
        with stage.file("weights.bin") as weights:
            weights.write_bytes(b"w" * 1000)
        stage.commit({"games": 40}, files=["weights.bin"])
print(steps)
"""


def drive(url, machine, crash_at=0):
    command = [sys.executable, "-c", _DRIVER, url, str(crash_at)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "NLRL_CACHE": str(machine)}
    )


def manifests_and_records(url):
    return {name: data for name, data in objects(url).items() if name.startswith("iterations")}


def crash_everywhere(url, tmp_path, moments):
    """Kills drivers at their given steps, each on a machine of its own that is lost with its disk."""
    for number, moment in enumerate(moments):
        machine = tmp_path / f"lost-{number}"
        done = drive(url, machine, moment)
        assert done.returncode in (-signal.SIGKILL, 0), done.stderr
        shutil.rmtree(machine)
    done = drive(url, tmp_path / "last")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(What an undisturbed driver leaves, the steps it takes)."""
    place = tmp_path_factory.mktemp("whole")
    done = drive(f"file://{place}/run", place / "cache")
    assert done.returncode == 0, done.stderr
    files = manifests_and_records(f"file://{place}/run")
    assert json.loads(files["iterations/001/rollout/manifest.json"])["metrics"]["budget"]["generated_tokens"] == 120
    return files, int(done.stdout)


def test_drivers_killed_with_their_disks_leave_a_run_that_ends_with_the_same_bytes(far_url, tmp_path, whole):
    files, steps = whole
    crash_everywhere(far_url, tmp_path, random.Random(far_url[:2]).sample(range(4, steps), 3))
    assert manifests_and_records(far_url) == files
    assert verify_run(far_url).problems == []


@pytest.mark.slow
def test_a_driver_killed_around_any_request_leaves_a_run_that_ends_with_the_same_bytes(s3, tmp_path, whole):
    files, steps = whole
    for moment in range(1, steps + 1):
        url = f"{s3}/killed-at-{moment}"
        crash_everywhere(url, tmp_path / str(moment), [moment])
        assert manifests_and_records(url) == files, moment
        assert verify_run(url).problems == []


def test_a_driver_killed_on_the_same_disk_goes_on_from_it(tmp_path, whole):
    files, steps = whole
    url, machine = f"file://{tmp_path}/run", tmp_path / "machine"
    for moment in random.Random(1).sample(range(4, steps), 2):
        assert drive(url, machine, moment).returncode in (-signal.SIGKILL, 0)
    assert drive(url, machine).returncode == 0
    assert manifests_and_records(url) == files
    assert not (machine / "runs/file" / str(tmp_path).lstrip("/") / "run/.superseded").exists()


# -- a stage in progress -----------------------------------------------------------------------------------------------
def test_records_of_a_stage_in_progress_outlive_the_machine(url, cache):
    run = open_run(url, QUICK)
    stage, meter = run.stage(0, "rollout"), Meter()
    meter.open(stage.dir / "shards")
    with stage.writer("games") as writer:
        for key in "abcd":
            meter.note([Entry(ord(key), 1, 10, 100)])
            writer.write(record(key))
            until(lambda key=key: any(b'"%s"' % key.encode() in data for data in objects(url).values()))
    silence(run)
    cache("b")
    with open_run(url) as again:
        stage = again.stage(0, "rollout")
        assert stage.owed("abcdef") == ["e", "f"]
        write(stage, *"ef")
        manifest = stage.commit({})
    assert manifest["metrics"]["budget"] == {
        "environment_steps": 4, "prompt_tokens": 40, "generated_tokens": 400, "trained_tokens": 0,
    }  # fmt: skip
    assert [r["key"] for r in stage.records()] == list("abcdef")
    assert not [name for name in objects(url) if "shards" in name]


def test_a_third_machine_takes_up_what_two_others_made(url, cache):
    for machine, key in (("a", "a"), ("b", "b")):
        cache(machine)
        with open_run(url) as run:
            write(run.stage(0, "rollout"), key)
    cache("a")  # which knows its own records and lacks those of b
    with open_run(url) as run:
        assert run.stage(0, "rollout").owed("abc") == ["c"]
    cache("c")
    with open_run(url) as run:
        assert run.stage(0, "rollout").owed("abc") == ["c"]


def test_pieces_are_never_written_twice(url, cache):
    with open_run(url) as run:
        stage = run.stage(0, "rollout")
        write(stage, "a")
        run._mirror._put_new()
        write(stage, "b")
    with open_run(url) as run:
        write(run.stage(0, "rollout"), "c")
    pieces = [data for name, data in objects(url).items() if name.endswith("jsonl")]
    assert [json.loads(piece)["key"] for piece in pieces] == ["a", "b", "c"]


def test_a_shard_that_a_power_cut_made_shorter_is_put_again(url, cache):
    with open_run(url) as run:
        write(run.stage(0, "rollout"), *"abc")
        shard = run.path / "iterations/000/rollout/shards/games.jsonl"
    shard.write_bytes(shard.read_bytes().splitlines(keepends=True)[0])
    with open_run(url) as run:
        write(run.stage(0, "rollout"), *"dddddd", text="longer than what was lost")
    cache("b")
    with open_run(url) as run:
        assert run.stage(0, "rollout").owed("abcd") == []


# -- two drivers -------------------------------------------------------------------------------------------------------
def test_of_two_drivers_one_is_refused_by_the_name_of_the_other(url, cache):
    with open_run(url, QUICK) as run:
        cache("b")
        with pytest.raises(NLRLError, match=rf"{url} is being written by process {os.getpid()} on .*another `out`"):
            open_run(url)
        commit(run)


def test_a_driver_that_slept_too_long_cannot_commit_and_goes_on_from_what_the_other_did(url, cache, elsewhere):
    sleeper = open_run(url, QUICK)
    commit(sleeper, 0)
    stage = sleeper.stage(1, "rollout")
    write(stage, *"xyz", by="sleeper")
    sleeper._mirror._lease._stopped.set()
    cache("b")
    with open_run(url, QUICK) as other:
        commit(other, 1, keys="xyz", by="other")
        with pytest.raises(NLRLError, match=r"taken over by process .*Nothing is lost"):
            stage.commit({})
    sleeper.close()
    cache("a")
    with open_run(url) as again:
        assert {r["by"] for r in again.stage(1, "rollout").records()} == {"other"}
        (aside,) = (again.path / ".superseded").glob("*/iterations/001/rollout/records.jsonl")
        assert b"sleeper" in aside.read_bytes()
    assert verify_run(url).problems == []


def test_of_two_commits_with_other_bytes_one_is_refused_whatever_the_lease_says(url, cache, monkeypatch, elsewhere):
    first = open_run(url, QUICK)
    stage = first.stage(0, "rollout")
    write(stage, "a", by="first")
    silence_only = first._mirror._lease._stopped.set
    silence_only()
    cache("b")
    with open_run(url, QUICK) as second:
        commit(second, by="second")
        before = objects(url)
        monkeypatch.setattr(lease_module.Lease, "check", lambda self: None)
        with pytest.raises(NLRLError, match="another driver has committed this stage with other bytes"):
            stage.commit({})
        monkeypatch.undo()
    assert before["iterations/000/rollout/manifest.json"] == objects(url)["iterations/000/rollout/manifest.json"]
    first._mirror = None
    first.close()


def test_what_was_built_on_a_superseded_stage_is_set_aside_with_it(url, cache):
    with open_run(url) as run:
        commit(run, 0)
        store = Store(url)
        mirror = run._mirror
        run._mirror = None  # from here on the network is down
        commit(run, 1, by="a")
        commit(run, 2, by="a")
        run._mirror = mirror
    cache("b")
    with open_run(url) as run:
        assert not run.stage(1, "rollout").is_committed()
        commit(run, 1, by="b")
    cache("a")
    with open_run(url) as run:
        assert {r["by"] for r in run.stage(1, "rollout").records()} == {"b"}
        assert not run.stage(2, "rollout").is_committed()
        assert len(list((run.path / ".superseded").glob("*/iterations/*/rollout/manifest.json"))) == 2
    assert store.sizes("iterations/002") == {}


# -- trouble -----------------------------------------------------------------------------------------------------------
def failing(monkeypatch, *what):
    """Makes requests fail as a network does; undo with `monkeypatch.undo()`."""
    real = Store._try

    def fail(self, doing, act):
        if doing.startswith(what):
            raise NLRLError(f"{self.url}: could not {doing}: timed out")
        return real(self, doing, act)

    monkeypatch.setattr(Store, "_try", fail)


@pytest.mark.parametrize("what", ["write iterations/001/rollout/weights", "write iterations/001/rollout/man", "list"])
def test_a_network_that_fails_stops_the_run_and_loses_nothing(url, cache, monkeypatch, what):
    run = open_run(url)
    commit(run, 0)
    with monkeypatch.context() as patch:
        failing(patch, what)
        with pytest.raises(NLRLError, match=r"timed out\. Nothing is lost: the stage is complete in .*rerun"):
            commit(run, 1)
        run.close()
    assert "iterations/001/rollout/manifest.json" not in objects(url)
    with open_run(url) as again:
        assert again.stage(1, "rollout").is_committed()
    assert "iterations/001/rollout/manifest.json" in objects(url)
    assert verify_run(url).problems == []


def test_a_network_that_fails_at_the_end_says_so_and_loses_nothing(url, cache, monkeypatch):
    run = open_run(url)
    write(run.stage(0, "rollout"), "a")
    with monkeypatch.context() as patch:
        failing(patch, "write iterations")
        with pytest.raises(NLRLError, match="Nothing is lost"):
            run.close()
    with open_run(url) as again:
        assert again.stage(0, "rollout").owed("ab") == ["b"]


def test_records_wait_for_a_network_that_comes_back(url, cache, monkeypatch, caplog):
    with open_run(url, StoreConfig(every_seconds=0.05, lease_seconds=60)) as run:
        with monkeypatch.context() as patch:
            failing(patch, "write")
            write(run.stage(0, "rollout"), "a")
            until(lambda: "records wait for the store" in caplog.text)
        until(lambda: any(name.endswith("jsonl") for name in objects(url)))


def test_a_torn_upload_is_no_commit_and_is_mended_by_a_rerun(url, cache, monkeypatch):
    run = open_run(url)
    real = Store.put_new

    def torn(self, path, name):
        if name.endswith("weights.bin"):
            self.write(name, path.read_bytes()[:10])
            return True
        return real(self, path, name)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "put_new", torn)
        with pytest.raises(NLRLError, match=r"weights.bin: 10 bytes arrived of \d+"):
            commit(run)
        run.close()
    assert verify_run(url).stages == 0
    with open_run(url):
        pass
    assert (verify_run(url).stages, verify_run(url).problems) == (1, [])


def test_a_file_that_is_not_what_its_manifest_says_is_refused(url, cache):
    with open_run(url) as run:
        stage = commit(run)
        good = (stage.dir / "weights.bin").read_bytes()
    name = "iterations/000/rollout/weights.bin"
    Store(url).write(name, b"W" + good[1:])
    cache("b")
    with pytest.raises(NLRLError, match=rf"{url}/{name}: sha256 is .*the manifest says"):
        fetch(url)
    Store(url).remove([name])
    with pytest.raises(NLRLError, match=rf"{name}: missing"):
        open_run(url)
    Store(url).write(name, good)
    with open_run(url) as run:
        assert (run.path / name).read_bytes() == good


def test_a_local_file_of_the_right_size_and_other_bytes_is_replaced(url, cache):
    with open_run(url) as run:
        good = (commit(run).dir / "weights.bin").read_bytes()
    other = cache("b") / "runs" / url.replace("://", "/").replace("//", "/") / "iterations/000/rollout/weights.bin"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"W" + good[1:])
    assert (fetch(url) / "iterations/000/rollout/weights.bin").read_bytes() == good
    assert other.read_bytes() == good


def test_a_manifest_that_names_files_elsewhere_is_refused(url, cache):
    with open_run(url) as run:
        commit(run)
    name = "iterations/000/rollout/manifest.json"
    manifest = json.loads(Store(url).read(name))
    manifest["files"] = {"../../../../../stolen": {"bytes": 1, "sha256": ""}}
    Store(url).write(name, json.dumps(manifest).encode())
    cache("b")
    with pytest.raises(NLRLError, match="outside of the stage"):
        fetch(url)


# -- copies ------------------------------------------------------------------------------------------------------------
def test_a_run_that_was_deleted_in_the_store_begins_anew_and_its_copy_is_kept_aside(url, cache):
    with open_run(url) as run:
        commit(run)
    Store(url).remove(Store(url).sizes())
    with open_run(url) as run:
        assert not run.stage(0, "rollout").is_committed()
        assert len(list((run.path / ".superseded").glob("*/iterations/000/rollout/manifest.json"))) == 1
    assert not [name for name in objects(url) if "rollout" in name]


def test_a_stage_that_was_deleted_in_the_store_is_made_again(url, cache):
    with open_run(url) as run:
        commit(run, 0)
        commit(run, 1)
    Store(url).remove(Store(url).sizes("iterations/001"))
    with open_run(url) as run:
        assert run.stage(0, "rollout").is_committed()
        assert not run.stage(1, "rollout").is_committed()


def test_another_config_is_refused_before_anything_is_fetched(url, cache):
    with open_run(url) as run:
        commit(run)
    folder = cache("b")
    with pytest.raises(NLRLError, match="seed is 1 there and 2 here"):
        RunFolder.open(url, {"seed": 2}, "seed = 2\n", store=RARELY)
    assert not list(folder.rglob("manifest.json"))
    open_run(url).close()


def test_a_run_that_never_began_may_have_its_config_mended(url, cache):
    run = open_run(url, QUICK)
    time.sleep(0.2)
    (run.path / "config.toml").unlink()  # as `loop.run` does when a model cannot be opened
    run.close()
    RunFolder.open(url, {"seed": 2}, "seed = 2\n", store=RARELY).close()


def test_files_beside_the_stages_follow_and_the_writers_are_not_overwritten(url, cache):
    with open_run(url) as run:
        commit(run)
        (run.path / "metrics.jsonl").write_bytes(b"1")
        (run.path / "agent").mkdir()
        (run.path / "agent/weights").write_bytes(b"w")
        (run.path / ".tmp-secret").write_bytes(b"")
        (run.path / "wandb").mkdir()
        (run.path / "wandb/x").write_bytes(b"")
    assert {name for name in objects(url) if not name.startswith("iter")} == {
        "config.toml", "metrics.jsonl", "agent/weights",
    }  # fmt: skip
    (run.path / "metrics.jsonl").write_bytes(b"1+ written just before a power cut")
    with open_run(url) as run:
        assert (run.path / "metrics.jsonl").read_bytes().startswith(b"1+")
    cache("b")
    with open_run(url) as run:
        assert (run.path / "metrics.jsonl").read_bytes().startswith(b"1+")
        (run.path / "metrics.jsonl").write_bytes(b"2")
    cache("a")
    assert (fetch(url) / "metrics.jsonl").read_bytes() == b"2"


def test_reading_needs_no_lease_and_leaves_a_driver_of_this_machine_alone(url, cache):
    with open_run(url) as run:
        stage = run.stage(0, "rollout")
        write(stage, "a")
        run._mirror._put_new()
        assert fetch(url) == run.path
        mine = cache("b")
        copy = fetch(url, wanted=lambda name: "weights" not in name)
        assert mine in copy.parents
        assert [r["key"] for r in RunFolder(copy).stage(0, "rollout").records()] == ["a"]
        commit(run, keys="b")
        copy = fetch(url, wanted=lambda name: "weights" not in name)
        assert sorted(path.name for path in (copy / "iterations/000/rollout").iterdir()) == [
            "games.parquet", "manifest.json", "records.jsonl",
        ]  # fmt: skip
        fetch(url)
        assert (copy / "iterations/000/rollout/weights.bin").is_file()
    with pytest.raises(NLRLError, match="is not a run's folder"):
        fetch(str(Path(url).name and url) + "-absent")
