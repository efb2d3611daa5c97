"""What the viewer shows of a run, read from its folder. A run that is being written, torn or empty reads as far as it
goes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.orchestration.records import Record, record_files
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder

Stamp = tuple[tuple[str, int, int], ...]
RESULTS = ("win", "draw", "loss", "forfeit")

_NAMES = f"(?P<opponent>.+)/(?P<result>{'|'.join(RESULTS)})"
_SAMPLED = re.compile(rf"evaluation/sampled/(?P<how>\w+)/{_NAMES}/(?P<field>share|low|high)")
_EXACT = re.compile(rf"evaluation/(?P<how>exact)/against/{_NAMES}")


class Share(NamedTuple):
    """How often games against one opponent end in one way, after one iteration."""

    iteration: int
    how: str
    """"exact" (all games, greedy), or sampled games: "greedy", "sampled"."""
    opponent: str
    result: str
    share: float
    low: float
    high: float
    """Ends of the 95% interval; both equal `share` where it is exact."""


def find_runs(folder: Path) -> list[Path]:
    """Run folders in `folder`: itself, its children and theirs."""
    return sorted({path.parent for depth in ("", "*/", "*/*/") for path in folder.glob(depth + CONFIG_FILE)})


def stamp(paths: Sequence[Path]) -> Stamp:
    """Changes whenever one of the files does."""
    stats = [(path, path.stat()) for path in paths if path.is_file()]
    return tuple((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in stats)


def shares(metrics: Sequence[Mapping[str, Any]]) -> list[Share]:
    """The learning table, from what `read_metrics` gives."""
    return [share for entry in metrics for share in _shares_of(entry["step"], entry["metrics"])]


def _shares_of(iteration: int, numbers: Mapping[str, Any]) -> Iterator[Share]:
    found: dict[tuple[str, str, str], dict[str, float]] = {}
    for name, value in numbers.items():
        match = _SAMPLED.fullmatch(name) or _EXACT.fullmatch(name)
        if match and isinstance(value, int | float):
            fields = match.groupdict()
            place = found.setdefault((fields["how"], fields["opponent"], fields["result"]), {})
            place[fields.get("field") or "share"] = float(value)
    for (how, opponent, result), v in found.items():
        if "share" in v:
            low, high = v.get("low", v["share"]), v.get("high", v["share"])
            yield Share(iteration, how, opponent, result, v["share"], low, high)


def learning_table(rows: Sequence[Share]) -> list[dict[str, Any]]:
    """One line an iteration and opponent, one column a result, intervals in brackets."""
    lines: dict[tuple[int, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (row.opponent, row.iteration)):
        line = lines.setdefault(
            (row.iteration, row.opponent),
            {"iteration": row.iteration, "opponent": row.opponent, **dict.fromkeys(RESULTS, "")},
        )
        interval = f" [{row.low:.3f}, {row.high:.3f}]" if row.high > row.low else ""
        line[row.result] = f"{row.share:.3f}{interval}"
    return list(lines.values())


def stages(run: Path) -> dict[str, Path]:
    """Stages that have records, `001/rollout` -> folder."""
    found = {f"{stage.iteration:03d}/{stage.name}": stage.dir for stage in RunFolder(run).stages()}
    return {name: folder for name, folder in found.items() if record_files(folder)}


def read_stage(folder: Path) -> list[Record]:
    """All whole records of a stage.

    Raises:
        NLRLError: a record file is damaged before its last line.
    """
    iteration, name = int(folder.parent.name), folder.name
    return list(RunFolder(folder.parents[2]).stage(iteration, name).records())


def game_spec(run: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and parameters of the run's game; None where its config does not say."""
    try:
        game = tomllib.loads((run / CONFIG_FILE).read_text())["game"]
        return game["name"], game.get("params", {})
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def harmless(markdown: str) -> str:
    """Markdown of a run in which a model's words make no HTML, images, links, formulas or colours. The run's own
    headings, tables, quotes and fenced boards stay."""
    lines, fenced = [], False
    for line in markdown.splitlines():
        fence = line.startswith("```")
        fenced ^= fence
        lines.append(line if fenced or fence else _escape(line))
    return "\n".join(lines)


def _escape(line: str) -> str:
    quote, rest = ("> ", line[2:]) if line.startswith("> ") else ("", line)
    rest = re.sub(r"\\(?!\|)|[<>\[\]$`~]", r"\\\g<0>", rest)
    return quote + re.sub(r"://|www\.|@", "\u200b\\g<0>", rest)  # addresses become links by themselves
