"""`nlrl status` tells how a run is from its folder alone, whatever is missing or torn there."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.run_status import count_lines, disk_used, read_status
from nlrl.orchestration.status_table import duration, size

SLOW = """
import time
from nlrl.testing.by_rules import LookupTrainer as make_trainer, RuleModel

class make_model(RuleModel):
    def generate(self, requests):
        time.sleep(0.05 if self.weight_version.endswith("@0") else 60)
        return super().generate(requests)
"""
"""Quick until the actor is trained, and then as good as dead."""


def told(run: Path) -> str:
    """What `nlrl status` prints, in one line a field."""
    return re.sub(r"[ ]{2,}", "  ", run_printed("status", str(run)))


def run_printed(*arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, "-m", "nlrl.orchestration.cli", *arguments], capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def test_a_finished_run_tells_what_it_has_and_nothing_is_changed(finished, capsys):
    before = listing(finished)
    status = read_status(finished)
    assert (status.state, status.iteration, status.iterations, status.stage) == ("finished", 2, 2, "")
    assert status.process is None
    assert status.resume == ""
    assert status.problems == ()
    assert "win (exact)" in status.figures
    assert set(status.seconds) == {"rollout", "targets", "policy", "critic", "improvement", "actor", "evaluation"}
    assert "002/evaluation" in status.committed
    manifests = [json.loads(path.read_text()) for path in finished.glob("iterations/*/*/manifest.json")]
    assert status.records == sum(m["files"].get("records.jsonl", {}).get("records", 0) for m in manifests)
    assert status.bytes == sum(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    assert status.models["requests"] > 100
    assert run_cli(["status", str(finished), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "finished"
    assert listing(finished) == before


def test_several_runs_are_a_row_each(finished, tmp_path, capsys):
    assert run_cli(["status", str(finished), str(tmp_path / "nowhere")]) == 0
    out = capsys.readouterr().out
    assert "finished" in out
    assert "no run" in out
    assert run_cli(["status"]) == 2


def test_a_running_run_and_what_is_left_of_it_when_it_is_killed(config_file, tmp_path):
    (tmp_path / "slow_model.py").write_text(SLOW)
    path = config_file(model={"kind": "scripted", "name": "slow_model"}, rollout={"games": 16, "workers": 1})
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(path)], env=environment, stderr=subprocess.DEVNULL
    )
    run = tmp_path / "run"
    try:
        deadline = time.monotonic() + 60
        while (status := read_status(run)).stage != "improvement" and time.monotonic() < deadline:
            time.sleep(0.2)
        assert status.state == "running"
        assert (status.process, status.host) == (driver.pid, socket.gethostname())
        assert (status.iteration, status.iterations, status.stage) == (1, 2, "improvement")
        assert (status.done, status.exact) == (0, True)
        assert (status.wanted or 0) > 5
        assert (status.heartbeat or 0) < 10
        assert status.models["generated_tokens"] > 0
        assert status.metrics == ()
        assert "running" in told(run)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    status = read_status(run)
    assert status.state == "stopped"
    assert status.stage == "improvement"
    assert "001/critic" in status.committed
    assert status.resume == f"nlrl run {run}/config.toml"
    moved = shutil.move(run, tmp_path / "moved")
    assert read_status(moved).resume == f"nlrl run {moved}/config.toml --out {moved}"


def test_a_failed_run_says_why(config_file, tmp_path):
    (tmp_path / "bad_model.py").write_text(
        "from nlrl.testing.by_rules import LookupTrainer as make_trainer, RuleModel\n"
        "class make_model(RuleModel):\n"
        "    def generate(self, requests):\n"
        "        if self.weight_version != 'by-rules@0': raise ValueError('\\x1b[31mout of luck')\n"
        "        return super().generate(requests)\n"
    )
    path = config_file(model={"kind": "scripted", "name": "bad_model"})
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "nlrl.orchestration.cli", "run", str(path)]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode
    status = read_status(tmp_path / "run")
    assert (status.state, status.stage) == ("failed", "improvement")
    assert status.error == "ValueError: \x1b[31mout of luck"
    out = told(tmp_path / "run")
    assert "\\x1b[31mout of luck" in out
    assert "\x1b" not in out


def test_a_driver_that_beats_no_more_has_stalled(finished, tmp_path):
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    shutil.rmtree(run / "agent")
    (run / "metrics.jsonl").unlink()
    (run / ".lock").write_text("process 7 on elsewhere")
    beat = {"process": 7, "state": "running", "beat": 1000.0, "iteration": 2, "stage": "actor", "since": 900.0,
            "done": 30, "before": 10, "wanted": 50}  # fmt: skip
    (run / "status.json").write_text(json.dumps(beat))
    alive = read_status(run, now=1000.0)
    assert (alive.state, alive.host) == ("running", "elsewhere")
    assert (alive.done, alive.wanted, alive.per_second, alive.seconds_left) == (30, 50, 0.2, 100.0)
    os.utime(run / "config.toml", (1090.0, 1090.0))
    for path in [*run.rglob("*")]:
        os.utime(path, (1090.0, 1090.0))
    assert read_status(run, now=1100.0).state == "stalled"
    assert read_status(run, now=5000.0).state == "stopped"


TORN = ["config.toml", "metrics.jsonl", "status.json", ".lock", "iterations/001/rollout/manifest.json"]


@pytest.mark.parametrize(
    "nonsense", [b"", b"\xff\x00{", b"[]", b"{}", b'{"a":', b"5\n5\n", b'{"schema": [], "files": 3}']
)
@pytest.mark.parametrize("name", TORN)
def test_whatever_is_torn_is_said_and_the_rest_is_told(finished, tmp_path, name, nonsense):
    run = Path(shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copyfile))
    (run / name).unlink(missing_ok=True)
    (run / name).write_bytes(nonsense)
    status = read_status(run)
    assert status.state == "finished"
    assert status.records > 0
    assert duration(status.heartbeat) is not None


@pytest.mark.parametrize(
    "field", ["where", "beat", "done", "wanted", "stage", "since", "models", "iteration", "started"]
)
@pytest.mark.parametrize("value", [None, "x", [], {}, True, 1e300, -1])
def test_heartbeats_of_any_content_are_borne(finished, tmp_path, field, value):
    run = Path(shutil.copytree(finished, tmp_path / "run", copy_function=shutil.copyfile))
    beat = json.loads((run / "status.json").read_text()) | {"state": "running", "stage": "rollout", field: value}
    (run / "status.json").unlink()
    (run / "status.json").write_text(json.dumps(beat))
    shutil.rmtree(run / "agent")
    (run / "metrics.jsonl").unlink()
    (run / ".lock").unlink()
    (run / ".lock").write_text("process 7 on elsewhere")
    assert read_status(run).state in ("running", "stalled")
    assert run_cli(["status", str(run)]) == 0


def test_folders_that_are_no_runs(tmp_path):
    assert read_status(tmp_path / "none").state == "no run"
    assert read_status(tmp_path).state == "empty"
    (tmp_path / "file").write_text("x")
    assert read_status(tmp_path).state == "no run"


def test_a_hundred_thousand_records_take_no_second(tmp_path):
    shards = tmp_path / "iterations" / "001" / "rollout" / "shards"
    shards.mkdir(parents=True)
    (tmp_path / "config.toml").write_text("name = 'big'\niterations = 3\n[rollout]\ngames = 100_000\n")
    line = b'{"schema":1,"kind":"game","key":"k","text":"' + b"x" * 900 + b'"}\n'
    (shards / "games.jsonl").write_bytes(line * 100_000)
    began = time.process_time()
    status = read_status(tmp_path)
    assert time.process_time() - began < 1
    assert (status.state, status.stage, status.wanted, status.exact) == ("stopped", "rollout", 100_000, False)
    assert abs((status.done or 0) - 100_000) < 1000
    assert count_lines([shards / "games.jsonl"], most=1 << 30) == (100_000, True)


def test_sizes_and_durations_as_people_write_them(tmp_path):
    assert [duration(x) for x in (None, -1, 7.4, 200, 7500, 1e300)] == ["", "", "7 s", "3 min 20 s", "2 h 5 min", ""]
    assert [size(x) for x in (0, 999, 3_200_000, 5 * 10**12)] == ["0 B", "999 B", "3.2 MB", "5.0 TB"]
    (tmp_path / "a").write_bytes(b"x" * 100)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert disk_used(tmp_path) < 10_000
