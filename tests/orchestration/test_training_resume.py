"""What a run goes on from: optimizers that are kept, rounds cut off in the middle, records. Everything else is keyed.

A resumed one ends with the bytes of one that was never stopped, whatever the global generators are at.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nlrl.backbones.language_model import Message
from nlrl.backbones.optimizer_state import FitCheckpoint
from nlrl.backbones.train_step import TrainStep
from nlrl.errors import NLRLError
from nlrl.orchestration.fits import (
    AnswerExample,
    FitSettings,
    PairExample,
    PolicyFit,
    PreferenceFit,
    ReturnExample,
    TextExample,
    ValueFit,
)
from nlrl.orchestration.loop import run
from nlrl.orchestration.trainer import TrainerActor
from nlrl.testing.tiny_native import make_tiny, tiny_model

PROMPTS = [(Message("user", f"Choose a move.\n 1 | 2 | {i}"),) for i in range(10)]
TEXTS = [TextExample(prompt, f"I take {i}.", 1.0 + i % 3) for i, prompt in enumerate(PROMPTS)]
RETURNS = [ReturnExample(prompt, i / 10 - 0.5) for i, prompt in enumerate(PROMPTS)]
SETTINGS = {"learning_rate": 3e-3, "batch_size": 3, "epochs": 2}
KINDS = {
    "texts": (TEXTS, FitSettings(**SETTINGS, seed=1)),
    "values": (RETURNS, ValueFit(**SETTINGS, seed=1)),
    "policy": (
        [AnswerExample(p, (5, 6, 7), (-1.0, -2.0, -3.0), i - 4.5, return_=0.3) for i, p in enumerate(PROMPTS)],
        PolicyFit(**SETTINGS, seed=1, head=True),
    ),
    "preferences": (
        [PairExample(p, f"I take {i}.", f"I take {i + 1}.") for i, p in enumerate(PROMPTS)],
        PreferenceFit(**SETTINGS, seed=1),
    ),
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(make_tiny(tmp_path_factory.mktemp("tiny") / "model"))


def disturbed(seed):
    """Global generators that nobody may look at."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def saved(actor, folder, has_head):
    """The bytes of all that is committed of a network."""
    folder.mkdir()
    files = {"weights": actor.save, "optimizer": actor.save_optimizer} | ({"head": actor.save_head} if has_head else {})
    for name, save in files.items():
        save("actor", str(folder / name))
    return {name: (folder / name).read_bytes() for name in files}


def restored(tiny, folder):
    """A new actor, as after a kill."""
    actor = TrainerActor(tiny, "cpu", 1)
    actor.load("actor", str(folder / "weights"))
    actor.load_optimizer("actor", str(folder / "optimizer"))
    if (folder / "head").exists():
        actor.load_head("actor", str(folder / "head"))
    return actor


# -- over iterations ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_kept_optimizer_goes_on_after_a_restart_to_the_same_bytes(tiny, tmp_path, kind):
    examples, settings = KINDS[kind]
    first, second = (replace(settings, seed=seed, keep_optimizer=True) for seed in (1, 2))
    has_head = kind in ("values", "policy")
    whole = TrainerActor(tiny, "cpu", 1)
    whole.fit("actor", examples, first)
    saved(whole, tmp_path / "between", has_head)
    told = whole.fit("actor", examples, second)
    disturbed(5)
    resumed = restored(tiny, tmp_path / "between")
    assert resumed.fit("actor", examples, second) | {"seconds": 0} == told | {"seconds": 0}
    assert saved(resumed, tmp_path / "resumed", has_head) == saved(whole, tmp_path / "whole", has_head)
    fresh = TrainerActor(tiny, "cpu", 1)
    for seed in (1, 2):
        fresh.fit("actor", examples, replace(settings, seed=seed))
    fresh.save("actor", str(tmp_path / "fresh"))
    assert (tmp_path / "fresh").read_bytes() != (tmp_path / "whole" / "weights").read_bytes()


def test_a_kept_optimizer_counts_all_its_steps_and_each_network_has_its_own(tiny, tmp_path):
    actor = TrainerActor(tiny, "cpu", 1)
    for network, rounds in (("actor", 2), ("critic", 1)):
        for seed in range(rounds):
            steps = actor.fit(network, TEXTS, FitSettings(**SETTINGS, seed=seed, keep_optimizer=True))["steps"]
        actor.save_optimizer(network, str(tmp_path / network))
        found = load_file(tmp_path / network)
        assert {float(tensor) for name, tensor in found.items() if name.startswith("step/")} == {rounds * steps}


def test_moments_of_another_model_are_refused(tiny, tmp_path):
    actor = TrainerActor(tiny, "cpu", 1)
    actor.fit("actor", RETURNS, ValueFit(**SETTINGS, seed=1, keep_optimizer=True))
    actor.save_optimizer("actor", str(tmp_path / "moments"))
    other = TrainerActor(tiny, "cpu", 1)
    other.load_optimizer("actor", str(tmp_path / "moments"))
    with pytest.raises(NLRLError, match="belongs to another model"):
        other.fit("actor", TEXTS, FitSettings(**SETTINGS, seed=1, keep_optimizer=True))
    (tmp_path / "torn").write_bytes(b"\x00")
    with pytest.raises(NLRLError, match=r"torn cannot be read.*Delete the folder of this stage"):
        other.load_optimizer("actor", str(tmp_path / "torn"))


