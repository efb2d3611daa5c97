"""A run on two nodes, one of which is killed or cut off: an error that says so, and the same command ends it as if
nothing had been."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from nlrl.orchestration.config import to_toml
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import verify
from nlrl.testing.clusters import TwoNodes

NLRL = str(Path(sys.executable).with_name("nlrl"))
SHORT = {"iterations": 1, "rollout": {"workers": 2}, "evaluation": {"value_states": 3, "probes": []}}
LIMIT = 60
"""Seconds from a node's end to the run's, by far."""


@pytest.fixture(
    scope="module", params=["own networks if possible", pytest.param("one network", marks=pytest.mark.slow)]
)
def nodes(request):
    with TwoNodes(separate=False if request.param == "one network" else None) as started:
        yield started


@pytest.fixture(scope="module")
def inline(tmp_path_factory, small_config, committed_files):
    """The bytes of an uninterrupted run in one process."""
    return committed_files(run(small_config(tmp_path_factory.mktemp("inline") / "run", **SHORT)).path)


@pytest.fixture
def command(tmp_path, small_config):
    """The command of the same run on the cluster, in `tmp_path / "run"`."""
    config = small_config(tmp_path / "run", **SHORT, cluster={"kind": "ray"})
    (tmp_path / "config.toml").write_text(to_toml(config))
    return [NLRL, "run", str(tmp_path / "config.toml")]


def started(nodes, command, stage):
    """The run's process, when the stage has left its first trace on disk."""
    process = nodes.popen(command)
    deadline = time.monotonic() + 100
    while not stage.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the stage never began:\n{process.communicate()[0]}")
        time.sleep(0.005)
    return process


def ended(process):
    """What it wrote, once it has ended by itself."""
    try:
        return process.communicate(timeout=LIMIT)[0]
    finally:
        process.kill()


def finish(nodes, command):
    done = nodes.run(command)
    assert done.returncode == 0, done.stdout


def assert_same(folder, inline, committed_files):
    assert committed_files(folder) == inline
    assert verify(folder) == []


_WHERE = """
import ray
from nlrl.orchestration.cluster import Cluster
class Worker:
    def node(self):
        return ray.get_runtime_context().get_node_id()
with Cluster("ray") as cluster:
    workers = [cluster.spawn(Worker, num_cpus=0) for _ in range(4)]
    found = cluster.gather([worker.call("node") for worker in workers])
    here = ray.get_runtime_context().get_node_id()
print(*("here" if node == here else "there" for node in found))
"""


def test_workers_that_reserve_nothing_take_turns_over_the_nodes(nodes):
    assert nodes.run([sys.executable, "-c", _WHERE]).stdout.splitlines()[-1] == "here there here there"


def test_a_killed_node_ends_the_run_with_its_name_and_the_same_command_finishes_it(
    nodes, command, tmp_path, inline, committed_files
):
    process = started(nodes, command, tmp_path / "run/iterations/001/rollout")
    nodes.kill(nodes.worker)
    said = ended(process)
    assert process.returncode == 2, said
    assert f"its node {nodes.worker.ip if nodes.separate else ''}" in said
    assert "is gone" in said
    assert "rerun the same command" in said
    finish(nodes, command)  # on the node that is left
    assert_same(tmp_path / "run", inline, committed_files)


@pytest.mark.slow
def test_a_node_that_is_cut_off_ends_the_run_in_bounded_time(nodes, command, tmp_path, inline, committed_files):
    renewed(nodes)
    process = started(nodes, command, tmp_path / "run/iterations/001/rollout")
    nodes.drop_network(nodes.worker)
    try:
        said = ended(process)
    finally:
        nodes.restore_network(nodes.worker)
    assert process.returncode == 2, said
    assert f"its node {nodes.worker.ip if nodes.separate else ''}" in said
    assert "is gone" in said
    renewed(nodes)
    finish(nodes, command)  # on two nodes
    assert_same(tmp_path / "run", inline, committed_files)


@pytest.mark.slow
def test_a_folder_that_the_other_machine_does_not_see_is_refused_at_once(nodes, command):
    renewed(nodes)
    if not nodes.separate:
        pytest.skip("both nodes have the file system of this machine: no rights to give them one each")
    out = nodes.local / "run"
    done = nodes.run([*command, "--out", str(out)])
    assert done.returncode == 2, done.stdout
    assert "out: the trainer, on another machine" in done.stdout
    assert not (out / "config.toml").exists()


def renewed(nodes):
    """Both nodes alive."""
    nodes.kill(nodes.worker)
    nodes.start(nodes.worker)
