"""`nlrl bench backbones` and `nlrl bench storage` run and count right; how fast anything is, is not tested."""

import json

from nlrl.benchmarks import backbones, storage

TINY = ["--device", "cpu", "--rounds", "1", "--seconds", "0.001", "--batch", "3", "--tokens", "4", "--rows", "1"]


def options(**changes):
    return backbones.Options(**dict(device="cpu", batch=3, tokens=4, rows=1, rounds=1, seconds=0.001) | changes)


def test_models_are_measured_beside_the_control(tmp_path, capsys):
    file = tmp_path / "figures.json"
    assert backbones.main([*TINY, "--models", "ngpt-base", "--json", str(file)]) == 0
    found, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert [(figure["section"], figure["name"]) for figure in found["figures"]] == [
        (work, name) for work in ("decoding", "training") for name in ("transformer-base", "ngpt-base")
    ]
    assert [figure["ratio"] for figure in found["figures"] if figure["name"] == "transformer-base"] == [1.0, 1.0]
    assert found["parameters"] == {"transformer-base": 2_558_400, "ngpt-base": 2_763_136}
    assert "2,763,136 parameters" in printed


def test_decoding_counts_the_tokens_that_came_out():
    play = backbones.decoding(backbones.pretraining_architectures()["transformer-base"], options())
    assert 3 < play(1) <= 12
    assert play(2) == 2 * play(1), "the same seeds, the same answers"


def test_training_counts_tokens_without_padding():
    play = backbones.training(backbones.pretraining_architectures()["transformer-base"], options())
    assert 0.9 * backbones.ROW_LENGTH < play(1) <= backbones.ROW_LENGTH
    assert play(2) == 2 * play(1)


def test_storage_is_compared_on_the_same_prompts(tmp_path, capsys):
    file = tmp_path / "storage.json"
    assert storage.main(["transformer-base", "--prompts", "3", "--json", str(file)]) == 0
    found = json.loads(file.read_text())["bases"][0]
    assert found["bytes"]["int8"] < 0.52 * found["bytes"]["shipped"]
    assert found["roles"]["shipped"].keys() == found["roles"]["int8"].keys() == found["same_text"].keys()
    assert 0 < found["logits"]["relative"] < 0.02
    assert abs(found["logits"]["loss_int8"] - found["logits"]["loss_shipped"]) < 0.005
    assert "improvement" in capsys.readouterr().out
