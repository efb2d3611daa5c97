"""The harness that kills runs would notice if something were lost, doubled or changed, and hits whom it aims at."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlrl.orchestration.config import load_config
from nlrl.testing.kills import (
    DRIVER,
    Life,
    Moment,
    all_stages,
    differences,
    kill_at,
    processes_below,
    stages_ahead,
    victims,
)

SLEEPY = "import time, pathlib; pathlib.Path('iterations/001/rollout').mkdir(parents=True); time.sleep(60)"
FAMILY = """
import subprocess, sys
subprocess.Popen(["/ray/raylet", "60"], executable=sys.argv[1])
subprocess.run(["ray::model-1.call", "60"], executable=sys.argv[1])
"""


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def records_of(folder: Path) -> Path:
    return folder / "iterations/001/rollout/records.jsonl"


def test_a_run_equals_itself(copied, finished):
    assert differences(copied, finished) == []


def test_a_lost_record_is_noticed(copied, finished):
    records_of(copied).write_bytes(b"".join(records_of(copied).read_bytes().splitlines(keepends=True)[1:]))
    assert "iterations/001/rollout: other records" in differences(copied, finished, bytes_too=False)


def test_a_doubled_record_is_noticed(copied, finished):
    first = records_of(copied).read_bytes().splitlines(keepends=True)[0]
    records_of(copied).write_bytes(first + records_of(copied).read_bytes())
    assert "is there 2 times" in differences(copied, finished, bytes_too=False)[0]


def test_changed_bytes_are_noticed(copied, finished):
    (copied / "evaluations.md").write_text("another diary")
    assert differences(copied, finished) == ["evaluations.md: other bytes"]
    assert differences(copied, finished, bytes_too=False) == []


def test_the_stages_ahead_are_those_that_are_not_committed(copied):
    config = load_config(copied / "config.toml")
    assert stages_ahead(config, copied) == []
    assert all_stages(config)[:2] == [(0, "evaluation"), (1, "rollout")]
    (copied / "iterations/002/actor/manifest.json").unlink()
    assert stages_ahead(config, copied) == [(2, "actor")]


def test_a_driver_is_killed_at_its_moment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Life([sys.executable, "-c", SLEEPY], tmp_path) as life:
        assert life.wait(Moment(1, "rollout"))
        assert life.kill(DRIVER, random.Random(0)) == life.pid
        assert life.end(10).code == -signal.SIGKILL
    assert not kill_at(Moment(2, "rollout"), [sys.executable, "-c", "pass"], tmp_path)


def test_a_run_whose_moment_never_comes_is_a_fault_of_the_test(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Life([sys.executable, "-c", SLEEPY], tmp_path) as life, pytest.raises(TimeoutError, match="002/rollout"):
        life.wait(Moment(2, "rollout"), patience=0.5)


def test_processes_are_known_by_what_they_are_called():
    """As Ray calls its own, and its workers."""
    parent = subprocess.Popen([sys.executable, "-c", FAMILY, shutil.which("sleep") or "sleep"])
    try:
        deadline = time.monotonic() + 20
        while not ((found := victims(parent.pid))["raylet"] and found["model"]):
            assert time.monotonic() < deadline, processes_below(parent.pid)
            time.sleep(0.01)
        below = processes_below(parent.pid)
        assert found["driver"] == [parent.pid]
        assert [below[pid] for pid in found["raylet"] + found["model"]] == ["/ray/raylet 60 ", "ray::model-1.call 60 "]
        assert found["trainer"] == found["rollout"] == found["gcs"] == []
    finally:
        for pid in (*processes_below(parent.pid), parent.pid):
            os.kill(pid, signal.SIGKILL)
        parent.wait()


@pytest.mark.parametrize("kind", ["write", "os.rename", "fsync"])
def test_a_process_dies_in_the_event_it_was_given(tmp_path, kind):
    """The second: half of the file is there; or all of it, but not by its name or not on the disk."""
    code = (
        "import sys; from nlrl.testing.dying import Countdown, watch;"
        "watch(Countdown(sys.argv[1], 2, sys.argv[2]));"
        "from nlrl.orchestration.atomic import write_atomic;"
        "[write_atomic(sys.argv[2] + '/' + name, b'0123456789') for name in 'abc']"
    )
    done = subprocess.run([sys.executable, "-c", code, kind, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr.startswith(f"dies: {kind} ")
    whole, torn = sorted(path for path in tmp_path.iterdir() if path.name[0] != "."), list(tmp_path.glob(".*"))
    assert [path.name for path in whole] == ["a"]
    assert [path.stat().st_size for path in torn] == {"write": [5], "os.rename": [10], "fsync": [10]}[kind]
