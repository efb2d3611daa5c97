"""Launch configurations as data, and the sweep that finds the fastest."""

import math
from types import SimpleNamespace

import pytest

from nlrl import kernels
from nlrl.benchmarks.kernels import tune
from nlrl.benchmarks.kernels.clock import FEWEST_SETS, Times
from nlrl.benchmarks.kernels.shapes import Timed
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

    outcomes = tune.sweep(trials, ["too large" if each.numbers == (3,) else "" for each in trials], measured)
    assert [outcome.why for outcome in outcomes] == ["", "", "too large", "WRONG", "WRONG"]
    assert tune.fastest(outcomes) == {"forward/64": [2]}


STEP = {"rows": 2, "channels": 4, "states": 2, "rank": 1, "taps": 2}
SIZES = [Timed(STEP | {"rows": rows}, ("forward",), "float32", True) for rows in (1, 3, 2)]


@pytest.fixture
def step(monkeypatch):
    """mamba1_step at three sizes, by an implementation that asks for a launch."""

    def asking(**inputs):
        asking.launches.append(launches.choose("mamba1_step", "stream", (1,)))
        return kernels.mamba1_step.eager(**inputs)

    asking.launches = []
    op = SimpleNamespace(provider=lambda name: asking, eager=kernels.mamba1_step.eager)
    monkeypatch.setattr(kernels, "ops", lambda: {"mamba1_step": op})
    monkeypatch.setitem(tune.SHAPES, "mamba1_step", {"paper": SIZES})
    monkeypatch.setattr(tune, "candidates_of", lambda op: {"stream": [(7,), (8,)]})
    return asking


def test_of_sizes_that_are_replayed_the_largest_decides(step):
    trials = tune.trials_of("mamba1_step", "paper")
    assert [(trial.key, trial.numbers, trial.shape["rows"]) for trial in trials] == [
        ("stream", (7,), 3),
        ("stream", (8,), 3),
    ]
    assert all(trial.graph for trial in trials)


class Replays:
    """A clock that calls everything once."""

    def __init__(self, error=None):
        self.error, self.calls = error, 0

    def replayed(self, calls):
        for call in calls:
            call()
        self.calls = len(calls)
        if self.error is not None:
            raise self.error
        return Times(1.0, 2.0, 3.0)


def test_a_short_call_is_timed_by_replay_with_inputs_that_take_turns(step):
    trial, *_ = tune.trials_of("mamba1_step", "paper")
    step.launches.clear()
    clock = Replays()
    with launches.trying("mamba1_step", "stream", (7,)):
        assert tune.timed(trial, clock) == (trial, 2.0, "")
    assert clock.calls == FEWEST_SETS
    assert step.launches == [(7,)] * FEWEST_SETS, "the launch that is tried is held while it is captured"


def test_what_cannot_be_captured_is_timed_call_by_call(step, monkeypatch):
    monkeypatch.setattr(tune, "_microseconds", lambda call: 50.0)
    trial, *_ = tune.trials_of("mamba1_step", "paper")
    assert tune.timed(trial, Replays(RuntimeError("no graph"))) == (trial, 50.0, "not in a graph: RuntimeError")
    clock = Replays()
    assert tune.timed(trial._replace(graph=False), clock) == (trial._replace(graph=False), 50.0, "")
    assert clock.calls == 0


def test_without_a_gpu_nothing_is_tuned(capsys):
    if tune._device() == "cuda":
        pytest.skip("there is one")
    assert tune.main(["--op", "diff_attention_v2"]) == 1
    assert "no GPU" in capsys.readouterr().out
