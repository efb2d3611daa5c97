"""Retrieval and outliers on the page of the Differential Transformer."""

from __future__ import annotations

from statistics import mean

from nlrl.benchmarks.replications.experiment import Report
from nlrl.benchmarks.replications.figures import Section, lines
from nlrl.benchmarks.replications.summary import Spread, Summary

KINDS = {"scores": "attention logits", "hidden": "hidden states"}


def needle_section(report: Report) -> Section:
    """Accuracy by needles and questions in the table, by depth in the figure."""
    summary = Summary(report)
    context = summary.contexts[0]
    found = {arm: summary.measured(arm, context, "needles") for arm in summary.labels}
    cells = [(c["needles"], c["asked"]) for probes in found.values() for p in probes for c in p["cells"]]
    kinds = sorted(set(cells))
    rows = [["model", *(f"{n} needle{'s' * (n > 1)}, {r} asked" for n, r in kinds)]]
    for arm, probes in found.items():
        rows.append([summary.labels[arm], *(f"{_accuracy(probes, kind):.2f}" for kind in kinds)])
    records = [
        {"arm": summary.labels[arm], "kind": _kind(*kind), "depth": depth, "accuracy": accuracy, "seed": 0}
        for arm, probes in found.items()
        for kind in kinds
        for depth, accuracy in _by_depth(probes, kind).items()
    ]  # fmt: skip
    chart = lines(
        records, ("depth", "depth of the first asked needle"), ("accuracy", "questions answered rightly"),
        list(summary.labels.values()), ("kind", ""), y_range=(0, 1), points=True,
    )  # fmt: skip
    text = (
        f"Magic numbers of cities in held-out text, {context:,} tokens long; a question is right if all three digits "
        "are. Mean over depths, and least to most over seeds; the figure has means over seeds."
    )
    return Section("Needles", text, rows, {"diff_needles": ("Accuracy by depth", chart)})


def outlier_section(report: Report) -> Section:
    """The largest absolute values, as the paper's table lists them."""
    summary = Summary(report)
    context = summary.contexts[0]
    rows: list[list[str]] = []
    for kind, title in KINDS.items():
        for arm, label in summary.labels.items():
            found = [measured[kind] for measured in summary.measured(arm, context, "outliers")]
            if not found:
                continue
            tops = [n for n in found[0]["top"] if all(n in f["top"] for f in found)]
            if not rows:
                rows.append(["values", "model", *(f"top {int(n):,}" for n in tops), "median"])
            values = [mean(f["top"][n] for f in found) for n in tops]
            rows.append(
                [title, label, *(f"{value:.2f}" for value in values), f"{mean(f['median'] for f in found):.3f}"]
            )
    text = (
        "The n-th largest absolute values over held-out text, and the median; means over seeds. Attention logits are "
        "those of every map before the softmax."
    )
    return Section("Outliers", text, rows)


def _kind(needles: int, asked: int) -> str:
    return f"{needles} needles, {asked} asked" if needles > 1 else "1 needle"


def _accuracy(probes: list[dict], kind: tuple[int, int]) -> Spread:
    """Means over depths, by seed."""
    return Spread(tuple(mean(c["accuracy"] for c in p["cells"] if (c["needles"], c["asked"]) == kind) for p in probes))


def _by_depth(probes: list[dict], kind: tuple[int, int]) -> dict[float, float]:
    """Means over seeds."""
    cells = [c for p in probes for c in p["cells"] if (c["needles"], c["asked"]) == kind]
    depths = sorted({c["depth"] for c in cells})
    return {depth: mean(c["accuracy"] for c in cells if c["depth"] == depth) for depth in depths}
