"""What Prometheus reads: the engine's own figures, and what came of the requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from nlrl.backbones.engine.server.surface import ServedEngine

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
HUNG_UP = "499"
"""Stands in `status` for a client that did not wait for its answer."""
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """Counts in a registry of its own, so that two servers in one process do not mix."""

    def __init__(self, engine: ServedEngine) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_EngineFigures(engine))
        registry: dict[str, Any] = {"registry": self._registry}
        self.requests = Counter(
            "nlrl_server_requests", "Requests by what came of them.", ("route", "status"), **registry
        )
        self.seconds = Histogram(
            "nlrl_server_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            buckets=_SECONDS,
            **registry,
        )
        self.first = Histogram(
            "nlrl_server_first_byte_seconds",
            "From a request to its first byte.",
            ("route",),
            buckets=_SECONDS,
            **registry,
        )
        self.open = Gauge("nlrl_server_open_requests", "Requests that are being answered.", **registry)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _EngineFigures:
    """`Engine.metrics()` as `nlrl_engine_*`, read when somebody looks. Names that end in `_total` are counters."""

    def __init__(self, engine: ServedEngine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Any]:
        for name, value in self._engine.metrics().items():
            family: Callable[..., Any] = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(f"nlrl_engine_{name}", name.replace("_", " "), value=value)
        versions = InfoMetricFamily("nlrl_engine_weights", "Which version each weight set has.", labels=("weights",))
        for name, version in self._engine.weight_versions().items():
            versions.add_metric((name,), {"version": version})
        yield versions
