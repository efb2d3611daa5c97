"""Records as columns: Parquet copies of JSONL shards, and SQL over a run.

JSONL stays the truth; a Parquet file is a copy that is quicker to scan. A column takes a scalar type where all its
values agree (bool, int64, float64, string; null where there is none); everything else (lists, dicts, mixtures) is
stored as JSON text, so that a column's type never depends on how deep a record of that day happened to be. SQL sees one
view for each stage of the run, named after it, with the column `iteration` in front, whether a stage is compacted,
committed or still being written.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet

from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import atomic_path
from nlrl.orchestration.records import PARQUET_FILE, Record, read_many, record_files

_ROWS = 4096
"""Rows converted at once: what bounds the memory of `compact`."""


def compact(paths: Sequence[str | Path], parquet_path: str | Path) -> int:
    """Writes the records of JSONL files into one Parquet file (duplicates dropped, the first wins); returns their
    number.

    Raises:
        NLRLError: a file is missing or damaged before its last line, or the disk refused.
    """
    columns = _columns(read_many(paths))
    schema, rows = _schema(columns), 0
    with atomic_path(parquet_path) as temp, pyarrow.parquet.ParquetWriter(temp, schema, compression="zstd") as writer:
        for batch in _batches(read_many(paths), columns):
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def query(sql: str, run_dir: str | Path, params: Sequence[Any] = ()) -> pa.Table:
    """Runs one SELECT (DuckDB's SQL, `?` for `params`) over a run's records. Nothing can be written: the database is in
    memory and has no access to files.

    Args:
        sql: tables are the run's stages, such as `SELECT iteration, count(*) FROM rollout GROUP BY ALL`.

    Raises:
        NLRLError: the query is wrong, or a record file is damaged.
    """
    import duckdb

    folders = _stage_folders(Path(run_dir))
    with duckdb.connect(config={"enable_external_access": "false"}) as connection:
        try:
            for name in (name for name in folders if _mentions(sql, name)):
                _create_view(connection, name, folders[name])
            relation = connection.sql(sql, params=list(params))
            if relation is None:
                raise NLRLError(f"the query answers nothing, it must be a SELECT: {sql}")
            return relation.to_arrow_table()
        except duckdb.Error as error:
            stages = ", ".join(sorted(folders)) or "none yet"
            raise NLRLError(f"the query failed: {error}\nStages of {run_dir}: {stages}") from error


# -- columns -----------------------------------------------------------------------------------------------------------
def _columns(records: Iterable[Record]) -> dict[str, pa.DataType | None]:
    """Name and type of each column, in order of first appearance; None means JSON text."""
    kinds: dict[str, set[str]] = defaultdict(set, schema={"int"}, kind={"str"}, key={"str"})
    for record in records:
        for name, value in record.items():
            kinds[name] |= _kind(value)
    return {name: _column_type(found) for name, found in kinds.items()}


def _kind(value: Any) -> set[str]:
    if value is None:
        return set()
    if isinstance(value, int) and not isinstance(value, bool):
        return {"negative" if value < 0 else "int" if value < 2**63 else "unsigned"}
    return {type(value).__name__}


def _column_type(kinds: set[str]) -> pa.DataType | None:
    """The type that holds every kind of value found in a column."""
    if not kinds:
        return pa.null()
    if kinds <= {"int", "negative"}:
        return pa.int64()
    if kinds <= {"int", "unsigned"}:
        return pa.uint64()
    if kinds <= {"int", "negative", "float"}:
        return pa.float64()
    return {"bool": pa.bool_(), "str": pa.string()}.get("/".join(sorted(kinds)))


def _schema(columns: dict[str, pa.DataType | None]) -> pa.Schema:
    return pa.schema([(name, type_ or pa.string()) for name, type_ in columns.items()])


def _batches(records: Iterable[Record], columns: dict[str, pa.DataType | None]) -> Iterator[pa.RecordBatch]:
    schema = _schema(columns)
    records = iter(records)
    while rows := list(islice(records, _ROWS)):
        arrays = [_array([row.get(name) for row in rows], type_) for name, type_ in columns.items()]
        yield pa.record_batch(arrays, schema=schema)


def _array(values: list[Any], type_: pa.DataType | None) -> pa.Array:
    if type_ is not None:
        return pa.array(values, type_)
    return pa.array([None if value is None else orjson.dumps(value).decode() for value in values], pa.string())


# -- views -------------------------------------------------------------------------------------------------------------
def _stage_folders(run_dir: Path) -> dict[str, list[Path]]:
    """Stage name -> its folders, by iteration."""
    folders: dict[str, list[Path]] = defaultdict(list)
    for folder in sorted(run_dir.glob("iterations/*/*/")):
        if folder.parent.name.isdigit():
            folders[folder.name].append(folder)
    return folders


def _mentions(sql: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE) is not None


def _create_view(connection: Any, name: str, folders: list[Path]) -> None:
    """One relation per iteration, so that DuckDB itself reconciles columns that differ between iterations."""
    selects = []
    for folder in folders:
        relation = f"{name}:{folder.parent.name}"
        connection.register(relation, _relation(folder))
        selects.append(f"SELECT {int(folder.parent.name)} AS iteration, * FROM {_identifier(relation)}")
    connection.sql(f"CREATE VIEW {_identifier(name)} AS {' UNION ALL BY NAME '.join(selects)}")


def _identifier(name: str) -> str:
    """A folder's name as one in SQL, whatever it is."""
    return '"' + name.replace('"', '""') + '"'


def _relation(folder: Path) -> Any:
    if (folder / PARQUET_FILE).is_file():
        return pyarrow.dataset.dataset(folder / PARQUET_FILE)
    records = _records_now(folder)  # read once: a live shard may grow between two passes
    columns = _columns(records)
    return pa.Table.from_batches(_batches(records, columns), schema=_schema(columns))


def _records_now(folder: Path) -> list[Record]:
    while True:
        files = record_files(folder)
        try:
            return list(read_many(files))
        except (NLRLError, FileNotFoundError):
            if all(file.is_file() for file in files):
                raise  # damage; a file that has gone means that the stage was committed meanwhile
