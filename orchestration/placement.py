"""Who runs on which GPUs: the places of model servers, trainer and frozen agents.

1. `cluster.gpus` declares so many whole GPUs. Each is reserved as a bundle of a Ray placement group, so that what
   shares a GPU is decided here and not by what Ray finds free.
2. `colocated`: servers take the GPUs in turn, the trainer shares the first (several the first ones), frozen agents take
   them in turn.
   Those on one GPU have equal shares of it, its servers one share together, unless `gpus_per_server` or `trainer_gpus`
   say otherwise.
3. `separate`: each trainer has one of the last GPUs for itself, servers and frozen agents share the others as above.
4. Nothing declared: one GPU if there is one, which all share, and one for each of several trainers; nothing is
   reserved.
5. Models in vLLM take whole GPUs, tensor-parallel ones several (`gpus.gpus_of`), wherever Ray finds them; their
   training workers ask Ray for theirs when they start.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Cluster
from nlrl.orchestration.config import RunConfig
from nlrl.orchestration.gpus import gpus_of

LEAST_SHARE = 0.6
"""Of a GPU, for each of several actors, so that no two are on one."""
_FINEST = 1e4
"""Ray counts in units of 1/10000."""


class Seat(NamedTuple):
    """Where one worker is."""

    gpus: float = 0
    bundle: int | None = None
    """None: wherever there is room."""


class Placement(NamedTuple):
    """The seats of a run."""

    servers: tuple[Seat, ...]
    trainers: tuple[Seat, ...]
    agents: tuple[Seat, ...]
    bundles: int = 0
    """Whole GPUs that are reserved."""

    @property
    def trainer(self) -> Seat:
        """Of the only trainer, or the first."""
        return self.trainers[0]


def plan(config: RunConfig, servers: int, agents: int, on_gpu: bool) -> Placement:
    """The seats of so many model servers and frozen agents.

    Raises:
        NLRLError: shares of a GPU add up to more than it.
    """
    cluster = config.cluster
    if config.model.kind not in ("native", "scripted"):
        gpus = gpus_of(config.model, 0)
        if cluster.placement == "separate":
            gpus = -(-gpus // 1)  # a whole one, which it shares with no training worker
        return Placement((Seat(gpus),) * servers, (Seat(),), (Seat(gpus),) * agents)
    trainers, count = cluster.trainers, cluster.gpus if cluster.gpus is not None else int(on_gpu)
    if count == 0:
        return Placement((Seat(),) * servers, (Seat(),) * trainers, (Seat(),) * agents)
    if cluster.gpus is None and trainers > 1:
        share, training = gpu_shares(trainers, agents)
        seats = (Seat(_cut(share / servers)),) * servers, (Seat(training),) * trainers, (Seat(share),) * agents
        return Placement(*seats)
    serving = count - trainers if cluster.placement == "separate" else count
    training = [serving + i if cluster.placement == "separate" else i for i in range(trainers)]
    found = _shared(config, [i % serving for i in range(servers)], training, [i % serving for i in range(agents)])
    if cluster.gpus is not None:
        return found._replace(bundles=count)
    anywhere = [tuple(seat._replace(bundle=None) for seat in seats) for seats in (found.servers, found.agents)]
    trainers_ = tuple(seat._replace(bundle=None) for seat in found.trainers)
    return Placement(anywhere[0], trainers_, anywhere[1])


def gpu_shares(trainers: int, agents: int) -> tuple[float, float]:
    """Shares of a GPU where everybody takes turns: of the student's servers and each of the frozen agents, and of each
    trainer."""
    even = int(1e4 / (2 + agents)) / 1e4
    if trainers == 1:
        return even, even
    return int(1e4 * (1 - LEAST_SHARE) / (1 + agents)) / 1e4, LEAST_SHARE


def _shared(config: RunConfig, servers: Sequence[int], trainers: Sequence[int], agents: Sequence[int]) -> Placement:
    """Shares of the GPUs that are given by number."""
    cluster, seats = config.cluster, {"server": {}, "trainer": {}, "agent": {}}
    for gpu in sorted({*servers, *trainers, *agents}):
        declared, open_units = 0.0, agents.count(gpu)
        here = servers.count(gpu)
        if here and cluster.gpus_per_server is not None:
            declared += here * cluster.gpus_per_server
        elif here:
            open_units += 1
        if gpu in trainers and cluster.trainer_gpus is not None:
            declared += cluster.trainer_gpus
        elif gpu in trainers:
            open_units += 1
        if declared > 1 + 1e-6 or (open_units and declared > 1 - 1e-3):
            raise NLRLError(_too_much(config, here, gpu in trainers, open_units))
        unit = _cut((1 - declared) / open_units) if open_units else 0.0
        per_server = cluster.gpus_per_server if cluster.gpus_per_server is not None else _cut(unit / max(here, 1))
        seats["server"][gpu] = Seat(per_server, gpu)
        seats["trainer"][gpu] = Seat(cluster.trainer_gpus if cluster.trainer_gpus is not None else unit, gpu)
        seats["agent"][gpu] = Seat(unit, gpu)
    return Placement(
        tuple(seats["server"][gpu] for gpu in servers),
        tuple(seats["trainer"][gpu] for gpu in trainers),
        tuple(seats["agent"][gpu] for gpu in agents),
    )


def _cut(share: float) -> float:
    return int(_FINEST * share) / _FINEST


def _too_much(config: RunConfig, servers: int, trains: bool, others: int) -> str:
    given = [f"{servers} server(s) of cluster.gpus_per_server {config.cluster.gpus_per_server:g}"] * bool(
        servers and config.cluster.gpus_per_server is not None
    )
    if trains and config.cluster.trainer_gpus is not None:
        given.append(f"the trainer with cluster.trainer_gpus {config.cluster.trainer_gpus:g}")
    left = f" and leave nothing for {others} other(s)" if others else ""
    return f"{' and '.join(given)} do not fit on one GPU{left}; give them less, or raise cluster.gpus"


def check_placement(config: RunConfig) -> None:
    """Refuses declarations that cannot be kept, as far as that is known before a cluster is there.

    Raises:
        NLRLError: names the field.
    """
    cluster, native = config.cluster, config.model.kind in ("native", "scripted")
    if cluster.kind == "inline":
        for field, beyond in (
            ("gpus", (cluster.gpus or 0) > 1),
            ("placement", cluster.placement == "separate"),
            ("gpus_per_server", cluster.gpus_per_server is not None),
            ("trainer_gpus", cluster.trainer_gpus is not None),
            ("worker_cpus", cluster.worker_cpus > 0),
            ("spread", cluster.spread),
        ):
            if beyond:
                raise NLRLError(f"cluster.{field}: with cluster.kind 'inline' all is in one process; leave it out")
    if not native:
        for field in ("gpus", "gpus_per_server", "trainer_gpus"):
            if getattr(cluster, field) is not None:
                raise NLRLError(
                    f"cluster.{field} is for native models; for kind '{config.model.kind}' see model.gpus, "
                    "options.tensor_parallel_size and model.tuning.gpus_per_worker"
                )
        return
    told = "is not given" if cluster.gpus is None else f"is {cluster.gpus}"
    if cluster.placement == "separate" and (cluster.gpus or 0) < 1 + cluster.trainers:
        raise NLRLError(
            f"cluster.placement 'separate' needs at least {1 + cluster.trainers} GPUs, but cluster.gpus {told}"
        )
    if cluster.gpus and cluster.gpus < cluster.trainers:
        raise NLRLError(f"cluster.trainers is {cluster.trainers}, each on a GPU of its own, but cluster.gpus {told}")
    for field in ("gpus_per_server", "trainer_gpus"):
        if getattr(cluster, field) is not None and not cluster.gpus:
            raise NLRLError(f"cluster.{field} is given, but cluster.gpus is not: say on how many GPUs")


def check_room(config: RunConfig, cluster: Cluster, placement: Placement) -> None:
    """Refuses declarations that a cluster has no room for; Ray would wait for ever, without a word.

    Raises:
        NLRLError: names the field.
    """
    there = cluster.resources()
    if there is None:
        return
    gpus, cpus = there.get("GPU", 0), there.get("CPU", 0)
    if placement.bundles > gpus:
        raise NLRLError(
            f"cluster.gpus is {placement.bundles}, but the cluster has {gpus:g}; a cluster that grows by demand must "
            "have them before the run starts"
        )
    whole = sum(seat.gpus for seat in placement.servers)
    if config.model.kind == "vllm" and whole > gpus:
        raise NLRLError(
            f"{len(placement.servers)} server(s) of {placement.servers[0].gpus:g} GPU(s) each (model.gpus, "
            f"options.tensor_parallel_size, cluster.servers) are more than the {gpus:g} that the cluster has"
        )
    workers = config.rollout.workers * (2 if config.staleness else 1)
    if workers * config.cluster.worker_cpus > cpus:
        raise NLRLError(
            f"cluster.worker_cpus is {config.cluster.worker_cpus:g} for each of {workers} workers, but the cluster has "
            f"{cpus:g} CPUs"
        )
