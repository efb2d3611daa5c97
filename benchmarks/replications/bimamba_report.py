"""Loss and bytes on Bi-Mamba's page."""

from __future__ import annotations

from collections.abc import Iterator
from math import exp
from statistics import mean

from nlrl.benchmarks.replications.experiment import Report
from nlrl.benchmarks.replications.figures import Section, bars
from nlrl.benchmarks.replications.summary import Spread, Summary

ROUNDED = "rounded after training"


def bytes_section(report: Report) -> Section:
    """One row for each way to a model, the rounded one among them."""
    summary = Summary(report)
    rows = [["model", "validation loss", "perplexity", "bytes on disk", "bytes in memory", "bits a projected weight"]]
    records = []
    for label, losses, sizes in models(summary):
        perplexities = Spread(tuple(exp(min(loss, 50.0)) for loss in losses.values))
        cells = (f"{losses:.4f}", f"{perplexities:.4g}", f"{sizes['disk']:,}", f"{sizes['memory']:,}", _bits(sizes))
        rows.append([label, *cells])
        records.append({"arm": label, "text": "held-out text", "loss": mean(losses.values)})
    labels = [record["arm"] for record in records]
    chart = bars(records, ("text", " "), ("loss", "validation loss, nats a token"), labels)
    text = (
        "Signs as bits, everything else in 16 bits; in memory the decode state and what is unpacked for a moment come "
        "on top. Bits a projected weight include scales and shifts. At this size the embedding, which stays in 16 "
        "bits, weighs more than the signs. Mean, and least to most, over seeds."
    )
    return Section("Loss and bytes", text, rows, {"bimamba_bytes": ("Validation loss of each", chart)})


def models(summary: Summary) -> Iterator[tuple[str, Spread, dict[str, int]]]:
    """Label, validation losses by seed and bytes of every arm that was run, and of what rounding makes of it."""
    context = summary.contexts[0]
    for arm, label in summary.labels.items():
        sizes = summary.measured(arm, context, "storage")
        if sizes:
            yield label, summary.losses(arm, context), sizes[0]
        after = [measured for measured in summary.measured(arm, context, "rounded") if measured]
        if after:
            yield f"{label}, {ROUNDED}", Spread(tuple(measured["loss"] for measured in after)), after[0]


def _bits(sizes: dict[str, int]) -> str:
    return f"{8 * sizes['projections'] / sizes['weights']:.2f}"
