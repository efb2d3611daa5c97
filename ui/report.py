"""A run as a static page to share: one HTML file that needs nothing else, and its figures as SVG and PNG files.

Everything that the run wrote is escaped, nothing is fetched, and the page has no scripts.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_atomic
from nlrl.orchestration.run_folder import CONFIG_FILE
from nlrl.ui import calibration, charts, learning, library, reading

PAGE_FILE = "index.html"
DIARY_FILE = "evaluations.md"
WIDTH, HEIGHT = 640, 280
"""Pixels of a figure, without its axes and legend."""
INK = "#808080"
"""The grey of axes and words, which does on light and dark pages."""
MOST = 400_000
"""Characters of a run's diary that a page keeps."""


class Figure(NamedTuple):
    """A picture of a report."""

    name: str
    """Of its files."""
    title: str
    caption: str
    chart: Any


def write_report(run: Path, out: Path) -> Path:
    """Writes `out`/index.html, `out`/NAME.svg and `out`/NAME.png; returns the page.

    Raises:
        NLRLError: not a run, or the disk refused.
    """
    if not (run / CONFIG_FILE).is_file():
        raise NLRLError(f"{run} is not a run's folder (no {CONFIG_FILE} in it)")
    found = library.read_run(run.resolve().name, run)
    drawn = draw(found)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for figure, svg in drawn:
            write_atomic(out / f"{figure.name}.svg", svg)
            write_atomic(out / f"{figure.name}.png", picture(figure.chart, "png"))
        write_atomic(out / PAGE_FILE, page(found, drawn).encode(errors="replace"))
    except OSError as error:
        raise NLRLError(f"{out}: the report cannot be written: {error.strerror or error}") from error
    return out / PAGE_FILE


def static_page(run: library.Run) -> bytes:
    """The page of a run, as a file."""
    return page(run, draw(run)).encode(errors="replace")


def draw(run: library.Run) -> list[tuple[Figure, bytes]]:
    """The figures of a run and their SVG."""
    return [(figure, picture(figure.chart, "svg")) for figure in figures(run)]


# -- figures -----------------------------------------------------------------------------------------------------------
def figures(run: library.Run) -> list[Figure]:
    """The figures for which the run has numbers."""
    return [*_win_figures(run), *_curve_figures(run), *_calibration_figures(run), *_cost_figures(run)]


def picture(chart: Any, form: Literal["svg", "png"]) -> bytes:
    """A chart as a file: SVG of text that follows its page, PNG on white at twice the size."""
    styled = chart.properties(width=WIDTH, height=HEIGHT).configure(
        background="transparent" if form == "svg" else "white"
    )
    styled = styled.configure_axis(labelColor=INK, titleColor=INK, gridColor=f"{INK}33", domainColor=INK, tickColor=INK)
    styled = styled.configure_legend(labelColor=INK, titleColor=INK).configure_view(stroke=f"{INK}55")
    buffer = io.BytesIO() if form == "png" else io.StringIO()
    styled.save(buffer, format=form, scale_factor=2 if form == "png" else 1)
    content = buffer.getvalue()
    return content.encode() if isinstance(content, str) else content


def _win_figures(run: library.Run) -> Iterator[Figure]:
    shares = reading.shares(run.metrics)
    for how in dict.fromkeys(share.how for share in shares):
        chosen = [share for share in shares if share.how == how and share.result == "win"]
        if chosen:
            best = learning.optima(run.path, list(dict.fromkeys(share.opponent for share in chosen)))
            words = "every game of the greedy actor, weighted" if how == "exact" else f"{how} play, 95% intervals"
            yield Figure(f"win_rate_{_slug(how)}", f"Win rate ({how})", words, charts.wins({run.name: chosen}, best))


def _curve_figures(run: library.Run) -> Iterator[Figure]:
    for name, title, axis, caption, points in (
        ("exploitability", "Exploitability", "return", "what a best-responding opponent wins", learning.exploitability),
        ("ratings", "Ratings", "rating", "of the league's members, 95% intervals", learning.ratings),
        ("verdict_errors", "Verdicts against exact values", "error", "0 is perfect", learning.verdict_errors),
        ("failures", "Unreadable answers and forfeits", "share", "95% intervals", learning.failures),
    ):
        if found := points(run.metrics):
            yield Figure(name, title, caption, charts.curves({run.name: found}, axis))