# -- in the middle of a round ------------------------------------------------------------------------------------------
class Killed(Exception):
    """In place of SIGKILL."""


def cut_off(tiny, kind, progress, monkeypatch, steps, **changes):
    """Trains a round until so many steps are done."""
    examples, settings = KINDS[kind]
    note = FitCheckpoint.note

    def until(self, trainer, done):
        note(self, trainer, done)
        if done == steps:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(FitCheckpoint, "note", until)
        with pytest.raises(Killed):
            TrainerActor(tiny, "cpu", 1).fit("actor", examples, replace(settings, save_every=2, **changes), progress)


@pytest.mark.parametrize(("kind", "steps"), [("texts", 3), ("texts", 6), ("values", 5)])
def test_a_round_that_was_cut_off_goes_on_to_the_same_bytes(tiny, tmp_path, monkeypatch, kind, steps):
    examples, settings = KINDS[kind]
    settings = replace(settings, keep_optimizer=True)
    whole = TrainerActor(tiny, "cpu", 1)
    told = whole.fit("actor", examples, replace(settings, save_every=2))
    progress = str(tmp_path / "shards" / "progress")
    cut_off(tiny, kind, progress, monkeypatch, steps, keep_optimizer=True)
    disturbed(6)
    done, step = [], TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", lambda self, *a, **k: done.append(1) or step(self, *a, **k))
    resumed = TrainerActor(tiny, "cpu", 1)
    assert resumed.fit("actor", examples, replace(settings, save_every=3), progress) | {"seconds": 0} == told | {
        "seconds": 0
    }
    assert len(done) == told["steps"] - steps // 2 * 2
    has_head = kind == "values"
    assert saved(resumed, tmp_path / "resumed", has_head) == saved(whole, tmp_path / "whole", has_head)


@pytest.mark.parametrize("spoil", ["another round", "torn"])
def test_a_checkpoint_of_another_round_or_half_of_one_is_passed_over(tiny, tmp_path, monkeypatch, spoil):
    progress = tmp_path / "progress"
    cut_off(tiny, "texts", str(progress), monkeypatch, 4)
    seed = 7 if spoil == "another round" else 1
    if spoil == "torn":
        progress.write_bytes(progress.read_bytes()[:1000])
    settings = FitSettings(**SETTINGS, seed=seed, save_every=2)
    weights = []
    for path in (str(progress), ""):
        actor = TrainerActor(tiny, "cpu", 1)
        actor.fit("actor", TEXTS, settings, path)
        weights.append(actor.weights("actor"))
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


# -- whole runs --------------------------------------------------------------------------------------------------------
def test_a_resumed_run_goes_on_with_its_optimizers(tiny, tmp_path, small_config, committed_files):
    """GRPO needs no readable answer to learn from one."""

    def config(name, iterations):
        changes = {"method": "grpo", "grpo": {"epochs": 1, "keep_optimizer": True, "entropy": 0.01}}
        changes |= {"evaluation": {"games": 0, "opponents": ["random"], "exact_states": 0}, "rollout": {"games": 4}}
        return small_config(tmp_path / name / "run", model=tiny_model(tiny), iterations=iterations, **changes)

    run(config("whole", 3))
    run(config("cut", 2))
    disturbed(8)
    run(config("cut", 3))
    whole, cut = (committed_files(tmp_path / name / "run") for name in ("whole", "cut"))
    assert whole == cut
    assert (tmp_path / "cut/run/iterations/003/actor/optimizer.safetensors").is_file()
    assert b"optimizer.safetensors" in whole["iterations/003/actor/manifest.json"]


def test_replay_and_league_are_read_from_records_when_a_run_is_resumed(tmp_path, small_config, committed_files):
    def config(name, iterations):
        return small_config(
            tmp_path / name / "run",
            iterations=iterations,
            critic={"replay": {"kind": "prioritised", "size": 40}, "short_buffer_until": 0},
            actor={"replay": {"kind": "prioritised", "size": 10}, "short_buffer_until": 0},
            rollout={"games": 8, "opponents": ["random", "checkpoint(best)", "checkpoint(random)"]},
            evaluation={"games": 2, "opponents": ["random"]},
            league={"every": 1, "pairs": 1},
        )

    run(config("whole", 3))
    for iterations in (1, 2, 3):
        disturbed(iterations)
        run(config("cut", iterations))
    whole = committed_files(tmp_path / "whole" / "run")
    assert whole == committed_files(tmp_path / "cut" / "run")
    assert "iterations/003/league/manifest.json" in whole


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cluster": {"trainers": 2}}, r"cluster\.trainers is 2, but model\.kind is 'scripted'"),
        ({"critic": {"keep_optimizer": True}}, r"critic\.keep_optimizer is set, but model\.kind is 'scripted'"),
        ({"method": "ppo", "ppo": {"keep_optimizer": True}}, r"ppo\.keep_optimizer is set"),
        ({"actor": {"save_every": 5}}, r"actor\.save_every is set"),
        (
            {"cluster": {"trainers": 2}, "model": {"kind": "native", "name": "transformer-base"}},
            r"cluster\.trainers is 2, but cluster\.kind is 'inline': several processes need 'ray'",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(tmp_path, small_config, changes, message):
    with pytest.raises(NLRLError, match=message):
        run(small_config(tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
