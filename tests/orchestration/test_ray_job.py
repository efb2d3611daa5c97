"""`ray job submit --working-dir . --submission-id S -- nlrl run CONFIG` on a head and a worker node."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

import nlrl
from nlrl.orchestration.config import load_config
from nlrl.orchestration.loop import run
from nlrl.orchestration.overrides import overridden
from nlrl.orchestration.run_folder import verify
from nlrl.testing.clusters import TwoNodes
from nlrl.testing.processes import family

ROOT = Path(nlrl.__file__).parent
CONFIG = "configs/demo.toml"
SMALL = [
    *("--model.kind", "scripted", "--model.name", "nlrl.testing.by_rules"),
    *("--iterations", "1", "--rollout.games", "16", "--rollout.workers", "2", "--cluster.threads", "1"),
    *("--targets.texts-max", "2", "--targets.continuations", "4"),
    *("--evaluation.games", "4", "--evaluation.value-states", "3"),
]
UPLOAD_LIMIT = 500_000
"""Bytes that may travel from the repository's root. Ray would take hundreds of times as much; but packages are kept in
the head's memory and sent to each node."""


@pytest.fixture(scope="module")
def nodes():
    with TwoNodes(jobs=True) as started:
        yield started


@pytest.fixture(scope="module")
def reference(tmp_path_factory, committed_files):
    """The bytes of the same run, inline and never stopped."""
    out = tmp_path_factory.mktemp("reference") / "run"
    config = overridden(load_config(ROOT / CONFIG), [*SMALL, "--out", str(out), "--cluster.kind", "inline"])
    return committed_files(run(config).path)


def at_root(nodes, *command, code=0):
    """What a command says that was given at the repository's root, on the head."""
    done = nodes.run(command, cwd=ROOT)
    assert done.returncode == code, done.stdout
    return done.stdout


def ray_job(nodes, what, *arguments):
    return at_root(nodes, "ray", "job", what, "--address", nodes.dashboard, *arguments)


def ray_job_submit(nodes, *arguments):
    """A dashboard answers before there is anybody to give jobs to: then none was submitted."""
    command = ["ray", "job", "submit", "--address", nodes.dashboard, "--working-dir", ".", *arguments]
    for _ in range(60):
        done = nodes.run(command, cwd=ROOT)
        if "No available agent" not in done.stdout:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout
    return done.stdout


def appears(path, seconds=60):
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return path.exists()


def assert_little_travelled(log):
    size = re.search(r"^(\d+)\s+\.$", log, re.MULTILINE)
    assert size, log
    assert int(size[1]) < UPLOAD_LIMIT
    assert "configs" in log.split()
    assert not {".git", ".venv", "agents", "backbones", "runs", "ui"} & set(log.split())


@pytest.mark.timeout(400)
def test_a_stopped_job_is_finished_by_the_same_command_under_another_id(nodes, tmp_path, reference, committed_files):
    out = tmp_path / "run"
    entry = ["nlrl", "run", CONFIG, "--out", str(out), *SMALL]
    look = f"du -sb . && ls -A && exec {shlex.join(entry)}"  # what has travelled, into the job's log
    ray_job_submit(nodes, "--submission-id", "first", "--no-wait", "--", "sh", "-c", look)
    assert appears(out / "iterations/001/rollout"), ray_job(nodes, "logs", "first")
    ray_job(nodes, "stop", "first")
    assert "'first' was stopped" in ray_job(nodes, "status", "first")
    log = ray_job(nodes, "logs", "first")
    assert "iteration 0:" in log
    assert_little_travelled(log)
    assert committed_files(out) != reference
    said = at_root(nodes, "nlrl", "submit", CONFIG, "--address", nodes.dashboard, "--", *entry[3:])
    assert said.splitlines()[0].startswith(f"ray job submit --address {nodes.dashboard} --working-dir . ")
    assert "SUCCEEDED" in said.splitlines()[-1]
    assert committed_files(out) == reference
    assert verify(out) == []


_WHERE = """
import pathlib, ray, sys
ray.init(logging_level="ERROR")
here = ray.get_runtime_context().get_node_id()
resources = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
pathlib.Path(sys.argv[1]).write_text(" ".join({"head", "worker"} & set(resources)))
"""


@pytest.mark.slow
def test_a_driver_that_reserves_nothing_runs_on_the_head(nodes, tmp_path):
    said = tmp_path / "node"
    entry = ["--", "python", "-c", _WHERE, str(said)]
    ray_job_submit(nodes, *entry)
    assert said.read_text() == "head"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_driver_with_resources_leaves_the_head_and_its_node_may_die(nodes, tmp_path, reference, committed_files):
    out, pid = tmp_path / "run", tmp_path / "pid"
    entry = shlex.join(["nlrl", "run", CONFIG, "--out", str(out), *SMALL])
    driver = ["--", "sh", "-c", f"echo $$ > {pid} && exec {entry}"]
    on_worker = ["--entrypoint-resources", '{"worker": 0.5}', "--entrypoint-num-cpus", "1"]
    ray_job_submit(nodes, *on_worker, "--submission-id", "away", "--no-wait", *driver)
    assert appears(out / "iterations/001/rollout"), ray_job(nodes, "logs", "away")
    assert int(pid.read_text()) in family(nodes.worker.process.pid)
    assert int(pid.read_text()) not in family(nodes.head.process.pid)
    nodes.kill(nodes.worker)
    assert committed_files(out) != reference
    ray_job_submit(nodes, "--entrypoint-num-cpus", "1", *driver)  # the head is what is left
    assert committed_files(out) == reference
    assert verify(out) == []
    nodes.start(nodes.worker)


@pytest.mark.slow
def test_a_job_refuses_a_folder_that_ray_would_delete(nodes):
    done = nodes.run(
        ["ray", "job", "submit", "--address", nodes.dashboard, "--working-dir", ".", "--", "nlrl", "run", CONFIG],
        cwd=ROOT,
    )
    assert done.returncode == 1
    assert "nlrl: out: 'runs/demo' would lie in the job's copy" in done.stdout