def _calibration_figures(run: library.Run) -> Iterator[Figure]:
    bars = learning.reliability(run.path)
    if bars:
        last = max(bars)
        caption = f"iteration {last}; on the dashed line a verdict means what it says"
        yield Figure("reliability", "Reliability of the critic's verdicts", caption, charts.reliability(bars[last]))
    last = run.progress.iteration
    found = calibration.calibration(run.path, last) if last else None
    if found and found.phases:
        caption = f"iteration {last}, {len(found.judged)} verdicts against exact values ({found.against})"
        yield Figure("brier_by_phase", "Brier score by phase of the game", caption, charts.phases(found.phases))


def _cost_figures(run: library.Run) -> Iterator[Figure]:
    spent = learning.spent(run.path, run.metrics)
    for unit in dict.fromkeys(row.unit for row in spent):
        yield Figure(f"spent_{_slug(unit)}", f"Spent: {unit}", "by stage", charts.costs(spent, unit))


def _slug(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower())


# -- the page ----------------------------------------------------------------------------------------------------------
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #8885; padding: .25rem .6rem; text-align: left; vertical-align: top; }
figure { margin: 2rem 0; } figure svg { max-width: 100%; height: auto; }
figcaption, .note { opacity: .75; font-size: .9rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8885; padding: .6rem; }
"""


def page(run: library.Run, drawn: Sequence[tuple[Figure, bytes]]) -> str:
    """The page's HTML.

    Args:
        drawn: figures and their SVG.
    """
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{_safe(run.name)}</title><style>{_STYLE}</style></head><body>",
            f"<h1>{_safe(run.name)}</h1>",
            *_summary(run),
            *(_shown(figure, svg) for figure, svg in drawn),
            *_learning(run),
            *_texts(run),
            "</body></html>\n",
        ]
    )


def _summary(run: library.Run) -> Iterator[str]:
    facts: dict[str, Any] = {"state": run.progress.state, "iterations": run.progress.words}
    facts |= {name: run.config[name] for name in ("game.name", "method", "model.name", "seed") if name in run.config}
    facts |= {name: f"{value:.4f}" for name, value in run.figures.items()}
    yield _table(["", ""], facts.items())
    if run.problem:
        yield f'<p class="note">Not everything could be read: {_safe(run.problem)}</p>'
    if not run.metrics:
        yield '<p class="note">No metrics yet: they are written after each iteration.</p>'


def _shown(figure: Figure, svg: bytes) -> str:
    words = f"{_safe(figure.caption)} ({_safe(figure.name)}.svg, {_safe(figure.name)}.png)"
    return f"<h2>{_safe(figure.title)}</h2><figure>{svg.decode()}<figcaption>{words}</figcaption></figure>"


def _learning(run: library.Run) -> Iterator[str]:
    shares = reading.shares(run.metrics)
    for how in dict.fromkeys(share.how for share in shares):
        rows = reading.learning_table([share for share in shares if share.how == how])
        yield f"<h2>Results ({_safe(how)})</h2>" + _table(list(rows[0]), (row.values() for row in rows))


def _texts(run: library.Run) -> Iterator[str]:
    diary = run.path / DIARY_FILE
    if diary.is_file():
        words = diary.read_text(errors="replace")[:MOST]
        yield f"<h2>Diary</h2><details><summary>{DIARY_FILE}</summary><pre>{_safe(words)}</pre></details>"
    config = (run.path / CONFIG_FILE).read_text(errors="replace")
    yield f"<h2>Config</h2><details><summary>{CONFIG_FILE}</summary><pre>{_safe(config)}</pre></details>"


def _table(headers: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    head = "".join(f"<th>{_safe(cell)}</th>" for cell in headers)
    body = "".join(f"<tr>{''.join(f'<td>{_safe(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if any(headers) else ''}{body}</table>"


def _safe(value: Any) -> str:
    """Text as text: no markup, no control characters but line breaks, and addresses that nobody can click."""
    return html.escape(re.sub(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", str(value)))
