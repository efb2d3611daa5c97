"""Lines as they come: printed at once, and all of them in one JSON file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from nlrl.benchmarks.figures import machine
from nlrl.benchmarks.kernels.table import versions


@dataclass(frozen=True)
class Line:
    """One figure, or why there is none."""

    part: str
    model: str
    what: str
    value: float | None = None
    """None: there is none, see `note`."""
    unit: str = "tokens/s"
    beside: dict[str, float] = field(default_factory=dict)
    """The same by other measures, e.g. "MFU": 0.4."""
    target: str = ""
    met: bool | None = None
    note: str = ""
    failed: bool = False

    def __str__(self) -> str:
        number = f"{self.value:,.0f} {self.unit}" if self.value is not None else "FAILED" if self.failed else "left out"
        beside = "  ".join(f"{name} {value:.3g}" for name, value in self.beside.items())
        verdict = "" if self.met is None else f"{self.target}: {'met' if self.met else 'MISSED'}"
        note = f"({self.note})" if self.note else ""
        parts = (f"{self.part:8}{self.model:21}{self.what:34}{number:>20}", beside, verdict, note)
        return "  ".join(part for part in parts if part)


class Report:
    """What was measured so far."""

    def __init__(self, file: Path | None, header: dict[str, Any], judges: bool = True):
        """Args: file: written anew with every line; header: what else it says; judges: False for toys, of which
        nothing is asked."""
        self.file, self.judges = file, judges
        self.lines: list[Line] = []
        self.header = {"machine": machine(), "versions": versions(), "command": " ".join(sys.argv)} | header

    def add(self, line: Line) -> None:
        line = line if self.judges else replace(line, target="", met=None)
        self.lines.append(line)
        print(line, flush=True)
        if self.file is not None:
            told = self.header | {"lines": [asdict(one) for one in self.lines]}
            self.file.write_text(json.dumps(told, indent=1) + "\n")

    @contextmanager
    def attempt(self, part: str, model: str, what: str, expected: type[Exception] | tuple = ()) -> Iterator[None]:
        """What fails inside is a line, and no more. expected: errors that only say that there is no such figure."""
        try:
            yield
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            failed = not isinstance(error, expected)
            self.add(Line(part, model, what, note=f"{type(error).__name__}: {reason}", failed=failed))
