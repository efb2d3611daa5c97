"""URLs wherever a run's folder may be named: configs, commands, opponents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration import frozen
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.config import RunConfig, load_config, to_toml, validated
from nlrl.orchestration.fetching import but_weights, local_runs
from nlrl.orchestration.overrides import overridden
from nlrl.orchestration.store import Store, cache_folder

NLRL = [sys.executable, "-m", "nlrl.orchestration.cli"]


@pytest.fixture
def stored(finished, tmp_path, monkeypatch):
    """The URL of a folder of runs in a store, with a finished one, `first`."""
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path / "cache"))
    url = f"file://{tmp_path}/bucket/runs"
    store = Store(f"{url}/first")
    for path in finished.rglob("*"):
        if path.is_file():
            store.put(path, path.relative_to(finished).as_posix())
    return url


def test_a_url_is_kept_as_it_is_in_configs_and_on_the_command_line(tmp_path):
    config = validated(RunConfig, {"out": "s3://bucket/runs/x"}, "test")
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml").out == "s3://bucket/runs/x"
    assert overridden(RunConfig(), ["--out", "gs://bucket//x"]).out == "gs://bucket//x"
    assert validated(RunConfig, {"out": Path("runs/x")}, "test").out == "runs/x"


def test_nlrl_run_keeps_a_run_in_a_store(tmp_path, small_config, finished, committed_files):
    url, config = f"file://{tmp_path}/bucket/x", tmp_path / "config.toml"
    config.write_text(to_toml(small_config(tmp_path / "unused")))
    command = ["run", str(config), "--out", url, "--store.cache", str(tmp_path / "cache")]
    done = subprocess.run([*NLRL, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "exploitability" in done.stdout
    assert committed_files(tmp_path / "bucket/x") == committed_files(finished)
    assert committed_files(tmp_path / "cache/file" / str(tmp_path)[1:] / "bucket/x") == committed_files(finished)


def test_a_run_at_a_url_is_reported_without_its_networks(stored, capsys):
    assert run_cli(["report", f"{stored}/first"]) == 0
    assert "exploitability" in capsys.readouterr().out
    copy = cache_folder(f"{stored}/first")
    assert (copy / "iterations/001/critic/manifest.json").is_file()
    assert not list(copy.rglob("*.safetensors"))
    assert run_cli(["report", f"{stored}/second"]) == 2
    assert f"{stored}/second is not a run's folder" in capsys.readouterr().err


def test_an_agent_at_a_url_is_measured_as_the_run_did(stored, finished, tmp_path):
    out = tmp_path / "figures.json"
    assert run_cli(["eval", f"{stored}/first", "--opponents", "random", "--games", "4", "--out", str(out)]) == 0
    manifest = json.loads((finished / "iterations/002/evaluation/manifest.json").read_text())["metrics"]
    found = json.loads(out.read_text())["exact"]["against"]["random"]
    assert found == pytest.approx(manifest["exact"]["against"]["random"], abs=1e-6)


def test_an_agent_at_a_url_is_an_opponent(stored):
    (source,) = frozen.sources([f"agent({stored}/first,iteration=1)"])
    assert source.agent == f"{stored}/first"
    frozen.require_plays(source, make("tictactoe"))
    weights = frozen.describe(source).weights
    assert weights is not None
    copy = cache_folder(f"{stored}/first")
    assert list(copy.rglob("*.safetensors")) == sorted((copy / "iterations/001").rglob("*.safetensors"))
    assert copy in weights.parents
    assert weights.is_file()
    with pytest.raises(NLRLError, match="cannot play"):
        frozen.require_plays(source, make("breakthrough", rows=5, columns=5))
    with pytest.raises(NLRLError, match="absent is not a run's folder"):
        frozen.describe(frozen.Source(f"{stored}/absent"))


def test_a_folder_of_runs_at_a_url_is_fetched_for_the_viewer(stored):
    from nlrl.ui.library import named_runs, read_run

    folder = local_runs(stored, but_weights)
    runs = named_runs(folder)
    assert list(runs) == ["first"]
    run = read_run("first", runs["first"])
    assert run.progress.state == "finished"
    assert run.figures
    assert local_runs(f"{stored}/first", but_weights) == folder / "first"
    with pytest.raises(NLRLError, match="no run is there"):
        local_runs(f"{stored}/none")


def test_a_run_that_goes_on_elsewhere_is_shown_as_running(stored, tmp_path):
    from nlrl.ui.library import read_run

    store = Store(f"{stored}/first")
    store.remove([*store.sizes("agent"), *store.sizes("iterations/002/evaluation"), "metrics.jsonl"])
    store.write(".nlrl/terms/000001.json", json.dumps({"holder": "process 7 on far-away", "ended": False}).encode())
    copy = local_runs(f"{stored}/first")
    assert read_run("first", copy).progress.state == "running"
    store.write(".nlrl/terms/000001.json", json.dumps({"holder": "process 7 on far-away", "ended": True}).encode())
    assert read_run("first", local_runs(f"{stored}/first")).progress.state == "stopped"


def test_runs_in_folders_do_not_need_fsspec(tmp_path, small_config):
    code = "import sys; sys.modules['fsspec'] = None; from nlrl.orchestration.run_folder import RunFolder\n"
    code += "RunFolder.open(sys.argv[1], {'seed': 1}, 'seed = 1\\n').close()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
