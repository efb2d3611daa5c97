"""Writes a small run folder with made-up content, for tests of whatever reads runs."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlrl.orchestration.records import SCHEMA, record_key
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.stage_folder import Stage
from nlrl.orchestration.tracking import METRICS_FILE, MetricsFile

CONFIG = 'name = "scripted"\nseed = 0\n'


def write_run(
    folder: str | Path,
    *,
    config: str = CONFIG,
    metrics: Sequence[Mapping[str, float]] = (),
    diary: str = "",
    records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """A run as `nlrl run` leaves it, in `folder`, which is made.

    Args:
        config: the text of config.toml.
        metrics: the numbers of iterations 0, 1, ...
        diary: the text of evaluations.md; none is written if it is empty.
        records: stage, such as "001/rollout" -> the records of that committed stage. `schema`, `kind` and `key` are
            filled in where they are missing.
    """
    folder = Path(folder)
    with RunFolder.open(folder, tomllib.loads(config), config) as run:
        for place, given in (records or {}).items():
            iteration, _, name = place.partition("/")
            _write_stage(run.stage(int(iteration), name), given)
    log = MetricsFile(folder / METRICS_FILE)
    for step, numbers in enumerate(metrics):
        log.log(step, numbers)
    log.close()
    if diary:
        (folder / "evaluations.md").write_text(diary)
    return folder


def _write_stage(stage: Stage, given: Sequence[Mapping[str, Any]]) -> None:
    with stage.writer("scripted") as writer:
        for number, record in enumerate(given):
            key = record_key(stage.iteration, stage.name, number)
            writer.write({"schema": SCHEMA, "kind": stage.name, "key": key, **record})
    stage.commit()
