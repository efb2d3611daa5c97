"""W&B and MLflow themselves, where they are installed, without their services: offline, and with a database in a file.

Each run is a process of its own, as in life: both packages keep state in the process.
"""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ODD = "league/agent(runs/a,iteration=2)/50% + é"
"""Names of metrics hold names of opponents."""
PROGRAM = """
import sys
from pathlib import Path
from nlrl.orchestration.tracking import make_tracker
service, run, steps = sys.argv[1], Path(sys.argv[2]), [int(step) for step in sys.argv[3:]]
tracker = make_tracker([service], run, project="nlrl-test", config={"seed": 1, "model": {"name": "x"}})
for step in steps:
    many = {f"many/{i}": float(i) for i in range(1200)}
    tracker.log(step, {"win/share": step / 10, "loss": float("nan"), ODD: 1.0, **many})
    tracker.text(step, "argument", f"<b>step {step}</b> & so on")
tracker.close()
""".replace("ODD", repr(ODD))


def track(service: str, run: Path, *steps: int, **environment: str) -> str:
    """What a driver that logs these steps says."""
    run.mkdir(exist_ok=True)
    ours = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": f"sqlite:///{run.parent}/ml.db"}
    ours |= {"MLFLOW_ARTIFACT_ROOT": str(run.parent), "HOME": str(run.parent), "DO_NOT_TRACK": "1"}
    command = [sys.executable, "-c", PROGRAM, service, str(run), *map(str, steps)]
    found = subprocess.run(
        command, env=os.environ | ours | environment, capture_output=True, text=True, timeout=240, cwd=run.parent
    )
    assert found.returncode == 0, found.stderr
    return found.stdout + found.stderr


def log_entries(data: bytes) -> Iterator[bytes]:
    """The entries of a file in LevelDB's log format: blocks of 32 KiB, each piece with its check sum, length and kind,
    behind a head of seven bytes."""
    at, pieces = 7, b""
    while at + 7 <= len(data):
        if (room := 32768 - at % 32768) < 7:
            at += room
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        pieces += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield pieces
            pieces = b""


def steps_in_file(run: Path) -> list[int]:
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [entry["step"] for entry in entries if "metrics" in entry]


def test_mlflow_keeps_a_resumed_run_in_one_entry(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    run = tmp_path / "run"
    for steps in ((0, 1), (2,)):
        assert "left out" not in track("mlflow", run, *steps)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/ml.db")
    experiment = client.get_experiment_by_name("nlrl-test")
    (entry,) = client.search_runs([experiment.experiment_id])
    assert entry.info.run_name == "run"
    assert entry.info.status == "FINISHED"
    history = [(point.step, point.value) for point in client.get_metric_history(entry.info.run_id, "win/share")]
    assert history == [(0, 0.0), (1, 0.1), (2, 0.2)]
    assert entry.data.metrics["many/1199"] == 1199.0
    assert any(name.startswith("league/agent") for name in entry.data.metrics)
    assert "loss" not in entry.data.metrics
    assert [file.path for file in client.list_artifacts(entry.info.run_id)] == ["argument", "config.json"]
    assert len(client.list_artifacts(entry.info.run_id, "argument")) == 3
    assert steps_in_file(run) == [0, 1, 2]


def test_wandb_offline_keeps_every_step_under_one_id(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run = tmp_path / "run"
    for steps in ((0, 1), (2,)):
        assert "left out" not in track("wandb", run, *steps)
    parts = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    assert len(parts) == 2
    assert len({part.stem for part in parts}) == 1  # `wandb sync` puts both into one page
    logged: dict[int, dict[str, str]] = {}
    for part in parts:
        for data in log_entries(part.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                row = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                logged.setdefault(int(row["_step"]), {}).update(row)
    assert sorted(logged) == [0, 1, 2]
    assert [float(logged[step]["win/share"]) for step in (0, 1, 2)] == [0.0, 0.1, 0.2]
    assert float(logged[2][ODD]) == 1.0
    assert "loss" not in logged[1]
    pages = [path.read_text() for path in (run / "wandb").rglob("*.html")]
    assert len(pages) == 3
    assert all("<b>step" not in page for page in pages)
    assert steps_in_file(run) == [0, 1, 2]


def test_a_service_that_cannot_be_reached_loses_nothing_but_itself(tmp_path):
    pytest.importorskip("mlflow")
    away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    assert "MLflow" in track("mlflow", tmp_path / "run", 0, 1, **away)
    assert steps_in_file(tmp_path / "run") == [0, 1]
