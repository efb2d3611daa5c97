"""Games as rows to search in: a small copy of what people look for, beside the records of every stage that holds games.

A row has the result, the length, who played, how many replies failed, and all that was said in one text without case:
searching a hundred thousand games reads those columns alone, and no JSON. The records stay the truth; a game without a
row is found again by reading them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from nlrl.orchestration.atomic import atomic_path
from nlrl.orchestration.records import GAME_KINDS, Record

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("game", pa.string()),
        ("seed", pa.string()),
        ("seat", pa.int64()),
        ("opponent", pa.string()),
        ("result", pa.string()),
        ("forfeit", pa.bool_()),
        ("length", pa.int64()),
        ("failures", pa.int64()),
        ("said", pa.string()),
    ]
)
"""`seed` is text, for it may take 64 bits without a sign; null where a record does not say. `said` is casefolded."""
_ROWS = 4096
"""Rows converted at once: what bounds memory."""


def write_games(records: Iterable[Record], path: str | Path) -> int:
    """Writes the rows of the games among some records into a Parquet file; returns their number.

    Raises:
        NLRLError: the records are damaged, or the disk refused.
    """
    count = 0
    with atomic_path(path) as temp, pyarrow.parquet.ParquetWriter(temp, SCHEMA, compression="zstd") as writer:
        for batch in _batches(records):
            writer.write_batch(batch)
            count += batch.num_rows
    return count


def games_table(records: Iterable[Record]) -> pa.Table:
    """The same in memory."""
    return pa.Table.from_batches(_batches(records), SCHEMA)


def _batches(records: Iterable[Record]) -> Iterator[pa.RecordBatch]:
    rows = (_row(record) for record in records if record["kind"] in GAME_KINDS)
    while part := list(islice(rows, _ROWS)):
        yield pa.RecordBatch.from_pylist(part, SCHEMA)


def _row(record: Record) -> dict[str, Any]:
    """A field that a record lacks, or that is of another type, is null: one odd record must not hide the others."""
    turns, players, result = _list(record, "turns"), _list(record, "players"), record.get("result")
    turns = [turn for turn in turns or () if isinstance(turn, Mapping)]
    actions, seed = _list(record, "actions"), record.get("seed")
    replies = [turn["reply"] for turn in turns if isinstance(turn.get("reply"), str)]
    return {
        "key": record["key"],
        "game": _text(record.get("game")),
        "seed": None if seed is None else str(seed),
        "seat": record.get("seat") if type(record.get("seat")) is int else None,
        "opponent": " / ".join(map(str, players)) if players else _text(record.get("opponent")),
        "result": _text(result),
        "forfeit": result == "forfeit" or record.get("forfeited") is not None,
        "length": None if actions is None else len(actions),
        "failures": sum(len(_list(turn, "failures") or ()) for turn in turns),
        "said": "\n".join(replies).casefold(),
    }


def _list(values: Mapping[str, Any], name: str) -> list[Any] | None:
    value = values.get(name)
    return value if isinstance(value, list) else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
