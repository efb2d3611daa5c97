"""Records: nothing written is lost, nothing half-written is believed, nothing damaged is passed over."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration import records
from nlrl.orchestration.atomic import atomic_path, canonical_json, write_atomic, write_json_atomic
from nlrl.orchestration.records import RecordWriter, compact, query, read_records, record_key


def record(key: str, **fields):
    return {"schema": 1, "kind": "game", "key": key, **fields}


def keys(path):
    return [found["key"] for found in read_records(path)]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "shard.jsonl"
    with RecordWriter(path) as writer:
        writer.write_many([record("a", n=1), record("b", n=2)])
    return path


# -- keys --------------------------------------------------------------------------------------------------------------
def test_keys_tell_types_and_boundaries_apart():
    parts = [
        (1,),
        (1.0,),
        (True,),
        ("1",),
        (b"1",),
        (None,),
        ("None",),
        ((1,),),
        ("a", "bc"),
        ("ab", "c"),
        ("abc",),
        (),
    ]
    assert len({record_key(*part) for part in parts}) == len(parts)


def test_keys_are_stable_across_versions():
    assert record_key("run", 3, 0.5, None, ("a", True)) == "b3b31e3ec810be5fe7a1c0990e7ec0c8"


def test_numpy_scalars_give_the_key_of_the_python_value():
    assert record_key(np.int64(3), np.float64(0.5)) == record_key(3, 0.5)


def test_a_key_from_an_object_is_refused():
    with pytest.raises(TypeError, match="object"):
        record_key(object())


# -- writing and reading -----------------------------------------------------------------------------------------------
def test_records_come_back_as_written(tmp_path):
    written = [record("a", text="line\nbreak\u2028 ü", seed=2**64 - 1, nested={"x": [1, None, 0.1]}), record("b")]
    with RecordWriter(tmp_path / "new" / "shard.jsonl") as writer:
        writer.write_many(written)
    assert list(read_records(tmp_path / "new" / "shard.jsonl")) == written


def test_a_record_can_be_read_as_soon_as_write_returns(tmp_path):
    with RecordWriter(tmp_path / "s.jsonl") as writer:
        writer.write(record("a"))
        assert keys(tmp_path / "s.jsonl") == ["a"]


def test_of_duplicates_the_first_wins(shard):
    with RecordWriter(shard) as writer:
        writer.write(record("a", n=99))
    assert [(found["key"], found["n"]) for found in read_records(shard)] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize("bad", [{"kind": "game", "key": "a"}, {"schema": 1, "kind": "game", "key": 7}, ["a"]])
def test_what_is_not_a_record_is_refused_when_written(shard, bad):
    with RecordWriter(shard) as writer, pytest.raises(NLRLError, match="schema"):
        writer.write_many([record("c"), bad])
    assert keys(shard) == ["a", "b"]


def test_a_value_that_json_lacks_is_refused_with_the_file(shard):
    with RecordWriter(shard) as writer, pytest.raises(NLRLError, match=r"shard\.jsonl.*oops: object"):
        writer.write(record("c", oops=object()))


def test_a_second_writer_of_the_same_shard_is_refused(shard, monkeypatch):
    monkeypatch.setattr(records, "PATIENCE", 0.0)
    with RecordWriter(shard), pytest.raises(NLRLError, match="another writer"):
        RecordWriter(shard)
    RecordWriter(shard).close()


def test_a_writer_waits_for_one_that_is_about_to_end(shard):
    """As the workers of a killed driver are, under Ray."""
    code = "import sys, time; from nlrl.orchestration.records import RecordWriter; writer = RecordWriter(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}; print(flush=True); time.sleep(1)", shard], stdout=subprocess.PIPE
    ) as dying:
        assert dying.stdout is not None
        dying.stdout.readline()
        with RecordWriter(shard) as writer:
            writer.write(record("c"))
        assert dying.wait(timeout=60) == 0


def test_a_closed_writer_says_so(shard):
    writer = RecordWriter(shard)
    writer.close()
    with pytest.raises(NLRLError, match="closed"):
        writer.write(record("c"))


def test_reading_a_missing_file_names_it(tmp_path):
    with pytest.raises(NLRLError, match=r"none\.jsonl"):
        list(read_records(tmp_path / "none.jsonl"))


# -- torn and damaged --------------------------------------------------------------------------------------------------
TORN = [b'{"schema":1,"kind":"ga', b'{"schema":1,"kind":"game","key":"c"}', b'{"schema":1,\n', b"\x00\x00\x00", b"[]\n"]


@pytest.mark.parametrize("tail", TORN)
def test_a_torn_last_line_is_skipped_by_readers_and_cut_by_the_next_writer(shard, tail, caplog):
    whole = shard.read_bytes()
    shard.write_bytes(whole + tail)
    assert keys(shard) == ["a", "b"]
    with RecordWriter(shard) as writer:
        assert shard.read_bytes() == whole
        writer.write(record("c"))
    assert keys(shard) == ["a", "b", "c"]
    assert f"cut {len(tail)} bytes" in caplog.text


@pytest.mark.parametrize("line", [b"{broken\n", b"\n", b'{"key":"x"}\n'])
def test_damage_in_the_middle_is_refused_by_file_and_line(shard, line):
    first, second = shard.read_bytes().splitlines(keepends=True)
    damaged = first + line + second
    shard.write_bytes(damaged)
    with pytest.raises(NLRLError, match=r"shard\.jsonl, line 2"):
        list(read_records(shard))
    with pytest.raises(NLRLError, match=r"shard\.jsonl, line 2"):
        RecordWriter(shard)
    assert shard.read_bytes() == damaged


# -- full disks --------------------------------------------------------------------------------------------------------
def test_a_full_disk_is_reported_with_the_file():
    with RecordWriter("/dev/full") as writer, pytest.raises(NLRLError, match=r"/dev/full.*No space left.*rerun"):
        writer.write(record("a"))


_FILLS_THE_DISK = """
import resource, sys
from nlrl.errors import NLRLError
from nlrl.orchestration import records
from nlrl.orchestration.records import RecordWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
writer = RecordWriter(sys.argv[1])
written = 0
try:
    while True:
        writer.write({"schema": 1, "kind": "game", "key": str(written), "text": "x" * 70})
        written += 1
