"""deploy/slurm.sh: what Slurm would refuse, and a run of it where `scontrol` and `srun` are stand-ins that know two
nodes of this machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

import nlrl
from nlrl.orchestration.config import ClusterConfig, load_config
from nlrl.orchestration.loop import run
from nlrl.testing.clusters import QUICK_DEATH, outside
from nlrl.testing.network import Cable, inside
from nlrl.testing.processes import family

SCRIPT = Path(nlrl.__file__).parent / "deploy/slurm.sh"
SBATCH_OPTIONS = {
    "account", "array", "begin", "chdir", "comment", "constraint", "cpus-per-gpu", "cpus-per-task", "dependency",
    "error", "exclude", "exclusive", "export", "gpus", "gpus-per-node", "gpus-per-task", "gres", "hint", "input",
    "job-name", "kill-on-invalid-dep", "mail-type", "mail-user", "mem", "mem-per-cpu", "mem-per-gpu", "no-requeue",
    "nodelist", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "overcommit", "oversubscribe", "partition",
    "qos", "requeue", "reservation", "signal", "switches", "time", "time-min", "wait-all-nodes",
}  # fmt: skip
"""Long options of sbatch(1) of Slurm 23 that a job script may hold (not all that there are)."""
SRUN_OPTIONS = {"nodes", "ntasks", "exclude"}
ADDRESSES = "10.214.0.1", "10.214.0.2"

CONFIG = """
name = "small"
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
value_states = 3
"""


def manifests(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("iterations/*/*/manifest.json")}


def test_it_is_a_shell_script():
    subprocess.run(["bash", "-n", SCRIPT], check=True, capture_output=True)


def test_its_options_are_those_of_sbatch_and_come_before_any_command():
    lines = SCRIPT.read_text().splitlines()
    given = [line for line in lines if line.startswith("#SBATCH")]
    names = [re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line) for line in given]
    assert all(names), given
    assert {found[1] for found in names if found} <= SBATCH_OPTIONS
    first_command = next(n for n, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines.index(given[-1]) < first_command  # sbatch reads no further


def test_it_says_how_it_is_called():
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "usage: sbatch deploy/slurm.sh CONFIG" in done.stderr


@pytest.fixture
def allocation(tmp_path):
    """(a command's prefix on the first node, environment) of a two-node job; what it leaves is removed."""
    folder = Path(tempfile.mkdtemp(prefix="sl", dir="/tmp"))
    try:
        cable = Cable(folder.name, ADDRESSES)
    except OSError:
        cable = None  # no rights: both nodes are this machine
    spaces = cable.namespaces if cable else (None, None)
    second = " ".join(inside(spaces[1], []))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_ins = {
        "scontrol": 'test "$1 $2 $3" = "show hostnames node[1-2]" && printf "node1\\nnode2\\n"',
        "hostname": f'test "$1" = --ip-address && echo {ADDRESSES[0] if cable else "127.0.0.1"}',
        # `srun --nodes=1 --ntasks=1 --exclude=node1 COMMAND`: the command on node2, with its own temporary folder
        "srun": 'while [ "${1#--}" != "$1" ]; do echo "$1" >> "$SRUN_LOG"; shift; done; '
        f'RAY_TMPDIR="$RAY_TMPDIR/b" exec {second} "$@"',
    }
    for name, code in stand_ins.items():
        (bin_folder / name).write_text(f"#!/bin/sh\n{code}\n")
        (bin_folder / name).chmod(0o755)
    env = outside(folder) | QUICK_DEATH
    env |= {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "4711", "SLURM_CPUS_ON_NODE": "2"}
    env |= {"PATH": f"{bin_folder}:{env['PATH']}", "SRUN_LOG": str(tmp_path / "srun.log")}
    yield inside(spaces[0], []), env
    if cable:
        cable.close()
    subprocess.run(["rm", "-rf", folder])


@pytest.mark.slow
def test_a_job_of_two_nodes_runs_the_config_and_leaves_nothing_behind(allocation, tmp_path):
    prefix, env = allocation
    config = tmp_path / "config.toml"
    config.write_text(CONFIG)
    command = [*prefix, "bash", str(SCRIPT), str(config), "--out", str(tmp_path / "run")]
    job = subprocess.Popen(
        command, env=env, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = job.communicate(timeout=200)[0]
        assert job.returncode == 0, said
        inline = {"out": tmp_path / "inline", "cluster": ClusterConfig(kind="inline")}
        reference = run(load_config(config).model_copy(update=inline)).path
        assert manifests(tmp_path / "run") == manifests(reference)
        used = {line.removeprefix("--").partition("=")[0] for line in (tmp_path / "srun.log").read_text().split()}
        assert used == SRUN_OPTIONS
        assert said.count("Ray runtime started.") == 2
    finally:
        left = family(job.pid)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert left == [], "Ray outlived the job"
