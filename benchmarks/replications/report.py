"""Pages of what came out: `report FILE... --docs FOLDER` writes FOLDER/CLAIM.md and its figures, from the file."""

from __future__ import annotations

import inspect
from pathlib import Path
from statistics import mean

from nlrl.benchmarks.replications import claims
from nlrl.benchmarks.replications.experiment import Report
from nlrl.benchmarks.replications.figures import Section, lines, write_png
from nlrl.benchmarks.replications.summary import Spread, Summary

WAYS = {"eager": "eager", "graph": "CUDA graph", "compiled": "compiled"}


def write(file: Path, docs: Path) -> Path:
    """The page of one claim's file.

    Raises:
        NLRLError: the file is none of ours; pictures cannot be made.
    """
    report = Report.read(file)
    module = claims.module(report.claim)
    sections = [*common_sections(report), *getattr(module, "sections", lambda _: [])(report)]
    docs.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for name, (_, chart) in section.figures.items():
            write_png(chart, docs / f"{name}.png")
    page = docs / f"{report.claim.rpartition('.')[2]}.md"
    command = f"python -m nlrl.benchmarks.replications report {file} --docs {docs}"
    note = f"<!-- Written by `{command}`; change the program, not this page. -->"
    parts = [note, _head(inspect.getdoc(module) or report.claim), *(section.markdown() for section in sections)]
    page.write_text("\n\n".join([*parts, _how(report, command)]) + "\n")
    return page


def common_sections(report: Report) -> list[Section]:
    """What every claim has: losses, steps and seconds to equal loss, learning rates."""
    summary = Summary(report)
    return [_losses(summary), _equal_loss(summary), _step_times(summary), _learning_rates(summary)]


# -- sections ----------------------------------------------------------------------------------------------------------
def _losses(summary: Summary) -> Section:
    rows = [["model", "context", "parameters", "learning rate", "validation loss", "less the control's"]]
    for context, arm, label in _cells(summary):
        runs = summary.runs(arm, context)
        gap = "" if arm == summary.control else f"{summary.gaps(arm, context):+.4f}"
        edge = " (edge)" if summary.at_edge(arm, context) else ""
        rate = f"{summary.best_lr(arm, context):g}{edge}"
        rows.append([label, f"{context:,}", f"{runs[0].params:,}", rate, f"{summary.losses(arm, context):.4f}", gap])
    text = (
        "Nats a token of held-out text: mean, and least to most, over "
        f"{_count(len(summary.report.settings['seeds']), 'seed')}. Differences are between runs of the same seed, "
        'which read the same rows. "Edge": the best learning rate is the smallest or largest tried, so a better one '
        "may lie beyond."
    )
    return Section("Loss", text, rows, {f"{_stem(summary)}_loss": ("Validation loss by tokens", _curves(summary))})


def _equal_loss(summary: Summary) -> Section:
    rows = [["model", "context", "times fewer steps", "time of a step", "times fewer seconds", "seconds"]]
    for context, arm, label in _cells(summary):
        steps = Spread((1.0,)) if arm == summary.control else summary.speed(arm, context)
        ratio, way = _ratio(summary, arm, context)
        ours = summary.timing(arm, context)
        seconds = Spread(tuple(value / ratio for value in steps.values)) if ratio else Spread(())
        control, total = summary.timing(summary.control, context), summary.report.settings["steps"]
        taken = "-"
        if ours and control and seconds.values and min(steps.values) >= 1:
            taken = f"{total * getattr(control, way) / mean(seconds.values):.1f}"
        rows.append([label, f"{context:,}", f"{steps:.2f}", f"{ratio:.2f}" if ratio else "-", f"{seconds:.2f}", taken])
    text = (
        "Steps in which a model reaches the control's final loss, as a factor: 2 is half as many. Below 1: it never "
        "does, and the control reaches the model's final loss in that share of the steps. The learning rate of a run "
        "is still high at that point, so a shorter run of its own would get there sooner. Times of a step are relative "
        "to the control's, in the fastest way measured; seconds are steps times that time, where every seed reaches "
        "the loss."
    )
    return Section("Steps and seconds to equal loss", text, rows)


def _step_times(summary: Summary) -> Section:
    rows = [["model", "context", *(f"{title}, ms" for title in WAYS.values())]]
    for context, arm, label in _cells(summary):
        timing, cells = summary.timing(arm, context), []
        for way in WAYS:
            seconds, ratio = getattr(timing, way, None), summary.step_time(arm, context, way)
            cells.append(f"{1e3 * seconds:.2f} ({ratio:.2f}x)" if seconds and ratio else "-")
        rows.append([label, f"{context:,}", *cells])
    tokens = summary.report.settings["batch_tokens"]
    text = f"A training step of {tokens:,} tokens, alone on the device: medians, and how many times the control's."
    return Section("Time of a step", text, rows)


