"""All games of some runs as one table: filters, order and pages are one SQL query over their files.

1. A *source* is a stage that holds games. Committed stages have rows to search in (`games.parquet`), of which DuckDB
   reads only the columns and row groups that a query needs; others (still written, or from before there were such
   files) are read from their JSONL lines, whole ones only, into memory.
2. A *row* is a game, without what was said in it: what was said is searched where it lies.
3. Every value of a filter is a parameter of the query, so a text searched for is never SQL.
"""

from __future__ import annotations

import csv
import io
import weakref
from collections.abc import Iterable, Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.parquet

from nlrl.orchestration.games_table import SCHEMA, games_table
from nlrl.orchestration.records import GAME_KINDS, GAMES_FILE, MANIFEST_FILE, record_files
from nlrl.orchestration.run_folder import RunFolder
from nlrl.ui.reading import read_stage, stamp

PAGE = 50
"""Rows of a page."""
COLUMNS = ("run", "iteration", "stage", "game", "seed", "seat", "opponent", "result", "length", "failures", "key")
"""Of a row; `value_error` follows where errors are given."""
SORTS = ("iteration", "run", "stage", "game", "seed", "seat", "opponent", "result", "length", "failures", "value_error")
CHOICES = ("run", "stage", "game", "seed", "seat", "opponent", "result")
"""Columns whose values a filter offers to choose from."""


class Source(NamedTuple):
    """A stage that holds games."""

    run: str
    stage: str
    """As `003/rollout`."""
    folder: Path
    seed: str = ""
    """The run's."""

    @property
    def iteration(self) -> int:
        return int(self.stage.partition("/")[0])

    @property
    def name(self) -> str:
        """How the query knows it: where its records are, or would be."""
        return str(self.folder / GAMES_FILE)


class Filters(NamedTuple):
    """Which games; an empty or None filter lets all through."""

    run: tuple[str, ...] = ()
    stage: tuple[str, ...] = ()
    """Names without the iteration, as `rollout`."""
    game: tuple[str, ...] = ()
    seed: tuple[str, ...] = ()
    seat: tuple[int, ...] = ()
    opponent: tuple[str, ...] = ()
    result: tuple[str, ...] = ()
    iterations: tuple[int, int] | None = None
    """First and last."""
    lengths: tuple[int, int] | None = None
    """Fewest and most moves."""
    forfeits: bool = False
    """Only games that somebody forfeited."""
    failures: bool = False
    """Only games with a reply that could not be read or was illegal at first."""
    least_error: float | None = None
    """Only games whose mean value error is at least this."""
    text: str = ""
    """What a reply contains, in whatever case."""


EVERY = Filters()
"""No filter."""


class Page(NamedTuple):
    """Some rows, by column, and how many games there are on all pages."""

    rows: list[dict[str, Any]]
    total: int


class Error(NamedTuple):
    """How far the values that a game's texts state are from the exact ones; see `nlrl.ui.value_errors`."""

    run: str
    stage: str
    key: str
    value_error: float


# -- sources -----------------------------------------------------------------------------------------------------------
def sources_of(name: str, run: Path, seed: str = "") -> list[Source]:
    """The stages of a run that hold games, or will."""
    stages = [(f"{stage.iteration:03d}/{stage.name}", stage.dir) for stage in RunFolder(run).stages()]
    return [Source(name, stage, folder, seed) for stage, folder in stages if _holds_games(folder)]


def source_stamp(source: Source) -> Any:
    """Changes whenever a source's records do."""
    return stamp([source.folder / GAMES_FILE, *record_files(source.folder)])


def _holds_games(folder: Path) -> bool:
    return (folder / GAMES_FILE).is_file() or any(map(_starts_with_a_game, record_files(folder)))


def _starts_with_a_game(path: Path) -> bool:
    """Whether one of the first records is a game: stages keep at most a few others beside their games."""
    try:
        with open(path, "rb") as file:
            head = [line for _, line in zip(range(40), file, strict=False)]
    except OSError:
        return False
    return any(b'"kind":"%s"' % kind.encode() in line for line in head for kind in GAME_KINDS)


