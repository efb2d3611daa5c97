"""What this process counts about itself: numbers in memory, which cost a fraction of a microsecond, and nobody reads
them unless somebody watches (`exporters`).

Every name is in `metric_names`. Counting with a name that is not, or with other labels, is an error of the programmer.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple
from weakref import WeakMethod

from nlrl.orchestration.metric_names import BUCKETS, ENGINE, METRICS, Metric, described

Labels = tuple[str, ...]


class Sample(NamedTuple):
    """One time series now. Histograms are three kinds of them, as Prometheus has it: cumulative `_bucket`s with the
    label `le`, `_sum` and `_count`."""

    name: str
    metric: Metric
    labels: dict[str, str]
    value: float


class Instruments:
    """Counters, gauges and histograms of one process; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[str, list[float]] = {}
        self._sources: list[WeakMethod[Callable[[], Mapping[str, float]]]] = []
        self._infos: list[WeakMethod[Callable[[], Mapping[str, str]]]] = []

    def count(self, name: str, amount: float = 1, *labels: str) -> None:
        """Adds to a counter (or moves a gauge). labels: values, in the order of `METRICS`."""
        key = name, labels
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount

    def set(self, name: str, value: float, *labels: str) -> None:
        """Sets a gauge."""
        with self._lock:
            self._values[name, labels] = value

    def observe(self, name: str, values: Iterable[float], times: int = 1) -> None:
        """Adds to a histogram, each value so many times."""
        bounds = BUCKETS[name]
        with self._lock:
            counts = self._histograms.setdefault(name, [0.0] * (len(bounds) + 2))  # the last two: beyond all, the sum
            for value in values:
                counts[bisect_left(bounds, value)] += times
                counts[-1] += times * value

    def read_from(
        self, figures: Callable[[], Mapping[str, float]], versions: Callable[[], Mapping[str, str]] | None = None
    ) -> None:
        """Adds figures that are kept elsewhere, an engine's own, and which version each weight set has; as long as the
        objects whose methods these are live."""
        self._sources.append(WeakMethod(figures))
        if versions is not None:
            self._infos.append(WeakMethod(versions))

    def forget(self) -> None:
        """Starts from nothing: a process that runs several runs, one after another, shows the newest."""
        self.__init__()

    def samples(self) -> Iterator[Sample]:
        """Everything, as it is now."""
        with self._lock:
            values, histograms = dict(self._values), {name: list(row) for name, row in self._histograms.items()}
        for source in _living(self._sources):
            for figure, value in source().items():
                if figure.endswith("_rate"):
                    continue  # of what is here anyway, and rates cannot be added up
                key = f"{ENGINE}{figure}", ()
                values[key] = values.get(key, 0.0) + value  # of several servers in one process, added up
        for infos in _living(self._infos):
            values |= {("nlrl_engine_weights_info", version): 1.0 for version in infos().items()}
        for (name, labels), value in values.items():
            metric = described(name)
            yield Sample(name, metric, dict(zip(metric.labels, labels, strict=True)), value)
        for name, counts in histograms.items():
            yield from _histogram(name, counts)

    def totals(self) -> dict[str, float]:
        """Values by name, summed over labels; without histograms."""
        found: dict[str, float] = {}
        for sample in self.samples():
            if sample.metric.kind != "histogram":
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


def _living(methods: list[WeakMethod[Any]]) -> list[Any]:
    return [method for reference in list(methods) if (method := reference()) is not None]


def _histogram(name: str, counts: list[float]) -> Iterator[Sample]:
    metric, below = METRICS[name], 0.0
    for bound, count in zip((*map(str, BUCKETS[name]), "+Inf"), counts[:-1], strict=True):
        below += count
        yield Sample(f"{name}_bucket", metric, {"le": bound}, below)
    yield Sample(f"{name}_sum", metric, {}, counts[-1])
    yield Sample(f"{name}_count", metric, {}, below)


instruments = Instruments()
"""This process's."""
