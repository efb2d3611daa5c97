"""Several training actors behind one handle: on Ray they train like one, and the first failure is the one that is told.

What each kind of loss comes to over several processes is tested in tests/backbones/test_ranks.py.
"""

from __future__ import annotations

import os
import signal

import pytest

from nlrl.backbones.language_model import Message
from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Cluster, InlineFuture
from nlrl.orchestration.fits import FitSettings, TextExample
from nlrl.orchestration.placement import LEAST_SHARE, Seat, gpu_shares
from nlrl.orchestration.trainer import TrainerActor
from nlrl.orchestration.trainer_group import AllOf, start_trainer
from nlrl.testing.tiny_native import make_tiny, tiny_model

PROMPTS = [(Message("user", f"Choose a move.\n 1 | 2 | {'3 ' * i}"),) for i in range(9)]
TEXTS = [TextExample(prompt, f"I take {i}.", 1.0 + i % 3) for i, prompt in enumerate(PROMPTS)]
SETTINGS = FitSettings(2e-3, 4, 2, 1, keep_optimizer=True, save_every=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def group(tiny, tmp_path, small_config):
    config = small_config(tmp_path / "run", model=tiny_model(tiny), cluster={"kind": "ray", "trainers": 2})
    with Cluster("ray", address="local", num_cpus=2) as cluster:
        yield start_trainer(cluster, config, threads=2, seats=[Seat()] * 2)


def apart(one, other):
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@pytest.mark.timeout(120)
def test_two_actors_train_as_one_and_a_dead_one_is_named(group, tiny, tmp_path):
    alone = TrainerActor(str(tiny), "cpu", 1)
    before = alone.weights("actor")
    told = alone.fit("actor", TEXTS, SETTINGS)
    metrics = group.call("fit", "actor", TEXTS, SETTINGS, str(tmp_path / "progress")).result()
    assert metrics | {"seconds": 0} == pytest.approx(told | {"seconds": 0}, abs=1e-5)
    assert (tmp_path / "progress").is_file()
    found = group.call("weights", "actor").result()
    assert apart(found, alone.weights("actor")) < 2e-5
    assert apart(found, before) > 1e-3

    for name in ("save", "save_optimizer"):
        group.call(name, "actor", str(tmp_path / name)).result()
    group.call("load", "critic", str(tmp_path / "save")).result()
    group.call("load_optimizer", "critic", str(tmp_path / "save_optimizer")).result()
    group.call("average", "actor", "target", 0.5).result()
    scores = group.call("score", "critic", PROMPTS[:2], [(5, 6), (7,)]).result()
    assert scores == [pytest.approx(row, abs=1e-3) for row in alone.score("actor", PROMPTS[:2], [(5, 6), (7,)])]
    for network in ("critic", "target"):  # the second actor has all of that, too, or they would end apart
        group.call("fit", network, TEXTS, SETTINGS).result()

    with pytest.raises(NLRLError, match="does not hold weights"):
        group.call("load", "critic", str(tmp_path / "nothing")).result()
    os.kill(group.processes()[1], signal.SIGKILL)
    with pytest.raises(NLRLError, match=r"worker 'trainer-1' died.*rerun the same command"):
        group.call("fit", "actor", TEXTS, SETTINGS).result()


def test_an_error_of_ours_explains_more_than_what_follows_from_it():
    failed = [InlineFuture(None, RuntimeError("connection closed")), InlineFuture(None, NLRLError("it diverged"))]
    with pytest.raises(NLRLError, match="it diverged"):
        AllOf(failed).result()
    with pytest.raises(RuntimeError, match="connection closed"):
        AllOf(failed[:1]).result()
    assert AllOf([InlineFuture(1, None), InlineFuture(2, None)]).result() == 1


@pytest.mark.parametrize("agents", [0, 3])
def test_no_two_trainers_share_a_gpu_and_the_others_fit_beside_them(agents):
    server, trainer = gpu_shares(4, agents)
    assert 2 * trainer > 1
    assert server * (1 + agents) + trainer <= 1
    assert trainer == LEAST_SHARE
    server, trainer = gpu_shares(1, agents)
    assert server == trainer
    assert 0.99 < (2 + agents) * server <= 1
