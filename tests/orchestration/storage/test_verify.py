"""`nlrl verify`: what a whole run is, and every way in which one is not."""

from __future__ import annotations

import json
import shutil

import pytest

from nlrl.orchestration.atomic import canonical_json
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.store import Store
from nlrl.orchestration.verify import verify_run

TARGETS = "iterations/001/targets"


@pytest.fixture
def damaged(finished, tmp_path):
    """A copy of a finished run, to be damaged."""
    return shutil.copytree(finished, tmp_path / "damaged")


def lines_of(run, stage=TARGETS):
    return (run / stage / "records.jsonl").read_bytes().splitlines(keepends=True)


def rewrite(run, lines, stage=TARGETS):
    """Changes a stage's records and its manifest with them, as somebody would who means well."""
    from nlrl.orchestration.stage_folder import describe

    path = run / stage / "records.jsonl"
    path.write_bytes(b"".join(lines))
    manifest = json.loads((run / stage / "manifest.json").read_bytes())
    manifest["files"]["records.jsonl"] = describe(path) | {"records": len(lines)}
    (run / stage / "manifest.json").write_bytes(canonical_json(manifest))


def problems(run):
    return [problem.removeprefix(f"{run}/") for problem in verify_run(run).problems]


def test_a_whole_run_is_counted(finished):
    found = verify_run(finished)
    manifests = list(finished.glob("iterations/*/*/manifest.json"))
    records = sum(len(path.read_bytes().splitlines()) for path in finished.glob("iterations/*/*/records.jsonl"))
    assert (found.stages, found.open_stages, found.problems) == (len(manifests), 0, []) == (15, 0, [])
    assert (found.records, found.in_order) == (records, True)
    assert f"15 committed stages, 0 in progress; 30 files, {found.bytes:,} bytes, {records:,} records" in str(found)


def test_a_run_in_a_store_is_read_once_and_not_kept(finished, url, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path / "cache"))
    store = Store(url)
    for path in finished.rglob("*"):
        if path.is_file():
            store.put(path, path.relative_to(finished).as_posix())
    read = []
    real = Store.stream
    monkeypatch.setattr(Store, "stream", lambda self, name: read.append(name) or real(self, name))
    assert run_cli(["verify", url]) == 0
    assert capsys.readouterr().out.endswith(f"{url}: whole\n")
    assert len(read) == len(set(read)) == 31
    assert not (tmp_path / "cache").exists()
    store.write(f"{TARGETS}/records.jsonl", b"".join(lines_of(finished)[:-1]))
    with pytest.raises(SystemExit) as done:
        run_cli(["verify", url])
    assert done.value.code == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split(" is ")[0] for line in out[:-1]] == [
        f"{url}/{TARGETS}/records.jsonl: {what}" for what in ("bytes", "records", "sha256")
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 2: key {0} comes after a greater one"),
        (lambda lines: [lines[0], *lines], "line 2: key {0} is there twice"),
        (lambda lines: [lines[0], b'{"schema":1}\n', *lines[1:]], "line 2 is not a record"),
        (lambda lines: [*lines[:-1], lines[-1][:20]], "line {count} is not whole"),
    ],
)
def test_records_must_parse_be_sorted_and_be_there_once(damaged, change, expected):
    lines = lines_of(damaged)
    rewrite(damaged, change(lines))
    keys = {"count": len(lines)}
    said = expected.format(json.loads(lines[0])["key"], **keys)
    assert f"{TARGETS}/records.jsonl: {said}" in problems(damaged)


def test_a_flipped_bit_is_found(damaged):
    path = damaged / "iterations/002/actor/weights.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = problems(damaged)
    assert problem.startswith("iterations/002/actor/weights.safetensors: sha256 is ")


def test_stages_must_have_those_that_they_were_made_from(damaged):
    shutil.rmtree(damaged / "iterations/001/critic")
    found = problems(damaged)
    assert found[0] == "iterations/001/improvement: committed, but iterations/001/critic, from before it, is not"
    assert len(found) == 3 + 7, "each later stage is named"
    (damaged / "iterations/002/evaluation/manifest.json").unlink()
    assert len(problems(damaged)) == 3 + 6


def test_the_end_of_a_run_may_be_missing(damaged):
    shutil.rmtree(damaged / "iterations/002")
    shutil.rmtree(damaged / "iterations/001/evaluation")
    assert problems(damaged) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda manifest: manifest | {"schema": 99}, "schema 99"),
        (lambda manifest: manifest | {"stage": "actor"}, "is the manifest of actor of iteration 1"),
        (lambda manifest: {"schema": 1}, "damaged"),
        (lambda manifest: manifest | {"files": {"../../../x": {"bytes": 1, "sha256": ""}}}, "in a way that"),
    ],
)
def test_a_manifest_must_be_that_of_its_stage(damaged, change, expected):
    path = damaged / TARGETS / "manifest.json"
    path.write_bytes(canonical_json(change(json.loads(path.read_bytes()))))
    (problem,) = problems(damaged)
    assert problem.startswith(f"{TARGETS}/manifest.json: ")
    assert expected in problem


def test_an_edited_manifest_is_told(damaged):
    path = damaged / TARGETS / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes())))
    assert problems(damaged) == [f"{TARGETS}/manifest.json: was edited: it is not as this program writes it"]


def test_records_that_no_manifest_names_are_told(damaged):
    (damaged / "iterations/001/critic/records.jsonl").write_bytes(b"")
    assert problems(damaged) == ["iterations/001/critic/records.jsonl: is there, but the manifest does not name it"]


def test_a_config_must_be_toml(damaged):
    (damaged / "config.toml").write_text("method = ")
    assert problems(damaged)[0].startswith("config.toml: not valid TOML")
    (damaged / "config.toml").unlink()
    assert problems(damaged) == ["config.toml: missing"]


def test_a_config_of_another_version_leaves_the_order_unchecked_and_says_so(damaged):
    (damaged / "config.toml").write_text('method = "of the future"\n')
    shutil.rmtree(damaged / "iterations/001/critic")
    found = verify_run(damaged)
    assert (found.problems, found.in_order) == ([], False)
    assert "order of stages not checked" in str(found)


def test_a_stage_in_progress_may_end_in_a_torn_line_and_nowhere_else(damaged):
    stage = damaged / "iterations/002/evaluation"
    lines = lines_of(damaged, "iterations/002/evaluation")
    shutil.rmtree(stage)
    (stage / "shards").mkdir(parents=True)
    shard = stage / "shards/games.jsonl"
    for torn in (b'{"schema":1,"ki', b'{"schema":1}\n', b"\0\0"):
        shard.write_bytes(b"".join(lines[:3]) + torn)
        found = verify_run(damaged)
        assert (found.problems, found.open_stages) == ([], 1)
    shard.write_bytes(lines[0] + b"{}\n" + lines[1])
    assert problems(damaged) == ["iterations/002/evaluation/shards/games.jsonl: line 2 is not a record"]


def test_what_is_no_run_is_a_mistake_of_the_user(tmp_path, capsys):
    assert run_cli(["verify", str(tmp_path)]) == 2
    assert run_cli(["verify", f"file://{tmp_path}"]) == 2
    assert capsys.readouterr().err.count("is not a run's folder (no config.toml in it)") == 2
