"""Everything a run holds while it is running: its config and folder, its actors, its roles, and which policy is
current."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import LanguageModel, Message
from nlrl.envs import make
from nlrl.envs.game import Game
from nlrl.envs.opponents import Opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.budget import Meter, Metered
from nlrl.orchestration.checkpoints import most_held
from nlrl.orchestration.cluster import Cluster, Handle
from nlrl.orchestration.config import ModelConfig, RunConfig
from nlrl.orchestration.exact import is_small
from nlrl.orchestration.frozen import FrozenModel, Source, describe, read_weights, sources
from nlrl.orchestration.gpus import gpus_of
from nlrl.orchestration.instruments import instruments
from nlrl.orchestration.logs import log_context
from nlrl.orchestration.models import scripted_module
from nlrl.orchestration.opposition import Held, Opposition
from nlrl.orchestration.placement import Seat, check_room, plan
from nlrl.orchestration.players import NONE, SELF
from nlrl.orchestration.records import SHARDS_FOLDER
from nlrl.orchestration.router import RESTARTS, ServedModel, start_servers
from nlrl.orchestration.run_folder import CONFIG_FILE, RunFolder
from nlrl.orchestration.speakers import ACTOR, CRITIC, Speakers, roles_of
from nlrl.orchestration.text_worker import TextsJob, TextWorker
from nlrl.orchestration.timings import Timings
from nlrl.orchestration.trainer import WEIGHTS_FILE, Network
from nlrl.orchestration.trainer_group import start_trainer
from nlrl.orchestration.transfer import check_transfer
from nlrl.orchestration.watch import Watch
from nlrl.orchestration.weight_sets import BASE

log = logging.getLogger(__name__)


class Doing(NamedTuple):
    """A stage on its way."""

    stage: str
    since: float
    """Seconds since 1970."""


class Stopped(NLRLError):
    """This half of an asynchronous run ends because the other one has failed."""


@dataclass
class Session(Speakers):
    """A run in progress. Made by `open_session`."""

    config: RunConfig
    folder: RunFolder
    cluster: Cluster
    game: Game[Any]
    student_roles: Roles
    teacher_roles: Roles
    student: ServedModel
    teacher: LanguageModel
    workers: list[Handle]
    trainer: Handle | None
    meter: Meter
    frozen: dict[Source, FrozenModel] = field(default_factory=dict)
    """Frozen agents among the opponents."""
    versions: dict[str, str] = field(default_factory=lambda: {ACTOR: BASE, CRITIC: BASE})
    """Which weight version plays which part now; `base` until it is first trained."""
    timings: Timings = field(default_factory=Timings)
    doing: Doing | None = None
    """The stage that is being run."""
    transfers: dict[str, float] = field(default_factory=dict)
    """What the newest transfers of weights showed, for trackers; see `transfer`."""
    iteration: int = 0
    """That stages are run for; it decides whom `checkpoint(last)` means."""
    held: Held = field(default_factory=Held)
    """Checkpoints in the model servers."""
    stopping: threading.Event = field(default_factory=threading.Event)
    """Set where the other half of an asynchronous run has failed: this one ends at its next job."""

    def __post_init__(self) -> None:
        self.opposition = Opposition(self)  # pyright: ignore[reportArgumentType]

    @contextmanager
    def spending(self, iteration: int, name: str) -> Iterator[None]:
        """Within it, what is spent is entered into the ledger of a stage; a committed one has no more costs."""
        self._go_on()
        self.iteration = iteration
        stage = self.folder.stage(iteration, name)
        if not stage.is_committed():
            self.meter.open(stage.dir / SHARDS_FOLDER)
            self.timings.open(stage.dir)
        self.doing = Doing(name, time.time())
        instruments.set("nlrl_iteration", iteration)
        try:
            with log_context(iteration=iteration, stage=name):
                yield
        finally:
            instruments.count("nlrl_stage_seconds_total", time.time() - self.doing.since, name)
            self.doing = None
            self.meter.close()
            self.timings.close()

    @property
    def num_workers(self) -> int:
        return len(self.workers)

    def texts_of(
        self, make: Callable[..., Any], groups: Iterable[Any], *more: Any, plays: bool = False
    ) -> Iterator[tuple[int, Any]]:
        """(index of the group, `make(speakers, group, *more)`), made by the workers, as they finish.

        Args:
            make: a function of a module; see `Speakers`.
            plays: whether it has games played, against this iteration's opponents.
        """
        opponents = self.opponents if plays else ()
        jobs = (TextsJob(make, (group, *more), self.versions, opponents) for group in groups)
        return self.on_workers("texts", jobs)

    def on_workers(self, method: str, jobs: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """(index of the job, result) of a method of `RolloutWorker`, as workers finish; costs are taken down first."""
        calls = ((method, job, self.student.router.noted()) for job in jobs)
        for index, done in self.cluster.map_unordered(self.workers, "metered", calls):
            if done.restarted:
                log.warning("a rollout worker died; %s took its place and did its work again", done.restarted)
            self.meter.note(done.spent)
            self.timings.note(done.times)
            yield index, done.result
            self._go_on()

    def _go_on(self) -> None:
        if self.stopping.is_set():
            raise Stopped("the other half of the run has failed")

    def told(self) -> dict[str, int]:
        """What the manifest of a gathered set says of it in an asynchronous run: the `staleness` of the weights that
        made it, in iterations."""
        if not self.config.staleness:
            return {}
        newest = max(iteration_of(version) for version in self.versions.values())
        return {"staleness": self.iteration - 1 - newest}

    def opponent(self, name: str) -> Opponent:
        """The opponent of that name, made once; it plays as it does in the rollout workers."""
        return self.opposition.named(name)

    @property
    def is_small(self) -> bool:
        """Whether every state of the game can be asked about, so that results and values are exact."""
        return is_small(self.game.spec, self.config.evaluation.exact_states)

    @property
    def opponents(self) -> tuple[str, ...]:
        """Against whom the policy plays in this iteration, one drawn for each game; `none` where it is alone."""
        if self.game.num_players == 1:
            return (NONE,)
        return self.opposition.drawn(self.iteration)

    @property
    def measured_opponents(self) -> tuple[str, ...]:
        """The same in the evaluation."""
        return (NONE,) if self.game.num_players == 1 else self.config.evaluation.opponents

    def exact_opposition(self) -> list[Opponent | None] | None:
        """The rollout's opponents, None among them for the actor itself; empty for a game for one player. None if one
        is known by its samples only, or the game is too large for exact values of policies."""
        if not self.is_small:
            return None
        if self.game.num_players == 1:
            return []
        found = [None if name == SELF else self.opponent(name) for name in self.opponents]
        return found if all(opponent is None or opponent.exact for opponent in found) else None

    def install(self, network: Network, iteration: int, prompts: Sequence[tuple[Message, ...]] = ()) -> None:
        """Makes a network that the trainer holds the one that answers, as version `actor@3`.

        Args:
            prompts: what it was trained on, of which a few are asked to see that it answers as it was trained.

        Raises:
            NLRLError: it does not.
        """
        assert self.trainer is not None
        version = f"{network}@{iteration}"
        sent = self.trainer.call("weights", network)
        try:
            self.hand_out(network, version, sent.reference)
        except Exception:
            sent.result()  # raises what the trainer raised, where that is why
            raise
        self.versions[network] = version
        check_transfer(self, network, version, prompts)

    def put_weights(self, name: str, version: str, state: Any) -> None:
        """Makes weights answer under a name."""
        self.hand_out(name, version, self.cluster.put(state))

    def hand_out(self, name: str, version: str, weights: Any) -> None:
        """The same of weights that are in the cluster already, as `Cluster.put` gave them."""
        self.student.router.put_weights(name, version, weights)

    def note_weights(self, name: str, version: str, weights: Any) -> None:
        """Tells this session's router what answers under a name; workers learn it with their next call."""
        self.student.router.note_weights(name, version, (weights,))

    def restore(self, network: Network, iteration: int, stage_dir: Path) -> None:
        """Reads a committed network back after a restart."""
        assert self.trainer is not None
        self.trainer.call("load", network, str(stage_dir / WEIGHTS_FILE)).result()
        self.install(network, iteration)

    def close(self) -> None:
        self.cluster.close()
        if self.config.model.tuning is not None:
            from nlrl.orchestration.tuning import scratch_folder

            shutil.rmtree(scratch_folder(self.config.model.tuning, self.folder.path), ignore_errors=True)
        self.folder.close()


