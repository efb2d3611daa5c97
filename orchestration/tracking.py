"""Where metrics go: always into the run's own folder, and from there to any services that people watch.

A run must be complete without a service. So the file comes first and its failure stops the run, while a service that
fails is reported once and left out from then on.
"""

from __future__ import annotations

import hashlib
import html
import importlib
import logging
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nlrl.errors import NLRLError
from nlrl.orchestration.records import RecordWriter, scan_lines

METRICS_FILE = "metrics.jsonl"
_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Anything that keeps metrics. Steps are iterations; logging a step again replaces it where the tracker can."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers by name, such as `evaluation/win_rate`."""
        ...

    def text(self, step: int, name: str, body: str) -> None:
        """A sample text: an argued move, an evaluation."""
        ...

    def close(self) -> None:
        """Hands over what is buffered."""
        ...


def make_tracker(
    names: Sequence[str], run_dir: str | Path, project: str = "nlrl", config: Mapping[str, Any] | None = None
) -> CompositeTracker:
    """The run's tracker: its metrics file, and the services in `names` ("tensorboard", "wandb", "mlflow").

    Raises:
        NLRLError: an unknown name, or its package is not installed.
    """
    unknown = [name for name in names if name not in _SERVICES]
    if unknown:
        raise NLRLError(f"trackers: {unknown[0]!r} is none of {', '.join(_SERVICES)}")
    services = [_opened(name, Path(run_dir), project, dict(config or {})) for name in names]
    found = [service for service in services if service is not None]
    return CompositeTracker([MetricsFile(Path(run_dir) / METRICS_FILE), *found])


def _opened(name: str, run_dir: Path, project: str, config: dict[str, Any]) -> Tracker | None:
    """A service, or None if it cannot be reached: the run goes on without it."""
    try:
        return _SERVICES[name](run_dir, project, config)
    except NLRLError:
        raise
    except Exception as error:
        _log.warning("%s cannot be used and is left out: %s", _SERVICES[name].__name__, error)
        return None


class CompositeTracker:
    """Passes everything to several trackers. An `NLRLError` stops the run; any other failure only loses that
    tracker."""

    def __init__(self, trackers: Sequence[Tracker]):
        self._trackers = list(trackers)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._each("log", step, metrics)

    def text(self, step: int, name: str, body: str) -> None:
        self._each("text", step, name, body)

    def close(self) -> None:
        self._each("close")

    def _each(self, method: str, *args: Any) -> None:
        for tracker in list(self._trackers):
            try:
                getattr(tracker, method)(*args)
            except NLRLError:
                raise
            except Exception as error:
                self._trackers.remove(tracker)
                _log.warning("%s failed and is left out from now on: %s", type(tracker).__name__, error)


# -- the file ----------------------------------------------------------------------------------------------------------
class MetricsFile:
    """JSON lines `{"step", "time", "metrics"}` and `{"step", "time", "name", "text"}`; `time` is in seconds since
    1970."""

    def __init__(self, path: str | Path):
        self._writer = RecordWriter(path, accept=_is_entry)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._writer.write({"step": step, "time": time.time(), "metrics": dict(metrics)})

    def text(self, step: int, name: str, body: str) -> None:
        self._writer.write({"step": step, "time": time.time(), "name": name, "text": body})

    def close(self) -> None:
        self._writer.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The metrics of each step, `{"step": 3, "metrics": {...}}` in order of steps; of a number logged twice the later
    one counts.

    A file that does not exist has none.
    """
    steps: dict[int, dict[str, float]] = {}
    if Path(path).is_file():
        for entry, _, _ in scan_lines(path, _is_entry):
            steps.setdefault(entry["step"], {}).update(entry.get("metrics", {}))
    return [{"step": step, "metrics": steps[step]} for step in sorted(steps) if steps[step]]


def _is_entry(value: Any) -> bool:
    whole = isinstance(value, dict) and isinstance(value.get("step"), int) and ("metrics" in value or "text" in value)
    return whole and isinstance(value.get("metrics", {}), dict)


# -- services ----------------------------------------------------------------------------------------------------------
class TensorBoard:
    """Event files in RUN/tensorboard."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]):
        module = _import("torch.utils.tensorboard", "tensorboard")
        self._board = module.SummaryWriter(str(run_dir / "tensorboard"))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in _finite(metrics).items():
            self._board.add_scalar(name, value, step)

    def text(self, step: int, name: str, body: str) -> None:
        indented = "".join(f"    {line}\n" for line in body.splitlines())  # Markdown for "as it is"
        self._board.add_text(name, indented, step)

    def close(self) -> None:
        self._board.close()


class Wandb:
    """Weights & Biases. A resumed run continues its page: the page's id is made from the run's folder."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]):
        self._wandb = _import("wandb", "wandb")
        self._run = self._wandb.init(
            project=project,
            name=run_dir.name,
            id=_run_id(run_dir),
            resume="allow",
            dir=str(run_dir),
            config=dict(config),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(_finite(metrics), step=step)

    def text(self, step: int, name: str, body: str) -> None:
        self._run.log({name: self._wandb.Html(f"<pre>{html.escape(body)}</pre>")}, step=step)

    def close(self) -> None:
        self._run.finish()


_UNNAMEABLE = re.compile(r"[^A-Za-z0-9_\-./ :]")
"""What MLflow takes in no name of a metric: ours hold names of opponents."""
_AT_ONCE = 500
"""Metrics of one call; a server takes 1000."""


class MLflow:
    """MLflow, at `MLFLOW_TRACKING_URI`. A resumed run continues its entry, found by a tag made from the run's
    folder."""

    def __init__(self, run_dir: Path, project: str, config: Mapping[str, Any]):
        self._mlflow = _import("mlflow", "mlflow")
        experiment = self._mlflow.set_experiment(project)
        tag = _run_id(run_dir)
        earlier = self._mlflow.search_runs(
            [experiment.experiment_id], f"tags.nlrl_run = '{tag}'", output_format="list", max_results=1
        )
        earlier_id = earlier[0].info.run_id if earlier else None
        self._mlflow.start_run(run_id=earlier_id, run_name=run_dir.name, tags={"nlrl_run": tag})
        self._mlflow.log_dict(dict(config), "config.json")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        named = [(_UNNAMEABLE.sub("_", name), value) for name, value in _finite(metrics).items()]
        for start in range(0, len(named), _AT_ONCE):
            self._mlflow.log_metrics(dict(named[start : start + _AT_ONCE]), step=step)

    def text(self, step: int, name: str, body: str) -> None:
        self._mlflow.log_text(body, f"{name}/{step:06d}.txt")

    def close(self) -> None:
        self._mlflow.end_run()


_SERVICES = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise NLRLError(f"trackers: {package!r} needs a package that is missing: pip install {package}") from error


def _run_id(run_dir: Path) -> str:
    return hashlib.blake2b(str(run_dir.resolve()).encode(), digest_size=8).hexdigest()


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Services differ in what they make of NaN; a missing point is what they all draw well."""
    return {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
