"""What a running driver tells about itself: RUN/status.json, written anew every few seconds for `nlrl status`.

The file is for people and never part of a result: no manifest names it, and a disk that refuses it stops nothing. It is
replaced by a rename, so readers see one whole state or another; it is not forced to disk, since who reads it after a
power cut learns from the stages themselves what was committed.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import orjson

from nlrl.orchestration.atomic import TEMP_PREFIX
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.progress import Part, newest_part

SCHEMA = 1
PERIOD = 2.0
"""Seconds between two writes."""
WINDOW = 30.0
"""Seconds over which tokens a second are measured."""
COUNTED = ("prompt_tokens", "generated_tokens", "requests", "cached_requests", "failed_requests", "restarts")
"""Of what model servers count: `nlrl_model_*_total`."""
_log = logging.getLogger(__name__)


class Heartbeat:
    """Writes the file from a thread of its own.

    Args:
        session: the run in progress.
        path: of the file.
        where: what `Cluster.place` says, and where metrics are.
    """

    def __init__(self, session: Any, path: Path, where: dict[str, Any]):
        self._session, self._path = session, path
        config = session.config
        self._fixed = {
            "schema": SCHEMA, "run": config.name, "method": config.method, "game": session.game.spec,
            "iterations": config.iterations, "process": os.getpid(), "host": socket.gethostname(),
            "started": time.time(), "where": where,
        }  # fmt: skip
        self._stage: dict[str, Any] = {}
        self._totals: deque[tuple[float, dict[str, float]]] = deque()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nlrl heartbeat", daemon=True)

    def start(self) -> None:
        self._write("running")
        self._thread.start()

    def stop(self, error: BaseException | None = None) -> None:
        """Writes how it ended; a run that is killed leaves its last heartbeat instead."""
        self._end.set()
        self._thread.join(timeout=10 * PERIOD)
        state = "ended" if error is None else "stopped" if isinstance(error, KeyboardInterrupt) else "failed"
        self._write(state, {} if error is None else self._stage | {"error": f"{type(error).__name__}: {error}"})

    def _run(self) -> None:
        while not self._end.wait(PERIOD):
            self._write("running")

    def _write(self, state: str, more: dict[str, Any] | None = None) -> None:
        try:
            told = self._fixed | {"state": state, "beat": time.time()} | self._now() | (more or {})
            temporary = self._path.with_name(f"{TEMP_PREFIX}{os.getpid()}-{self._path.name}")
            temporary.write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
            os.replace(temporary, self._path)
        except Exception as error:  # told once in a log is enough, and none of it is worth a run
            _log.debug("no heartbeat: %s", error)

    def _now(self) -> dict[str, Any]:
        """The open stage and how far it is, and what the models have done."""
        session = self._session
        doing = session.doing
        told: dict[str, Any] = {"iteration": session.iteration, "versions": dict(session.versions)}
        if doing is not None:
            part = newest_part()
            if part is None or part.since < doing.since:  # of another stage
                part = Part("", doing.since)
            samples = {s.name: s.value for s in instruments.samples() if s.labels.get("stage") == doing.stage}
            self._stage = {
                "stage": doing.stage, "since": doing.since, "part": part.name,
                "part_since": part.since, "done": samples.get("nlrl_stage_done"),
                "wanted": samples.get("nlrl_stage_wanted") or None, "before": samples.get("nlrl_stage_before"),
            }  # fmt: skip
            told |= self._stage
        return told | {"models": self._models()}

    def _models(self) -> dict[str, float]:
        totals = model_totals(self._session)
        now = time.monotonic()
        self._totals.append((now, totals))
        while len(self._totals) > 2 and now - self._totals[0][0] > WINDOW:
            self._totals.popleft()
        then, before = self._totals[0]
        tokens = sum(totals.get(name, 0) - before.get(name, 0) for name in COUNTED[:2])
        return totals | {"tokens_per_second": tokens / (now - then) if now > then else 0.0}


def model_totals(session: Any) -> dict[str, float]:
    """What the run's model servers have done since they were started."""
    found = instruments.totals() if session.cluster.kind == "inline" else session.student.router.totals()
    return {name: found.get(f"nlrl_model_{name}_total", 0.0) for name in COUNTED}
