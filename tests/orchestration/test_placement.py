"""Whose GPUs are whose: declared placements on GPUs that Ray only believes in."""

from __future__ import annotations

import os
import sys

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.cluster import Cluster
from nlrl.orchestration.config import to_toml
from nlrl.orchestration.loop import run
from nlrl.orchestration.placement import Seat, check_placement, plan
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import open_session, servers_of


@pytest.fixture
def placed(small_config, tmp_path):
    """`placed(servers, agents, gpus=2, ...)`: the seats with these fields of [cluster]."""

    def make(servers, agents=0, on_gpu=True, **cluster):
        config = small_config(tmp_path / "run", cluster={"kind": "ray"} | cluster)
        check(config)
        return plan(config, servers, agents, on_gpu)

    return make


# -- shares ------------------------------------------------------------------------------------------------------------
def test_without_a_declaration_one_gpu_is_shared_and_none_reserved(placed):
    found = placed(2, agents=1)
    assert found.servers == (Seat(0.1666), Seat(0.1666))
    assert (found.trainer, found.agents, found.bundles) == (Seat(0.3333), (Seat(0.3333),), 0)
    assert placed(2, on_gpu=False).servers == (Seat(), Seat())


def test_colocated_servers_take_gpus_in_turn_and_the_trainer_shares_the_first(placed):
    found = placed(3, gpus=3)
    assert found.servers == (Seat(0.5, 0), Seat(1, 1), Seat(1, 2))
    assert (found.trainer, found.bundles) == (Seat(0.5, 0), 3)
    assert placed(4, gpus=2).servers == (Seat(0.25, 0), Seat(0.5, 1), Seat(0.25, 0), Seat(0.5, 1))


def test_separate_leaves_the_last_gpu_to_the_trainer_alone(placed):
    found = placed(2, agents=3, gpus=3, placement="separate")
    assert found.trainer == Seat(1, 2)
    assert found.servers == (Seat(0.3333, 0), Seat(0.5, 1))
    assert found.agents == (Seat(0.3333, 0), Seat(0.5, 1), Seat(0.3333, 0))


def test_declared_shares_leave_the_rest_to_the_others(placed):
    found = placed(1, agents=1, gpus=1, gpus_per_server=0.6, trainer_gpus=0.3)
    assert (found.servers, found.trainer) == ((Seat(0.6, 0),), Seat(0.3, 0))
    assert found.agents[0].gpus == pytest.approx(0.1, abs=1e-3)


def test_a_gpu_is_never_given_away_twice(placed):
    for gpus in (1, 2, 3, 4):
        for servers in (1, 2, 5):
            for agents in (0, 1, 4):
                for placement in ("colocated", "separate") if gpus > 1 else ("colocated",):
                    found = placed(servers, agents, gpus=gpus, placement=placement)
                    taken = [0.0] * gpus
                    for seat in (*found.servers, found.trainer, *found.agents):
                        assert seat.gpus > 0
                        taken[seat.bundle] += seat.gpus
                    assert max(taken) <= 1 + 1e-9


def test_there_is_a_server_on_each_gpu_that_serves(small_config, tmp_path):
    def count(**cluster):
        return servers_of(small_config(tmp_path / "run", cluster={"kind": "ray"} | cluster), True)

    assert count(gpus=4) == 4
    assert count(gpus=4, placement="separate") == 3
    assert count(gpus=4, servers=8) == 8


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        (
            {"placement": "separate"},
            "cluster.placement 'separate' needs at least 2 GPUs, but cluster.gpus is not given",
        ),
        ({"placement": "separate", "gpus": 1}, r"cluster.placement 'separate' needs at least 2 GPUs.*is 1"),
        ({"gpus_per_server": 0.5}, "cluster.gpus_per_server is given, but cluster.gpus is not"),
        ({"trainer_gpus": 0.5}, "cluster.trainer_gpus is given, but cluster.gpus is not"),
        ({"kind": "inline", "gpus": 2}, "cluster.gpus: with cluster.kind 'inline'"),
        ({"kind": "inline", "placement": "separate"}, "cluster.placement: with cluster.kind 'inline'"),
        ({"kind": "inline", "worker_cpus": 1}, "cluster.worker_cpus: with cluster.kind 'inline'"),
        ({"gpus_per_server": 1.5}, "cluster.gpus_per_server"),
    ],
)
def test_declarations_that_cannot_be_kept_are_refused_by_field(small_config, tmp_path, cluster, message):
    with pytest.raises(NLRLError, match=message):
        check(small_config(tmp_path / "run", cluster={"kind": "ray"} | cluster))


@pytest.mark.parametrize(
    ("servers", "cluster", "message"),
    [
        (2, {"gpus": 1, "gpus_per_server": 0.6}, r"2 server\(s\) of cluster.gpus_per_server 0.6 do not fit"),
        (1, {"gpus": 1, "gpus_per_server": 0.7, "trainer_gpus": 0.4}, "cluster.trainer_gpus 0.4 do not fit"),
        (1, {"gpus": 1, "gpus_per_server": 1}, "leave nothing for 1 other"),
    ],
)
def test_shares_beyond_a_whole_gpu_are_refused_by_field(placed, servers, cluster, message):
    with pytest.raises(NLRLError, match=message):
        placed(servers, **cluster)


