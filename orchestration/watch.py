"""What every process of a run does so that people can watch it: its log file, its metrics, its name in both.

1. A `Watch` is told to each worker when it is made. A process of its own (under Ray) then logs into
   RUN/logs/NAME.jsonl, if it can see that folder, and hands its metrics to Ray. In the driver's process there is
   nothing to do.
2. The driver has a `Watcher` around the stages: its log file, its port, and the heartbeat that `nlrl status` reads.
3. Nothing here is part of a result: no manifest names these files, and a run goes on when they cannot be written.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.logs import add_log_file, log_context, remove_log_file, setup_logging

LOGS_FOLDER = "logs"
STATUS_FILE = "status.json"
DRIVER = "driver"
_log = logging.getLogger(__name__)


class Watch(NamedTuple):
    """What a process has to know. Travels to workers."""

    run: str
    folder: str
    """The run's."""
    config: Any
    """`WatchConfig`."""
    under_ray: bool
    secrets: tuple[str, ...] = ()
    """Names of environment variables that hold keys."""

    @classmethod
    def of(cls, config: RunConfig, folder: Path) -> Watch:
        keys = {model.api_key_env for model in (config.model, config.teacher) if model is not None}
        return cls(config.name, str(folder.resolve()), config.watch, config.cluster.kind == "ray", tuple(sorted(keys)))

    @property
    def logs(self) -> Path:
        return Path(self.folder) / LOGS_FOLDER

    def labels(self, process: str) -> dict[str, str]:
        """Of every sample of a process."""
        return {"run": self.run, "process": process}

    def around(self, cls: Callable[..., Any], name: str) -> Callable[..., Any]:
        """`cls`, made in a process that is watched."""
        return Watched(cls, self, name) if self.under_ray else cls

    def begin(self, process: str) -> Any:
        """In a worker's process, before anything else; returns what must be closed at the end, or None."""
        setup_logging(self.config.log_level, self.config.log_json, self.secrets)
        if Path(self.folder).is_dir():  # a worker on another machine may not see it
            add_log_file(self.logs, process)
        with log_context(run=self.run):
            _log.info("process %d on %s", os.getpid(), socket.gethostname())
        return self.publisher(process)

    def publisher(self, process: str) -> Any:
        if not (self.under_ray and self.config.metrics):
            return None
        from nlrl.orchestration.exporters import RayPublisher

        return RayPublisher(instruments, self.labels(process))


class Watched:
    """A class (or a function that makes an object) whose process is prepared first."""

    def __init__(self, cls: Callable[..., Any], watch: Watch, name: str):
        self._cls, self._watch, self._name = cls, watch, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self._watch.begin(self._name)
        return self._cls(*args, **kwargs)


class Watcher:
    """The driver's part of it. A context manager around the stages of a run.

    Args:
        session: the run in progress.

    Raises:
        NLRLError: `metrics_port` cannot be had.
    """

    def __init__(self, session: Any):
        from nlrl.orchestration.heartbeat import Heartbeat

        self.watch = Watch.of(session.config, session.folder.path)
        self._closing: list[Any] = []
        self._log_file = add_log_file(self.watch.logs, DRIVER)
        where = session.cluster.place()
        try:
            if self.watch.config.metrics_port is not None:
                where["metrics"] = self._open_port()
        except BaseException:
            remove_log_file(self._log_file)
            raise
        if (publisher := self.watch.publisher(DRIVER)) is not None:
            self._closing.append(publisher)
        self._beat = Heartbeat(session, Path(self.watch.folder) / STATUS_FILE, where)
        _say(where)

    def _open_port(self) -> str:
        from nlrl.orchestration.exporters import MetricsPort

        port = MetricsPort(instruments, self.watch.labels(DRIVER), self.watch.config.metrics_port)
        self._closing.append(port)
        return port.url

    def __enter__(self) -> Watcher:
        self._beat.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._beat.stop(error)
        for one in self._closing:
            one.close()
        if error is not None:
            _log.error("the run has stopped: %s: %s", type(error).__name__, error)
        instruments.forget()
        remove_log_file(self._log_file)


def discard(folder: Path) -> None:
    """Removes what watching has left in the folder of a run that was never begun."""
    shutil.rmtree(folder / LOGS_FOLDER, ignore_errors=True)
    (folder / STATUS_FILE).unlink(missing_ok=True)


def _say(where: dict[str, Any]) -> None:
    if where.get("dashboard"):
        _log.info("Ray's dashboard: %s (job %s)", where["dashboard"], where.get("submission") or where.get("job"))
    if where.get("metrics"):
        _log.info("metrics: %s", where["metrics"])
