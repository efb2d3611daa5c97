from __future__ import annotations

import pytest

from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.errors import NLRLError
from nlrl.testing import RecordingModel, ReplayModel, ScriptedModel
from nlrl.testing.transcripts import request_key


def ask(text, seed=0, **sampling):
    return Request(messages=(Message("user", text),), sampling=Sampling(**sampling), seed=seed)


def test_a_replay_says_what_the_recorded_model_said_in_any_order(tmp_path):
    inner = ScriptedModel(
        lambda request: f"seed {request.seed}: +0.50", expectation=lambda _: 0.25, weight_version="w7"
    )
    requests = [ask("a", seed=1), ask("a", seed=2), ask("a", seed=1, expected_number=True), Request(tokens=())]
    recorder = RecordingModel(inner, tmp_path / "t.jsonl")
    said = recorder.generate(requests[:2]) + recorder.generate(requests[2:])

    replay = ReplayModel(tmp_path / "t.jsonl")
    assert replay.generate(requests[::-1]) == said[::-1]
    assert (replay.weight_version, replay.reads_expectations) == ("w7", True)


def test_a_request_that_was_not_recorded_is_refused_with_its_prompt(tmp_path):
    RecordingModel(ScriptedModel({"": "yes"}), tmp_path / "t.jsonl").generate([ask("known")])
    with pytest.raises(AssertionError, match="a changed prompt"):
        ReplayModel(tmp_path / "t.jsonl").generate([ask("a changed prompt")])


def test_the_last_recording_of_a_request_counts(tmp_path):
    for answer in ("old", "new"):
        RecordingModel(ScriptedModel([answer]), tmp_path / "t.jsonl").generate([ask("a")])
    assert ReplayModel(tmp_path / "t.jsonl").generate([ask("a")])[0].text == "new"


def test_keys_tell_prompts_sampling_and_seeds_apart():
    requests = [
        ask("a"),
        ask("b"),
        ask("a", seed=1),
        ask("a", temperature=0.0),
        Request(tokens=(1,)),
        Request(tokens=(2,)),
    ]
    assert len({request_key(request) for request in requests}) == len(requests)
    assert request_key(ask("a", temperature=1.0)) == request_key(ask("a"))


@pytest.mark.parametrize("line", ["{", "[]", '{"key": "k"}', '{"key": "k", "completion": {"wrong": 1}}'])
def test_a_damaged_transcript_is_refused_by_line(tmp_path, line):
    path = tmp_path / "t.jsonl"
    RecordingModel(ScriptedModel({"": "yes"}), path).generate([ask("known")])
    path.write_text(path.read_text() + line)
    with pytest.raises(NLRLError, match=r"t\.jsonl, line 2"):
        ReplayModel(path)


def test_a_missing_transcript_is_refused(tmp_path):
    with pytest.raises(NLRLError, match="no such transcript"):
        ReplayModel(tmp_path / "none.jsonl")
