"""Launch configurations as data, and the sweep that finds the fastest."""

import math

import pytest

from nlrl.benchmarks.kernels import tune
from nlrl.kernels import devices, launches

DEFAULT = (64, 64, 4, 2)


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    """A device's table with a launch of one key."""
    monkeypatch.setattr(devices, "FOLDER", tmp_path)
    devices.write(devices.current(), "", {"made_up": {"launch": {"forward/64": [128, 64, 8, 3]}}})
    launches._recorded.cache_clear()
    yield
    launches._recorded.cache_clear()


def test_what_is_tried_goes_before_what_is_recorded_and_that_before_the_default(recorded):
    assert launches.choose("made_up", "forward/128", DEFAULT) == DEFAULT
    assert launches.choose("made_up", "forward/64", DEFAULT) == [128, 64, 8, 3]
    with launches.trying("made_up", "forward/64", (16, 16, 4, 1)), launches.asked() as keys:
        assert launches.choose("made_up", "forward/64", DEFAULT) == (16, 16, 4, 1)
        assert launches.choose("other", "backward", DEFAULT) == DEFAULT
    assert keys == {"forward/64", "backward"}
    assert launches.choose("made_up", "forward/64", DEFAULT) == [128, 64, 8, 3]


def test_a_sweep_leaves_out_what_does_not_compile_or_is_wrong():
    times = {(1,): 5.0, (2,): 3.0, (3,): 1.0, (4,): math.inf}
    trials = [tune.Trial("made_up", "forward/64", numbers, {}, "bfloat16", "forward") for numbers in times]
    trials.append(trials[3]._replace(key="hopeless"))

    def measured(trial: tune.Trial) -> tune.Outcome:
        assert trial.numbers != (3,), "it did not compile"
        return tune.Outcome(trial, times[trial.numbers], "WRONG" if trial.numbers == (4,) else "")

    outcomes = tune.sweep(trials, lambda all: ["too large" if each.numbers == (3,) else "" for each in all], measured)
    assert [outcome.why for outcome in outcomes] == ["", "", "too large", "WRONG", "WRONG"]
    assert tune.fastest(outcomes) == {"forward/64": [2]}


def test_without_a_gpu_nothing_is_tuned(capsys):
    if tune._device() == "cuda":
        pytest.skip("there is one")
    assert tune.main(["--op", "diff_attention_v2"]) == 1
    assert "no GPU" in capsys.readouterr().out