# -- the index ---------------------------------------------------------------------------------------------------------
class GamesIndex:
    """The games of some sources. Opening it reads the footers of Parquet files, and all of JSONL files.

    Raises:
        NLRLError: a JSONL file is damaged before its last line.
    """

    def __init__(self, sources: Iterable[Source], errors: Iterable[Error] | None = None):
        self.sources = list(sources)
        self._has_errors = errors is not None
        self._connection = duckdb.connect()
        weakref.finalize(
            self, vars(self).clear
        )  # caches live until the end, at which DuckDB reports what is left of it
        rows = [
            {"source": s.name, "run": s.run, "stage": s.stage, "iteration": s.iteration, "run_seed": s.seed}
            for s in self.sources
        ]
        self._keep("sources", _table(rows, _SOURCE))
        self._keep("errors", _table([error._asdict() for error in errors or ()], _ERROR))
        self._connection.execute(f"CREATE VIEW records AS {self._records()}")
        self._connection.execute(f"CREATE VIEW games AS {_GAMES}")

    def count(self, filters: Filters = EVERY) -> int:
        """How many games there are."""
        where, params = _where(filters)
        return int(self._rows(f"SELECT count(*) AS n FROM games {where}", params)[0]["n"])

    def page(
        self, filters: Filters = EVERY, sort: str = "iteration", descending: bool = False, number: int = 0
    ) -> Page:
        """One page of the games that pass.

        Args:
            sort: one of `SORTS`; games that are equal in it come by run, stage and key.
            number: of the page, from 0.
        """
        where, params = _where(filters)
        games = f"SELECT {', '.join(self.columns)} FROM games {where}"  # read once, by all threads
        sql = f"WITH passed AS MATERIALIZED ({games}) SELECT *, (SELECT count(*) FROM passed) AS total FROM passed"
        rows = self._rows(f"{sql} {_order(sort, descending)} LIMIT {PAGE} OFFSET {PAGE * int(number)}", params)
        total = rows[0].pop("total") if rows else self.count(filters) if number else 0
        return Page([{name: row[name] for name in self.columns} for row in rows], int(total))

    def csv(self, filters: Filters = EVERY, sort: str = "iteration", descending: bool = False) -> str:
        """All games that pass, as CSV with a header; a cell never begins with what a spreadsheet would run."""
        out, names = io.StringIO(), self.columns
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(names)
        where, params = _where(filters)
        sql = f"SELECT {', '.join(names)} FROM games {where} {_order(sort, descending)}"
        for row in self._rows(sql, params):
            writer.writerow([_cell(row[name]) for name in names])
        return out.getvalue()

    def choices(self) -> dict[str, list[Any]]:
        """The values of each of `CHOICES`, sorted, stages without their iteration."""
        parts = ", ".join(f"list(DISTINCT {_named(name)}) AS {name}" for name in CHOICES)
        (found,) = self._rows(f"SELECT {parts} FROM games", [])
        return {name: sorted(value for value in found[name] or () if value is not None) for name in CHOICES}

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Least and greatest `iteration` and `length`; empty without games."""
        sql = "SELECT min(iteration) a, max(iteration) b, min(length) c, max(length) d FROM games"
        (found,) = self._rows(sql, [])
        a, b, c, d = (found[name] for name in "abcd")
        return {} if a is None else {"iteration": (a, b), "length": (c, d)}

    @property
    def columns(self) -> tuple[str, ...]:
        """Of a row."""
        return (*COLUMNS, "value_error") if self._has_errors else COLUMNS

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _keep(self, name: str, table: pa.Table) -> None:
        """A table of the database itself: what is only registered is not seen by cursors."""
        self._connection.register("given", table)
        self._connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given")
        self._connection.unregister("given")

    def _records(self) -> str:
        """SQL for the rows of all sources, with `source`."""
        parts, files = [], []
        for number, source in enumerate(self.sources):
            if has_rows(source.folder) and not has_magic(source.name):  # DuckDB would expand it
                files.append(_quoted(source.name))
            else:
                rows = games_table(read_stage(source.folder))
                self._keep(
                    f"rows{number}", rows.append_column("source", pa.array([source.name] * len(rows), pa.string()))
                )
                parts.append(f"SELECT * FROM rows{number}")
        if files:
            parts.append(f"SELECT * FROM read_parquet([{', '.join(files)}], filename = 'source')")
        if not parts:
            self._keep("nothing", games_table([]).append_column("source", pa.array([], pa.string())))
            parts.append("SELECT * FROM nothing")
        return " UNION ALL BY NAME ".join(parts)

    def _rows(self, sql: str, params: Sequence[Any]) -> list[dict[str, Any]]:
        cursor = self._connection.cursor()  # connections are not for several threads, and Streamlit has several
        try:
            found = cursor.execute(sql, list(params))
            names = [column[0] for column in found.description or ()]
            return [dict(zip(names, row, strict=True)) for row in found.fetchall()]
        finally:
            cursor.close()


_GAMES = """
SELECT s.run, s.iteration, s.stage, split_part(s.stage, '/', 2) AS stage_name, r.key, r.game,
    coalesce(r.seed, s.run_seed) AS seed, r.seat, r.opponent, r.result, r.forfeit, r.length, r.failures, r.said,
    e.value_error
