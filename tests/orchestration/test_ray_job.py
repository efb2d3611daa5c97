"""`ray job submit --working-dir . -- nlrl run CONFIG` on a cluster started with `ray start --head`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from nlrl.orchestration.report import evaluations
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.run_status import read_status

RAY = Path(sys.executable).parent / "ray"
CONFIG = """
name = "job"
out = "{out}"
iterations = 1
trackers = []
[model]
kind = "scripted"
name = "nlrl.testing.by_rules"
[rollout]
games = 16
workers = 2
[evaluation]
games = 4
opponents = ["random"]
value_states = 5
"""


def outside(folder):
    """The environment of a user's shell: what this process's own use of Ray has set must not leak into a cluster."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": folder}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def short_folder():
    """Ray keeps its sockets here, whose paths may not be long; and the note on the newest cluster, which other tests
    must not find."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def cluster(short_folder):
    """The address that jobs are submitted to; the cluster dies with the test."""
    port, dashboard = free_port(), free_port()
    command = [RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=4"]
    command += ["--dashboard-host=127.0.0.1", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # the usual one may be another cluster's
    head = subprocess.Popen(
        command, start_new_session=True, env=outside(short_folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f"http://127.0.0.1:{dashboard}"
        wait_for(dashboard)
        yield address
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(head.pid, signal.SIGKILL)


def wait_for(port, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    pytest.fail(f"the cluster's dashboard did not come up on port {port}")


def submitted(command, env, seconds=90):
    """The job once it is over. A dashboard answers before there is anybody to give jobs to: then none was submitted."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240)
        if "No available agent" not in done.stderr or time.monotonic() > deadline:
            return done
        time.sleep(1)


@pytest.mark.timeout(400)
def test_a_submitted_job_runs_on_the_cluster_it_was_submitted_to(cluster, short_folder, tmp_path):
    work = tmp_path / "work"
    work.mkdir()
    out = tmp_path / "run"
    (work / "job.toml").write_text(CONFIG.format(out=out))
    entry = [sys.executable, "-m", "nlrl.orchestration.cli", "run", "job.toml"]
    command = [RAY, "job", "submit", "--address", cluster, "--working-dir", str(work), "--", *entry]
    done = submitted(command, outside(short_folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert sorted(evaluations(RunFolder(out))) == [0, 1], done.stdout + done.stderr
    assert verify(out) == []
    told = read_status(out)
    assert told.state == "finished"
    assert told.dashboard == cluster
    assert f"'{told.job}' succeeded" in done.stdout
    assert {"driver.jsonl", "rollout-0.jsonl", "rollout-1.jsonl"} <= {path.name for path in (out / "logs").iterdir()}
