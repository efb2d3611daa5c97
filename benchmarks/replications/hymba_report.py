"""Recall and bytes of the decode state on Hymba's page."""

from __future__ import annotations

from statistics import mean

from nlrl.benchmarks.replications.experiment import Report
from nlrl.benchmarks.replications.figures import Section, lines
from nlrl.benchmarks.replications.recall import VALUES
from nlrl.benchmarks.replications.summary import Spread, Summary


def recall_section(report: Report) -> Section:
    """Accuracy by pairs in the table, by distance in the figure."""
    summary = Summary(report)
    context = summary.contexts[0]
    found = {arm: summary.measured(arm, context, "recall") for arm in summary.labels}
    sizes = sorted({n for probes in found.values() for probe in probes for n in probe["by_pairs"]}, key=int)
    rows = [["model", "all", *(f"{n} pairs" for n in sizes)]]
    for arm, probes in found.items():
        by_size = [_spread(probe["by_pairs"][n] for probe in probes) for n in sizes]
        rows.append([summary.labels[arm], *(f"{s:.3f}" for s in (_spread(probe["all"] for probe in probes), *by_size))])
    records = [
        {"arm": summary.labels[arm], "distance": int(distance), "accuracy": _over_seeds(probes, distance)}
        for arm, probes in found.items()
        for distance in (probes[0]["by_distance"] if probes else ())
    ]
    chart = lines(
        records, ("distance", "tokens back to the value, at most"), ("accuracy", "values recalled"),
        list(summary.labels.values()), log_x=True, y_range=(0, 1), points=True,
    )  # fmt: skip
    text = (
        f"Share of values that are the first choice among all tokens when their key is asked for, up to {context:,} "
        f"tokens later; a guess among all {VALUES} values is right in {1 / VALUES:.3f}. Mean, and least to most, over "
        "seeds; the figure has means."
    )
    return Section("Recall", text, rows, {"hymba_recall": ("Recall by distance", chart)})


def cache_section(report: Report) -> Section:
    """Bytes a sequence by tokens, and beside them those of the control."""
    summary = Summary(report)
    context = summary.contexts[0]
    found = {arm: measured[0] for arm in summary.labels if (measured := summary.measured(arm, context, "cache"))}
    lengths = list(next(iter(found.values()), {}))
    rows = [["model", *(f"{int(n):,} tokens" for n in lengths), "once for all sequences"]]
    for arm, sizes in found.items():
        cells = [_beside(sizes[n], found.get(summary.control, {}).get(n)) for n in lengths]
        rows.append([summary.labels[arm], *cells, f"{sizes[lengths[0]]['shared']:,}"])
    text = (
        "Bytes of the decode state of a sequence, and how many times fewer than the control's: keys and values and the "
        "convolutions' inputs in 16 bits, recurrent states in float32."
    )
    return Section("Bytes of the decode state", text, rows)


def _over_seeds(probes: list[dict], distance: str) -> float:
    return mean(probe["by_distance"][distance] for probe in probes)


def _spread(values) -> Spread:
    return Spread(tuple(values))


def _beside(size: dict[str, int], control: dict[str, int] | None) -> str:
    ours = _sequence(size)
    return f"{ours:,}" if control is None else f"{ours:,} ({_sequence(control) / ours:.2f}x)"


def _sequence(size: dict[str, int]) -> int:
    return size["kv"] + size["conv"] + size["recurrent"]