FROM records r JOIN sources s USING (source) LEFT JOIN errors e ON (e.run, e.stage, e.key) = (s.run, s.stage, r.key)
"""
_SOURCE = pa.schema(
    [*((name, pa.string()) for name in ("source", "run", "stage", "run_seed")), ("iteration", pa.int64())]
)
_ERROR = pa.schema([*((name, pa.string()) for name in Error._fields[:3]), (Error._fields[3], pa.float64())])


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(row) for row in rows], schema)


def _named(column: str) -> str:
    return "stage_name" if column == "stage" else column


def _order(sort: str, descending: bool) -> str:
    if sort not in SORTS:
        raise ValueError(f"sort: {sort!r} is none of {', '.join(SORTS)}")
    return f"ORDER BY {sort} {'DESC' if descending else 'ASC'} NULLS LAST, run, stage, key"


def _where(filters: Filters) -> tuple[str, list[Any]]:
    """The SQL of filters and its parameters."""
    tests: list[tuple[str, list[Any]]] = [
        (f"{_named(name)} IN ({', '.join('?' * len(chosen))})", list(chosen))
        for name in CHOICES
        if (chosen := getattr(filters, name))
    ]
    for column, ends in (("iteration", filters.iterations), ("length", filters.lengths)):
        if ends is not None:
            tests.append((f"{column} BETWEEN ? AND ?", list(ends)))
    if filters.forfeits:
        tests.append(("forfeit", []))
    if filters.failures:
        tests.append(("failures > 0", []))
    if filters.least_error is not None:
        tests.append(("value_error >= ?", [filters.least_error]))
    if filters.text:
        tests.append(("contains(said, ?)", [filters.text.casefold()]))
    sql = " AND ".join(test for test, _ in tests)
    return (f"WHERE {sql}" if sql else ""), [param for _, params in tests for param in params]


# -- files -------------------------------------------------------------------------------------------------------------
def has_rows(folder: Path) -> bool:
    """Whether a stage has a file of rows that can be read and holds all its games; otherwise its records are read."""
    try:
        whole = (folder / MANIFEST_FILE).is_file()  # a killed commit may have left rows, and more games come
        return whole and pyarrow.parquet.read_schema(folder / GAMES_FILE).equals(SCHEMA)
    except (OSError, pa.ArrowInvalid):
        return False


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _cell(value: Any) -> Any:
    """Spreadsheets run cells that begin like a formula, and opponents' names come from records."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