def cores_of(config: RunConfig) -> int:
    """CPU cores that the model and the trainer use; they take turns."""
    return config.cluster.threads or len(os.sched_getaffinity(0))


def servers_of(config: RunConfig, on_gpu: bool) -> int:
    """How many model servers: one on each GPU that serves, one a core on a CPU, where small models gain nothing from
    more threads."""
    if config.cluster.servers:
        return config.cluster.servers
    if config.cluster.gpus:
        return config.cluster.gpus - (config.cluster.placement == "separate")
    return cores_of(config) if config.model.kind == "native" and not on_gpu and config.cluster.kind == "ray" else 1


def open_session(config: RunConfig, folder: RunFolder) -> Session:
    """Starts the actors of a run.

    Raises:
        NLRLError: the game or a model cannot be opened.
    """
    game = make(config.game.name, **config.game.params)
    roles = roles_of(config, game)
    cluster = Cluster(config.cluster.kind, address=config.cluster.address)
    cluster.watch = Watch.of(config, folder.path)
    try:
        session = _start(config, folder, cluster, game, *roles)
        _check_shared(session)
        return session
    except BaseException:
        cluster.close()
        raise


def _check_shared(session: Session) -> None:
    """The trainer reads and writes weights in the run's folder, wherever in the cluster it is."""
    known = session.folder.path.absolute() / CONFIG_FILE
    if session.trainer is not None and known.is_file() and not session.trainer.sees(str(known)):
        raise NLRLError(
            f"out: the trainer, on another machine of the cluster, does not see {known.parent}: "
            "name a folder that all machines share"
        )