def _learning_rates(summary: Summary) -> Section:
    rows = [["model", "context", "validation loss by learning rate"]]
    records = []
    for context, arm, label in _cells(summary):
        losses = summary.searched(arm, context)
        rows.append([label, f"{context:,}", ", ".join(f"{lr:g}: {_loss(loss)}" for lr, loss in losses.items())])
        records += [
            {"arm": label, "context": context, "lr": lr, "loss": loss, "seed": 0}
            for lr, loss in losses.items() if loss < float("inf")
        ]  # fmt: skip
    chart = lines(
        records, ("lr", "peak learning rate"), ("loss", "validation loss"), list(summary.labels.values()),
        ("context", "context"), log_x=True, y_range=_around_the_best(summary), points=True,
    )  # fmt: skip
    name = f"{_stem(summary)}_learning_rates"
    return Section("Learning rates", "The search, on the first seed.", rows, {name: ("Loss by learning rate", chart)})


def _curves(summary: Summary):
    records = [
        {"arm": label, "context": context, "tokens": (tokens or 0) / 1e6, "loss": loss, "seed": result.run.seed}
        for context, arm, label in _cells(summary)
        for result in summary.runs(arm, context)
        for _, tokens, _, loss in result.curve if loss is not None
    ]  # fmt: skip
    late = [record["loss"] for record in records if record["tokens"] * 1e6 >= 0.2 * summary.report.settings["tokens"]]
    return lines(
        records, ("tokens", "million tokens"), ("loss", "validation loss"), list(summary.labels.values()),
        ("context", "context"), y_range=_range(late),
    )  # fmt: skip


# -- page --------------------------------------------------------------------------------------------------------------
def _head(doc: str) -> str:
    first, _, rest = doc.partition("\n\n")
    title, _, claim = " ".join(first.split()).partition(":")
    claim = claim.strip()
    return "\n\n".join(part for part in (f"# {title}", claim[:1].upper() + claim[1:], " ".join(rest.split())) if part)


def _how(report: Report, command: str) -> str:
    settings = report.settings
    lines_ = ["## How", ""]
    lines_.append(
        f"{settings['steps']} steps of {settings['batch_tokens']:,} tokens a run; corpus of "
        f"{settings['corpus']['tokens']:,} tokens, sha256 `{settings['corpus']['sha256'][:16]}`. See "
        "[README.md](README.md)."
    )
    if report.missing:
        lines_.append(f"\nIncomplete: {_count(len(report.missing), 'known run')} of the protocol were not made.")
    for failed in (failed for session in report.sessions for failed in session.get("failed", ())):
        error = failed["error"].splitlines()[0]
        lines_.append(
            f"\nFailed: {failed['arm']}, context {failed['context']}, learning rate {failed['lr']:g}: {error}."
        )
    for session in report.sessions:
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        lines_.append(f"\n    {session['command']}\n\non {session['device']}, {session['machine']}, {versions}.")
    return "\n".join([*lines_, f"\n    {command}\n\nwrites this page."])


def _cells(summary: Summary):
    """(context, arm, label) of everything that was run."""
    for context in summary.contexts:
        for arm, label in summary.labels.items():
            if summary.runs(arm, context):
                yield context, arm, label


def _ratio(summary: Summary, arm: str, context: int) -> tuple[float | None, str]:
    """Of the fastest way that both were measured in."""
    for way in reversed(WAYS):
        if (ratio := summary.step_time(arm, context, way)) is not None:
            return ratio, way
    return None, ""


def _around_the_best(summary: Summary) -> tuple[float, float] | None:
    """What shows the best of every arm, and half a nat above."""
    found = [min(summary.searched(arm, context).values()) for context, arm, _ in _cells(summary)]
    found = [loss for loss in found if loss < float("inf")]
    return _range([*found, max(found) + 0.5]) if found else None


def _range(values: list[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = min(values), max(values)
    return low - 0.05 * (high - low), high + 0.05 * (high - low)


def _loss(loss: float) -> str:
    return f"{loss:.4f}" if loss < float("inf") else "diverged"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _stem(summary: Summary) -> str:
    return summary.report.claim.rpartition(".")[2]