except NLRLError as error:
    print(written, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
writer.write({"schema": 1, "kind": "game", "key": "after"})
writer.flush()
"""


def test_a_disk_that_fills_up_keeps_what_was_written_and_no_half_line(tmp_path):
    path = tmp_path / "shard.jsonl"
    child = subprocess.run(
        [sys.executable, "-c", _FILLS_THE_DISK, path], capture_output=True, text=True, timeout=60, check=True
    )
    written, message = child.stdout.split(" ", 1)
    assert int(written) > 3
    assert "File too large" in message
    assert str(path) in message
    assert keys(path) == [str(n) for n in range(int(written))] + ["after"]


# -- atomic files ------------------------------------------------------------------------------------------------------
def test_an_atomic_write_replaces_the_whole_file(tmp_path):
    write_atomic(tmp_path / "f", b"old and long")
    write_json_atomic(tmp_path / "f", {"b": 1, "a": float("nan")})
    assert (tmp_path / "f").read_bytes() == b'{\n  "a": null,\n  "b": 1\n}\n'
    assert [child.name for child in tmp_path.iterdir()] == ["f"]


def test_a_failed_atomic_write_leaves_the_old_file_and_no_litter(tmp_path):
    write_atomic(tmp_path / "f", b"old")

    def fail_half_way():
        with atomic_path(tmp_path / "f") as temp:
            temp.write_bytes(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["f"]


def test_an_atomic_write_into_nowhere_names_the_file(tmp_path):
    with pytest.raises(NLRLError, match="nowhere/f"):
        write_atomic(tmp_path / "nowhere" / "f", b"")


def test_canonical_json_does_not_depend_on_the_order_of_fields():
    assert canonical_json({"a": 1, "b": np.float64(2)}) == canonical_json({"b": 2.0, "a": 1})


# -- tables ------------------------------------------------------------------------------------------------------------
def test_compact_keeps_scalars_as_columns_and_the_rest_as_json(tmp_path):
    shards = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    with RecordWriter(shards[0]) as writer:
        writer.write_many([record("a", n=1, x=1, ok=True, seed=2**64 - 1, moves=[1, 2]), record("b", n=-2, mixed="t")])
    with RecordWriter(shards[1]) as writer:
        writer.write_many([record("a", n=9), record("c", n=3, x=0.5, mixed=4, late="z", nothing=None)])
    assert compact(shards, tmp_path / "out.parquet") == 3
    table = pq.read_table(tmp_path / "out.parquet")
    types = {field.name: str(field.type) for field in table.schema}
    assert types == {
        **{"schema": "int64", "kind": "string", "key": "string", "n": "int64", "x": "double", "ok": "bool"},
        **{"seed": "uint64", "moves": "string", "mixed": "string", "late": "string", "nothing": "null"},
    }
    assert table.column("n").to_pylist() == [1, -2, 3]
    assert table.column("seed").to_pylist() == [2**64 - 1, None, None]
    assert table.column("moves").to_pylist() == ["[1,2]", None, None]
    assert table.column("mixed").to_pylist() == [None, '"t"', "4"]


def test_compacting_nothing_gives_an_empty_table(tmp_path):
    (tmp_path / "empty.jsonl").touch()
    assert compact([tmp_path / "empty.jsonl"], tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_a_query_for_an_unknown_table_lists_the_stages(tmp_path):
    with pytest.raises(NLRLError, match=r"(?s)rollout.*Stages.*none yet"):
        query("SELECT * FROM rollout", tmp_path)
