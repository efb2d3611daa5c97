"""`nlrl import-nlrl`: the authors' Breakthrough data as records of ours.

    OUT/games.jsonl         kind "game": finished games, seen from black's seat
    OUT/lookaheads.jsonl    kind "lookahead": as method `value_td` keeps them
    OUT/labels.jsonl        kind "label": the mean result, from black's view and from the mover's
    OUT/states.jsonl        kind "state": every position of the above in which somebody has to move, once
    OUT/examples.jsonl      kind "example": prompts for V and the evaluations that answer them, to fine-tune on
    OUT/import.json         what was read, kept and refused, and why

Every line is checked by the rules (`authors_data`); one that does not fit is refused whole and counted by its reason.
(An evaluation within a look-ahead that cannot be read is refused alone.) Equal lines are one record. An evaluation
becomes an example in our own prompt for the position, or, with `prompts` "theirs", in the messages that stand before it
in the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import orjson

from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.language_model import Message
from nlrl.envs import make_from_spec
from nlrl.envs.breakthrough import Breakthrough
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import write_atomic, write_json_atomic
from nlrl.orchestration.authors_data import AuthorsData, Label, LookAhead, Text, Unfit
from nlrl.orchestration.fits import TextExample
from nlrl.orchestration.records import Record, read_records, record_key

Prompts = Literal["ours", "theirs"]
FILES = {
    "game": "games.jsonl",
    "lookahead": "lookaheads.jsonl",
    "label": "labels.jsonl",
    "state": "states.jsonl",
    "example": "examples.jsonl",
}
REPORT = "import.json"
SHOWN = 3
"""Refused lines that the report names for each reason."""


def import_nlrl(data: Path, out: Path, game: str, prompts: Prompts = "ours", style: str = "instruct") -> dict[str, Any]:
    """Reads a file, or every .jsonl and .json file below a folder; returns the report, which is written, too.

    Raises:
        NLRLError: nothing there, another game, or no line that could be used.
    """
    files = [data] if data.is_file() else sorted((*data.rglob("*.jsonl"), *data.rglob("*.json")))
    if not files:
        raise NLRLError(f"{data}: no .jsonl or .json file there")
    board = make_from_spec(game)
    if not isinstance(board, Breakthrough):
        raise NLRLError(f"the authors' data is of Breakthrough, not of {game}")
    importer = Importer(board, prompts, style)
    for path in files:
        importer.read(path, str(path.relative_to(data)) if path != data else path.name)
    report = importer.report()
    if not any(report["kept"].values()):
        raise NLRLError(f"{data}: none of {sum(report['lines'].values())} lines could be used: {report['refused']}")
    out.mkdir(parents=True, exist_ok=True)
    for kind, name in FILES.items():
        found = sorted(importer.records[kind].values(), key=lambda record: record["key"])
        write_atomic(out / name, b"".join(orjson.dumps(record) + b"\n" for record in found))
    write_json_atomic(out / REPORT, report)
    return report


def examples(folder: Path) -> list[TextExample]:
    """What `import_nlrl` left to fine-tune on.

    Raises:
        NLRLError: no such file.
    """
    return [
        TextExample(tuple(Message(**message) for message in record["messages"]), record["completion"])
        for record in read_records(folder / FILES["example"])
    ]


class Importer:
    """Collects records, and reasons against the others."""

    def __init__(self, game: Breakthrough, prompts: Prompts, style: str):
        self.records: dict[str, dict[str, Record]] = {kind: {} for kind in FILES}
        self._game, self._data, self._prompts = game, AuthorsData(game), prompts
        self._v = Roles(game, style).v
        self._lines, self._refused = Counter[str](), Counter[str]()
        self._shown: dict[str, list[str]] = {}
        self._repeated, self._where = 0, ""

    def read(self, path: Path, name: str) -> None:
        """Takes in a file's lines."""
        for number, value in _values(path):
            self._lines[name] += 1
            self._where = f"{name}:{number}"
            try:
                if isinstance(value, Unfit):
                    raise value
                self._take(value)
            except Unfit as unfit:
                self._refuse(unfit)

    def report(self) -> dict[str, Any]:
        return {
            "lines": dict(self._lines),
            "kept": {kind: len(found) for kind, found in self.records.items()},
            "repeated": self._repeated,
            "refused": dict(sorted(self._refused.items())),
            "refused_lines": self._shown,
        }

    def _refuse(self, unfit: Unfit) -> None:
        self._refused[unfit.reason] += 1
        shown = self._shown.setdefault(unfit.reason, [])
        if len(shown) < SHOWN:
            shown.append(f"{self._where}: {unfit.detail}" if unfit.detail else self._where)

    def _take(self, value: Any) -> None:
        kind = self._data.kind(value)
        if kind == "trajectory":
            self._take_game(value)
        elif kind == "lookahead":
            self._take_look_ahead(self._data.lookahead(value))
        elif kind == "label":
            self._take_label(self._data.label(value))
        elif kind == "state":
            self._take_states([self._data.position(value["serializad_state"])])
        elif kind == "chat":
            self._take_text(self._data.chat(value))
        else:
            self._take_text(self._data.target(value))

    def _take_game(self, value: dict[str, Any]) -> None:
        line = self._data.trajectory(value)
        start = self._game.to_text(line.states[0])
        self._add("game", (start, *line.actions), {
            "game": self._game.spec,
            "start": start,
            "seat": 0,
            "opponent": "imported",
            "actions": list(line.actions),
            "result": "win" if self._game.returns(line.states[-1])[0] > 0 else "loss",
            "turns": [],
        })  # fmt: skip
        self._take_states(line.states[:-1])

    def _take_look_ahead(self, found: LookAhead) -> None:
        ends = [line.states[-1] for line in found.lines]
        is_open = [not self._game.is_terminal(end) for end in ends]
        lines = [
            {"actions": list(line.actions), "open": open_}
            for line, open_ in zip(found.lines, is_open, strict=True)
        ]  # fmt: skip
        state = self._game.to_text(found.state)
        parts = tuple(tuple(line["actions"]) for line in lines)
        self._add("lookahead", (state, *parts), {"state": state, "policy": "imported", "lines": lines})
        self._take_states(s for line in found.lines for s in line.states if not self._game.is_terminal(s))
        for end, text, open_ in zip(ends, found.evaluations, is_open, strict=True):
            if text and open_:
                try:
                    self._take_text(self._data.evaluation(end, text))
                except Unfit as unfit:
                    self._refuse(unfit)

    def _take_label(self, label: Label) -> None:
        state = self._game.to_text(label.state)
        mover = label.black if label.state.player == 0 else -label.black
        self._add("label", (state,), {"state": state, "black": label.black, "value": mover})
        self._take_states([label.state])

    def _take_text(self, text: Text) -> None:
        if self._prompts == "theirs" and not text.messages:
            raise Unfit("no messages of theirs")
        ours = [(m.role, m.content) for m in self._v.messages(StateInput(text.state))]
        asked = list(text.messages) if self._prompts == "theirs" else ours
        state = self._game.to_text(text.state)
        self._add("example", (state, text.text, self._prompts), {
            "role": "v",
            "state": state,
            "messages": [{"role": role, "content": content} for role, content in asked],
            "completion": text.text,
            "verdict": 1.0 if text.advantage == text.state.player else -1.0,
        })  # fmt: skip

    def _take_states(self, states: Any) -> None:
        for state in states:
            text = self._game.to_text(state)
            self._add("state", (text,), {"state": text, "player": state.player}, counts=False)

    def _add(self, kind: str, parts: tuple[Any, ...], fields: Record, counts: bool = True) -> None:
        key = record_key("imported", kind, self._game.spec, *parts)
        self._repeated += counts and key in self.records[kind]
        self.records[kind].setdefault(key, {"schema": 1, "kind": kind, "key": key} | fields)


def _values(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of a file with a value a line, or with one list of them; `Unfit` where a line is no JSON."""
    content = path.read_bytes()
    if path.suffix == ".json":
        try:
            value = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            yield 1, Unfit("no JSON", str(error))
            return
        listed = isinstance(value, list) and not (value and isinstance(value[0], dict) and "role" in value[0])
        yield from enumerate(value if listed else [value], 1)
        return
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield number, Unfit("no JSON", str(error))


def table(report: dict[str, Any]) -> Any:
    """The report, for a terminal."""
    from rich.table import Table

    found = Table("what", "count", title=f"{sum(report['lines'].values()):,} lines")
    for kind, count in report["kept"].items():
        found.add_row(FILES[kind], f"{count:,}")
    found.add_row("repeated", f"{report['repeated']:,}")
    for reason, count in report["refused"].items():
        found.add_row(f"refused: {reason}", f"{count:,}")
    return found
