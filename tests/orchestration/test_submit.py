"""`nlrl submit`: what is refused before a cluster is asked, and the line that it is equal to."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.job_submission

from nlrl.errors import NLRLError
from nlrl.orchestration import submit as submitting
from nlrl.orchestration.checks import check
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.submit import IN_JOB, Job, submit

ADDRESS = "http://head:8265"


class Cluster:
    """A cluster that has just started: it lists jobs, but takes the first one only when asked again."""

    def __init__(self, address, refusals=("No available agent to submit job, please try again later.",)):
        self.submitted, self.refusals = [], list(refusals)

    def list_jobs(self):
        return [SimpleNamespace(submission_id=name) for name in ("my-run-1", "other-2")]

    def submit_job(self, **given):
        if self.refusals:
            raise RuntimeError(f"Request failed with status code 500: {self.refusals.pop(0)}.")
        self.submitted.append(given)


@pytest.fixture
def cluster(monkeypatch):
    found = Cluster(ADDRESS)
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", lambda address: found)
    monkeypatch.setattr(submitting.time, "sleep", lambda seconds: None)
    return found


@pytest.fixture
def config(config_file, tmp_path):
    return config_file(name="my run")


def test_a_job_is_submitted_once_the_cluster_takes_it_under_the_next_id(cluster, config, tmp_path, capsys):
    assert submit(config, ["--seed", "3"], ADDRESS, working_dir=tmp_path, wait=False) == 0
    (job,) = cluster.submitted
    assert job["submission_id"] == "my-run-2"
    assert job["entrypoint"] == "nlrl run config.toml --seed 3"
    assert job["runtime_env"] == {"working_dir": str(tmp_path)}
    assert job["entrypoint_num_cpus"] is None
    line = shlex.split(capsys.readouterr().out)
    assert line[: line.index("--")] == [
        *("ray", "job", "submit", "--address", ADDRESS),
        *("--working-dir", str(tmp_path), "--submission-id", "my-run-2"),
    ]
    assert line[line.index("--") + 1 :] == job["entrypoint"].split()


def test_cores_for_the_driver_are_in_the_line():
    assert "--entrypoint-num-cpus 0.5 --" in Job(Path("a b.toml"), (), ADDRESS, Path("."), "x", 0.5).line
    assert Job(Path("a b.toml"), (), ADDRESS, Path("."), "x", 0).entrypoint == "nlrl run 'a b.toml'"


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["--out", "runs/a"], "out: 'runs/a' would lie in the job's copy of the working directory"),
        (["--game.name", "chess960"], "game: "),
        (["--seed", "-1"], "seed"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_submitted(cluster, config, tmp_path, overrides, complaint):
    with pytest.raises(NLRLError, match=complaint):
        submit(config, overrides, ADDRESS, working_dir=tmp_path)
    assert not cluster.submitted


def test_a_config_that_would_not_travel_is_refused(cluster, config, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(NLRLError, match="not in the working directory"):
        submit(config, [], ADDRESS, working_dir=tmp_path / "elsewhere")


def test_an_id_that_was_used_is_the_cluster_s_to_refuse(cluster, config, tmp_path):
    cluster.refusals = ["Job with submission_id my-run-1 already exists"]
    with pytest.raises(NLRLError, match=r"does not take the job: .*my-run-1 already exists"):
        submit(config, [], ADDRESS, "my-run-1", tmp_path)


def test_no_cluster_is_an_error_in_one_line(config, tmp_path, capsys):
    nowhere = ["--address", "http://127.0.0.1:1", "--working-dir", str(tmp_path)]
    assert run_cli(["submit", str(config), *nowhere]) == 2
    assert "no Ray cluster takes jobs at http://127.0.0.1:1" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "fine"), [("runs/a", False), ("/shared/a", True), ("s3://bucket/a", True)])
def test_a_job_s_driver_refuses_a_folder_that_ray_would_delete(monkeypatch, small_config, out, fine):
    config = small_config(Path("x")).model_copy(update={"out": out})
    monkeypatch.setenv(IN_JOB, json.dumps({"runtime_env": {"env_vars": {}}}))
    check(config)  # no working directory of its own
    monkeypatch.setenv(IN_JOB, json.dumps({"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}))
    if fine:
        check(config)
    else:
        with pytest.raises(NLRLError, match="the job's copy of its working directory, which Ray deletes"):
            check(config)
