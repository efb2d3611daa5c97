"""How long answers took is told beside the records, and never by them."""

from __future__ import annotations

import shutil
import time

import pytest

from nlrl.agents.asking import Reply
from nlrl.backbones.language_model import Completion, Request, Sampling, Timing, stamp
from nlrl.orchestration import timings
from nlrl.orchestration.records import read_records
from nlrl.orchestration.run_folder import verify
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import run_targets
from nlrl.testing.by_rules import RuleModel


class SlowModel(RuleModel):
    """Takes a while, and cannot be read the first time it is asked about the start."""

    def generate(self, requests: list[Request]):
        time.sleep(0.02)
        return super().generate(requests)


def test_every_turn_of_every_game_has_its_time(session, watched):
    watched.wrap = lambda model: SlowModel()
    one = session(model=watched.config)
    before = time.time()
    with one.spending(1, "rollout"):
        run_rollout(one, 1)
    stage = one.folder.stage(1, "rollout")
    games = list(stage.records())
    stored = 0
    for game in games:
        found = timings.read(stage.dir, game["key"])
        last = {row.ply: row for row in found}
        assert list(last) == [turn["ply"] for turn in game["turns"]]
        assert [last[turn["ply"]].tokens for turn in game["turns"]] == [turn["tokens"] for turn in game["turns"]]
        assert all(row.milliseconds >= 20 and before <= row.asked <= time.time() for row in found)
        assert all(0 < (row.tokens_per_second or 0) <= row.tokens / 0.02 for row in found)
        stored += sum(row.stored for row in found)
    assert 0 < stored < sum(len(game["turns"]) for game in games)  # 16 games draw among two to four answers a state


def test_texts_have_their_times_too(session):
    one = session(rollout={"games": 2}, targets={"states": 2}, improvement={"states": 2})
    for name, stage in (("rollout", run_rollout), ("targets", run_targets), ("improvement", run_improvement)):
        with one.spending(1, name):
            stage(one, 1)
    for name in ("targets", "improvement"):
        stage = one.folder.stage(1, name)
        timed = dict(timings.read_all(stage.dir))
        assert set(timed) <= {record["key"] for record in stage.records()}
        assert len(timed) >= 2
        assert all(rows[-1].ply is None for rows in timed.values())


def test_no_manifest_names_the_times_and_without_them_a_run_is_whole(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    files = list(run.glob("iterations/*/*/timings.jsonl"))
    assert files
    for file in files:
        assert "timings" not in (file.parent / "manifest.json").read_text()
        file.write_bytes(b"\x00 not a line")
    assert verify(run) == []
    assert timings.read(files[0].parent, "anything") == []
    for file in files:
        file.unlink()
    assert verify(run) == []
    assert timings.read(files[0].parent, "anything") == []


def test_game_records_name_the_weights_that_played(finished):
    for iteration, weights in (("001/rollout", "base"), ("002/rollout", "actor@1"), ("002/evaluation", "actor@2")):
        records = read_records(finished / "iterations" / iteration / "records.jsonl")
        assert {record["weights"] for record in records if record["kind"] == "game"} == {weights}


@pytest.mark.parametrize(
    "line", ["", "[]", "3", '{"key":"k"}', '{"key":"k","turns":[[1]]}', '{"key":"k","turns":5}', "\xff"]
)
def test_what_is_no_time_is_passed_over(tmp_path, line):
    good = '{"key":"k","turns":[[3,0,1000,2000,4,0]]}\n'
    (tmp_path / timings.TIMINGS_FILE).write_bytes(line.encode("latin-1") + b"\n" + good.encode() + b'{"key":"k","tur')
    assert timings.read(tmp_path, "k") == [timings.TurnTiming(3, 0, 1.0, 2.0, 4, False)]


def test_attempts_that_failed_are_told_before_the_last(tmp_path):
    first, second = Timing(10.0, 0.5), Timing(11.0, 0.25)
    reply = Reply(None, Completion("b", (1, 2), timing=second), earlier=((first, 7),))
    writer = timings.Timings()
    writer.open(tmp_path)
    writer.note(timings.of_texts(["k"], [reply], asked=12.0))
    writer.close()
    assert timings.read(tmp_path, "k") == [
        timings.TurnTiming(None, 0, 10.0, 500.0, 7, True),
        timings.TurnTiming(None, 1, 11.0, 250.0, 2, True),
    ]


def test_a_disk_that_refuses_costs_the_times_and_not_the_run(tmp_path, caplog):
    (tmp_path / "stage").write_text("in the way")
    writer = timings.Timings()
    writer.open(tmp_path / "stage")
    writer.note([("k", [(0, 0, 1.0, 2.0, 3, 0)])])
    writer.close()
    assert "times of answers are not kept" in caplog.text


def test_times_are_no_part_of_what_is_compared_and_a_models_own_stand():
    plain, timed = Completion("a", (1,)), Completion("a", (1,), timing=Timing(1.0, 2.0))
    assert plain == timed
    assert "timing" not in repr(timed)
    stamp([plain, timed], Timing(5.0, 6.0))
    assert (plain.timing, timed.timing) == (Timing(5.0, 6.0), Timing(1.0, 2.0))


def test_native_engines_time_each_request():
    from nlrl.orchestration.config import ModelConfig
    from nlrl.orchestration.models import open_model

    engine = open_model(ModelConfig(device="cpu"), threads=1)
    try:
        before = time.time()
        short, long = engine.generate(
            [Request(tokens=(5, 6, 7), sampling=Sampling(max_tokens=n, ignore_end=True)) for n in (2, 60)]
        )
        took = time.time() - before
    finally:
        engine.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert short.timing is not None
    assert long.timing is not None
    assert 0 < short.timing.seconds < long.timing.seconds <= took + 0.01
    assert before - 0.01 <= short.timing.asked <= before + took
