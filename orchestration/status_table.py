"""`nlrl status`: the statuses of runs for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from nlrl.orchestration.logs import visible
from nlrl.orchestration.run_status import Status

COLOURS = {"running": "green", "finished": "cyan", "stalled": "yellow", "failed": "red", "stopped": "yellow"}


def status_table(found: Sequence[Status]) -> RenderableType:
    """One run in full, several as one row each."""
    return _full(found[0]) if len(found) == 1 else _rows(found)


def _full(status: Status) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in (line for line in _lines(status) if line[1]):
        table.add_row(Text(name, style="bold"), _text(value, COLOURS.get(status.state) if name == "state" else None))
    return table


def _rows(found: Sequence[Status]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in ("run", "state", "iteration", "stage", "left", "tokens/s", "last figures", "disk"):
        table.add_column(header)
    for one in found:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in list(one.figures.items())[:2])
        row = (one.run, one.state, _iteration(one), _stage(one), duration(one.run_seconds_left))
        table.add_row(*map(_text, (*row, _rounded(one.tokens_per_second), figures, size(one.bytes))))
    return table


def _lines(s: Status) -> Iterator[tuple[str, str]]:
    yield "run", s.run
    yield "state", _state(s)
    if s.name:
        yield "config", ", ".join(part for part in (s.name, s.method, s.game, s.model) if part)
    yield "iteration", _iteration(s)
    yield "stage", _stage(s)
    yield "left", _left(s)
    yield "tokens/s", _rounded(s.tokens_per_second)
    yield "requests", _requests(s)
    yield "last figures", ", ".join(f"{name} {value:.3f}" for name, value in s.figures.items())
    yield "seconds by stage", ", ".join(f"{name} {value:.1f}" for name, value in s.seconds.items())
    yield "failures", "" if s.failures_per_turn is None else f"{s.failures_per_turn:.1%} of turns could not be read"
    yield "committed", f"{', '.join(s.committed)}; {s.records:,} records in all" if s.committed else _nothing(s)
    yield "dashboard", s.dashboard
    yield "job", s.job
    yield "metrics", ", ".join(s.metrics)
    yield "disk", size(s.bytes) if s.state != "no run" else ""
    yield "error", s.error
    yield "resume with", s.resume
    for problem in s.problems:
        yield "problem", problem


def _nothing(s: Status) -> str:
    return "" if s.state == "no run" else f"{s.records:,} records before this iteration" if s.records else "nothing yet"


def _state(s: Status) -> str:
    who = f", process {s.process} on {s.host}" if s.process else ""
    since = "" if s.started is None else f", since {_when(s.started)}"
    known = s.heartbeat is not None and s.state != "finished"
    beat = f", last heartbeat {duration(s.heartbeat)} ago" if known else ""
    return f"{s.state}{who}{since if who else ''}{beat}"


def _iteration(s: Status) -> str:
    if s.iteration is None:
        return ""
    return f"{s.iteration} of {s.iterations}" if s.iterations is not None else str(s.iteration)


def _stage(s: Status) -> str:
    if not s.stage:
        return ""
    of = f" of {s.wanted:,}" if s.wanted is not None else ""
    done = "" if s.done is None else f": {'' if s.exact else 'about '}{s.done:,}{of} done"
    pace = "" if s.per_second is None else f", {s.per_second:,.3g} a second"
    took = "" if s.stage_seconds is None else f", for {duration(s.stage_seconds)}"
    part = f" ({s.part})" if s.part else ""
    return f"{s.stage}{part}{done}{pace}{took}"


def _left(s: Status) -> str:
    stage = f"stage {duration(s.seconds_left)}" if s.seconds_left is not None else ""
    run = f"run {duration(s.run_seconds_left)}" if s.run_seconds_left is not None else ""
    return ", ".join(part for part in (stage, run) if part)


def _requests(s: Status) -> str:
    if not s.models.get("requests"):
        return ""
    total, cached, failed = (s.models.get(name, 0.0) for name in ("requests", "cached_requests", "failed_requests"))
    return f"{total:,.0f}, {cached / total:.1%} from memory, {failed:,.0f} failed"


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _when(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return "no time there is"


def duration(seconds: float | None) -> str:
    """`2 h 5 min`, `3 min 20 s`, `7 s`."""
    if seconds is None or not 0 <= seconds < 1e10:
        return ""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def size(count: int) -> str:
    """Bytes as people write them: `3.2 MB`."""
    value, units = float(count), ("B", "kB", "MB", "GB", "TB")
    unit = 0
    while value >= 1000 and unit < len(units) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {units[unit]}"


def _text(value: str, style: str | None = None) -> Text:
    return Text(visible(value), style=style or "")