def test_models_of_other_kinds_have_fields_of_their_own(small_config, tmp_path):
    model = {"kind": "vllm", "name": "folder", "tuning": {}}
    config = small_config(tmp_path / "run", model=model, cluster={"kind": "ray", "gpus": 4})
    with pytest.raises(NLRLError, match=r"cluster.gpus is for native models.*tensor_parallel_size"):
        check(config)


# -- under Ray ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def four_gpus(tmp_path_factory):
    """A Ray of this process that believes in 4 GPUs."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        ray.init(address="local", num_cpus=4, num_gpus=4, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


@pytest.fixture
def devices(four_gpus, small_config, tmp_path, monkeypatch):
    """`devices(gpus=4)`: which GPUs each worker of a run sees, by its name."""
    handles, spawn = {}, Cluster.spawn

    def watched(self, *args, **kwargs):
        handle = spawn(self, *args, **kwargs)
        handles[handle.name] = handle
        return handle

    monkeypatch.setattr(Cluster, "spawn", watched)

    def look(*_):
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")

    def make(changes=None, **cluster):
        config = small_config(tmp_path / "run", cluster={"kind": "ray"} | cluster, **(changes or {}))
        folder = RunFolder.open(config.out, config.model_dump(mode="json", exclude_none=True), to_toml(config))
        session = open_session(config, folder)
        try:
            asked = {name: handle._actor.__ray_call__.remote(look) for name, handle in handles.items()}
            return {name: four_gpus.get(answer, timeout=60) for name, answer in asked.items()}
        finally:
            session.close()

    return make


def test_servers_see_different_gpus_and_the_colocated_trainer_the_first_ones(devices):
    seen = devices(gpus=2)
    assert seen["model-0"] == seen["trainer"]
    assert seen["model-0"] != seen["model-1"]
    assert all(len(seen[name]) == 1 for name in ("model-0", "model-1"))
    assert seen["rollout-0"] == seen["rollout-1"] == ""


def test_a_separate_trainer_sees_a_gpu_that_no_server_sees(devices):
    seen = devices(gpus=3, placement="separate")
    assert sorted([seen["model-0"], seen["model-1"], seen["trainer"]]) == sorted(
        {seen["model-0"], seen["model-1"], seen["trainer"]}
    )


def test_several_engines_share_a_gpu(devices):
    seen = devices(gpus=1, servers=2, gpus_per_server=0.4, trainer_gpus=0.2)
    assert len({seen[name] for name in ("model-0", "model-1", "trainer")}) == 1


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"gpus": 5}, "cluster.gpus is 5, but the cluster has 4"),
        ({"worker_cpus": 3}, "cluster.worker_cpus is 3 for each of 2 workers, but the cluster has 4 CPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused_by_field(devices, cluster, message):
    with pytest.raises(NLRLError, match=message):
        devices(**cluster)


def test_the_gathering_halfs_workers_count_too(devices):
    with pytest.raises(NLRLError, match="for each of 4 workers"):
        devices({"staleness": 1}, worker_cpus=1.5)


def test_neither_a_placement_nor_ray_leaves_a_trace_in_the_results_of_an_asynchronous_run(
    four_gpus, small_config, tmp_path, committed_files
):
    few = {"rollout": {"games": 8}, "evaluation": {"games": 2, "exact_states": 0}, "targets": {"states": 4}}
    changes = few | {"staleness": 1, "improvement": {"states": 4}}
    inline = run(small_config(tmp_path / "inline", **changes)).path
    cluster = {"kind": "ray", "gpus": 3, "placement": "separate", "spread": True, "worker_cpus": 0.5}
    placed = run(small_config(tmp_path / "ray", **changes, cluster=cluster)).path
    assert committed_files(placed) == committed_files(inline)


@pytest.mark.parametrize(
    ("placement", "servers", "trainers"), [("colocated", (0, 1, 2), (0, 1)), ("separate", (0, 0, 0), (1, 2))]
)
def test_several_trainers_are_on_gpus_of_their_own(small_config, tmp_path, placement, servers, trainers):
    wanted = {"kind": "ray", "gpus": 3, "placement": placement, "trainers": 2}
    config = small_config(tmp_path / "run", cluster=wanted)
    check_placement(config)
    found = plan(config, 3, 0, on_gpu=True)
    assert tuple(seat.bundle for seat in found.servers) == servers
    assert tuple(seat.bundle for seat in found.trainers) == trainers
    for gpu in range(3):
        assert sum(seat.gpus for seat in (*found.servers, *found.trainers) if seat.bundle == gpu) <= 1


@pytest.mark.parametrize(
    ("declared", "told"),
    [({"gpus": 2, "placement": "separate"}, "at least 3 GPUs"), ({"gpus": 1}, "each on a GPU of its own")],
)
def test_too_few_gpus_for_several_trainers_are_refused(small_config, tmp_path, declared, told):
    config = small_config(tmp_path / "run", cluster={"kind": "ray", "trainers": 2} | declared)
    with pytest.raises(NLRLError, match=told):
        check_placement(config)
