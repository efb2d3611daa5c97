"""How Prometheus gets at what processes count: through Ray's own endpoint, or a loopback port of this process.

1. Under Ray every worker hands its figures to Ray's metrics (`ray.util.metrics`) every few seconds, from a thread of
   its own, and Ray serves those of a node on the node's metrics port, as `ray_nlrl_...`. Counting itself knows nothing
   of that, so it costs the same whether anybody watches or not.
2. Without Ray all workers live in one process, and `--metrics-port` serves its figures on the loopback address.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from nlrl.errors import NLRLError
from nlrl.orchestration.instruments import Instruments, Sample

PERIOD = 5.0
"""Seconds between two hand-overs to Ray."""
LOOPBACK = "127.0.0.1"
_log = logging.getLogger(__name__)


# -- Ray ---------------------------------------------------------------------------------------------------------------
class RayPublisher:
    """Hands figures to Ray until it is closed; a daemon, so a worker that ends is not kept.

    Args:
        labels: of every sample: run and process.
    """

    def __init__(self, instruments: Instruments, labels: Mapping[str, str], period: float = PERIOD):
        self._instruments, self._labels, self._period = instruments, dict(labels), period
        self._known: dict[str, Any] = {}
        self._before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nlrl metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hands over what there is, and ends."""
        self._end.set()
        self._thread.join(timeout=self._period)

    def publish(self) -> None:
        """One hand-over."""
        for sample in self._instruments.samples():
            self._hand_over(sample)

    def _run(self) -> None:
        ended = False
        while not ended:
            ended = self._end.wait(self._period)
            try:
                self.publish()
            except Exception as error:  # whatever is wrong with Ray's metrics, the work goes on
                _log.warning("metrics are no longer handed to Ray: %s", error)
                return

    def _hand_over(self, sample: Sample) -> None:
        from ray.util import metrics

        # Ray's own histograms take one value at a time; as gauges, ours arrive whole, and PromQL sees no difference.
        counts = sample.metric.kind == "counter"
        labels = self._labels | sample.labels
        if sample.name not in self._known:
            kind = metrics.Counter if counts else metrics.Gauge
            self._known[sample.name] = kind(sample.name, sample.metric.help, tuple(labels))
        if not counts:
            self._known[sample.name].set(sample.value, labels)
            return
        key = sample.name, tuple(sample.labels.items())
        if more := sample.value - self._before.get(key, 0.0):
            self._before[key] = sample.value
            self._known[sample.name].inc(more, labels)


# -- without Ray -------------------------------------------------------------------------------------------------------
class MetricsPort:
    """Serves this process's figures at http://127.0.0.1:PORT/metrics until it is closed.

    Args:
        port: 0 takes a free one.

    Raises:
        NLRLError: the port is taken, or prometheus_client is missing.
    """

    def __init__(self, instruments: Instruments, labels: Mapping[str, str], port: int):
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise NLRLError("watch.metrics_port needs prometheus_client: pip install 'nlrl[serve]'") from None
        registry = CollectorRegistry()
        registry.register(_Figures(instruments, labels))  # pyright: ignore[reportArgumentType]
        try:
            self._server, self._thread = start_http_server(port, addr=LOOPBACK, registry=registry)
        except (OSError, OverflowError) as error:
            raise NLRLError(f"watch.metrics_port: {LOOPBACK}:{port} cannot be used ({error}); name another") from None
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/metrics"

    def close(self) -> None:
        """Frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Figures:
    """What prometheus_client asks at every scrape."""

    def __init__(self, instruments: Instruments, labels: Mapping[str, str]):
        self._instruments, self._labels = instruments, dict(labels)

    def collect(self) -> Iterator[Any]:
        from prometheus_client.metrics_core import Metric as Family

        families: dict[str, Any] = {}
        for sample in self._instruments.samples():
            name = _family(sample)
            if name not in families:
                families[name] = Family(name, sample.metric.help, sample.metric.kind)
            families[name].add_sample(sample.name, self._labels | sample.labels, sample.value)
        return iter(families.values())


def _family(sample: Sample) -> str:
    if sample.metric.kind == "counter":
        return sample.name.removesuffix("_total")
    if sample.metric.kind == "histogram":
        return sample.name.rpartition("_")[0]
    return sample.name
