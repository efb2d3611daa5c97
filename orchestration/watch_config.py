"""How a run is watched: settings that change nothing of what it computes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nlrl.orchestration.section import Section


class WatchConfig(Section):
    """Logs and metrics; docs/watching.md."""

    log_json: bool = False
    """Log lines on stderr are JSON objects (also as --log-json). Those in RUN/logs always are."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """From which level up lines are logged; debug tells of every answer that could not be read."""
    metrics: bool = True
    """Under Ray, workers hand what they count to Ray's own Prometheus endpoint."""
    metrics_port: int | None = Field(default=None, ge=0, lt=65536)
    """This process's metrics at http://127.0.0.1:PORT/metrics (also as --metrics-port): all of them with cluster.kind
    "inline", the driver's own under Ray. 0 takes a free port."""