def _start(
    config: RunConfig, folder: RunFolder, cluster: Cluster, game: Game[Any], student_roles: Roles, teacher_roles: Roles
) -> Session:
    cores, on_gpu = cores_of(config), _uses_gpu(config)
    named = (*config.rollout.opponents, *config.evaluation.opponents) if game.num_players > 1 else ()
    named += config.league.members if config.league.every else ()
    agents = sources(name for name in named if name != SELF)
    count = servers_of(config, on_gpu)
    seats = plan(config, count, len(agents), on_gpu)
    check_room(config, cluster, seats)
    if seats.bundles:
        cluster.reserve(seats.bundles)
    more = max(most_held(config.rollout.opponents), 2 if config.league.every else 0)
    more += config.method == "nlac"  # its target weights
    more += ahead_sets(config)
    router = start_servers(cluster, config.model, count, max(1, cores // count), more_sets=more, places=seats.servers)
    student = ServedModel(router)
    meter, own_teacher = Meter(), None
    if config.teacher is not None:
        gpus = gpus_of(config.teacher, 0)
        own_teacher = ServedModel(start_servers(cluster, config.teacher, threads=cores, num_gpus=gpus, name="teacher"))
    trainer = None
    if config.model.kind == "scripted":
        place = {"num_cpus": 0, "num_gpus": seats.trainer.gpus, "place": seats.trainer.bundle}
        trainer = cluster.spawn(scripted_module(config.model.name).make_trainer, name="trainer", **place)
    elif config.model.kind == "native":
        trainer = start_trainer(cluster, config, cores, seats.trainers)
    elif config.model.tuning is not None:
        from nlrl.orchestration.tuning import TuningActor, scratch_folder  # PyTorch: see `text_worker`

        scratch = str(scratch_folder(config.model.tuning, folder.path))
        given = (config.model.name, config.model.tuning, scratch, cluster.kind, cores)
        trainer = cluster.spawn(TuningActor, *given, num_cpus=0, threads=cores, name="trainer")
    frozen = {
        source: _freeze(cluster, config.model, source, cores, seats.agents[i], f"agent-{i}")
        for i, source in enumerate(agents)
    }
    session = Session(
        config,
        folder,
        cluster,
        game,
        student_roles,
        teacher_roles,
        student,
        Metered(own_teacher or student, meter),
        [],
        trainer,
        meter,
        frozen,
    )
    session.workers = start_workers(session, own_teacher, "rollout")
    return session


def start_workers(session: Session, own_teacher: ServedModel | None, name: str) -> list[Handle]:
    """Rollout workers that ask a session's student; own_teacher: None where that is the student."""
    wanted = session.config.cluster
    place: Any = {"num_cpus": wanted.worker_cpus, "place": "spread" if wanted.spread else None}
    given = session.config, session.game.spec, session.student, own_teacher, session.seed("policy"), session.frozen
    return [
        session.cluster.spawn(TextWorker, *given, name=f"{name}-{index}", max_restarts=RESTARTS, **place)
        for index in range(session.config.rollout.workers)
    ]


def ahead_sets(config: RunConfig) -> int:
    """Weight sets that servers hold for the gathering half of an asynchronous run."""
    if not config.staleness:
        return 0
    from nlrl.orchestration.methods import method_of  # methods are made of stages, which take sessions

    return len(method_of(config).asked(config)) + most_held(config.rollout.opponents)


def iteration_of(version: str) -> int:
    """The iteration that made a weight version such as `actor@3`; 0 for the base."""
    return 0 if version == BASE else int(version.rpartition("@")[2])


def _freeze(cluster: Cluster, student: ModelConfig, source: Source, threads: int, seat: Seat, name: str) -> FrozenModel:
    """A server for a frozen agent, on the device of this run and not that of the agent's own."""
    described = describe(source)
    model = described.config.model_copy(update={"device": student.device})
    places = [seat if model.kind in ("native", "scripted") else (gpus_of(model, 0), None)]
    router = start_servers(cluster, model, threads=threads, name=name, places=places)
    if described.weights is None:
        return described.frozen(ServedModel(router))
    router.put_weights(ACTOR, f"{ACTOR}@{source.iteration}", cluster.put(read_weights(described)))
    return described.frozen(ServedModel(router, ACTOR))


def _uses_gpu(config: RunConfig) -> bool:
    if config.cluster.gpus is not None:
        return config.cluster.gpus > 0
    if config.model.kind != "native" or config.model.device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()
