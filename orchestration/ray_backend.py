"""Workers as Ray actors; see `cluster` for what is promised."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import ray
import ray.exceptions
from ray import cloudpickle
from ray._private import ray_constants
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Host, Place, Spawned, Unusable
from nlrl.orchestration.logs import context
from nlrl.orchestration.nodes import Turns, alive, cause_of_death, first_line, settled
from nlrl.orchestration.ray_watch import LocalWatch

_log = logging.getLogger(__name__)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PATIENCE = 60
"""Seconds to wait for GPUs that another run still has."""
_FAILED_CONNECTION = (ConnectionError, ValueError, RuntimeError)


class RayBackend:
    """A connection to Ray: the one this process has, the one at an address, or a local one of our own."""

    def __init__(self, address: str | None, num_cpus: int | None):
        self._own = self._local = False
        self._reserved: Any = None
        self._handles: list[RayHandle] = []
        self._watch: LocalWatch | None = None
        self._turns = Turns()
        if not ray.is_initialized():
            self._connect(address or os.environ.get("RAY_ADDRESS"), num_cpus)

    def spawn(
        self,
        host: Spawned,
        num_cpus: float,
        num_gpus: float,
        max_restarts: int,
        threads: int | None,
        concurrency: int = 1,
        place: Place = None,
    ) -> RayHandle:
        cls, name, args, kwargs = host
        self._check_resources(name, {"CPU": num_cpus, "GPU": num_gpus})
        options: dict[str, Any] = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": max_restarts,
            "max_task_retries": max_restarts,
            "max_concurrency": concurrency,
        }
        if place is not None:
            options["scheduling_strategy"] = self._strategy(place)
        elif not num_cpus and not num_gpus:
            options |= self._turns.next()
        if threads is not None:  # Ray's own default is num_cpus, at less cost
            options["runtime_env"] = {"env_vars": dict.fromkeys(_THREAD_VARIABLES, str(threads))}
        host_class = type(name, (MortalHost if max_restarts else Host,), {})  # `ps` shows ray::NAME
        if max_restarts:
            args, kwargs = (packed(args, kwargs),), {}
        actor = ray.remote(host_class).options(**options).remote(cls, name, *args, **kwargs)
        handle = RayHandle(actor, name, {"CPU": num_cpus, "GPU": num_gpus})
        self._handles.append(handle)
        return handle

    def put(self, value: Any) -> Any:
        return ray.put(value)

    def place(self) -> dict[str, Any]:
        runtime, dashboard = ray.get_runtime_context(), None if self._local else _dashboard()
        job = json.loads(os.environ.get(_JOB, "{}")).get("metadata", {}).get("job_submission_id")
        found = {"address": runtime.gcs_address, "job": runtime.get_job_id(), "submission": job, "dashboard": dashboard}
        ports = [f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]
        return {key: value for key, value in found.items() if value} | {"metrics_of_nodes": ports}

    def resources(self) -> dict[str, float]:
        return dict(ray.cluster_resources())

    def reserve(self, gpus: int) -> None:
        group = ray.util.placement_group([{"GPU": 1}] * gpus, strategy="PACK")
        if not group.wait(PATIENCE):
            ray.util.remove_placement_group(group)
            raise NLRLError(
                f"cluster.gpus is {gpus}, but so many are not free: after {PATIENCE} s others still have them"
            )
        self._reserved = group

    def close(self) -> None:
        if self._reserved is not None and ray.is_initialized():
            ray.util.remove_placement_group(self._reserved)
        self._reserved = None
        if self._own:
            if self._watch is not None:
                self._watch.stop()
            ray.shutdown()
            self._own = False

    def _connect(self, address: str | None, num_cpus: int | None) -> None:
        # Workers report by results and exceptions; their prints are for those who debug.
        chatty = _log.isEnabledFor(logging.DEBUG)
        quiet = {"logging_level": logging.INFO if chatty else logging.ERROR, "log_to_driver": chatty}
        if address in (None, "", "local"):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker with num_gpus=0 sees none
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "15")  # nobody brings a local one back
            _start_local(num_cpus=num_cpus, include_dashboard=False, **quiet)
            self._own = self._local = True
            self._watch = LocalWatch()
            return
        if address.startswith("http"):
            raise NLRLError(
                f"RAY_ADDRESS={address} is where jobs are submitted, not a cluster: unset it to run here, "
                "or use `ray job submit`"
            )
        try:
            with _on_loopback() if _is_on_loopback_alone(address) else nullcontext():
                ray.init(address=address, **quiet)
        except _FAILED_CONNECTION as error:
            raise NLRLError(f"cluster: no Ray cluster answers at {address!r}: {first_line(error)}") from error
        self._own = True

    def _strategy(self, place: int | Literal["spread"]) -> Any:
        if place == "spread":
            return "SPREAD"
        return PlacementGroupSchedulingStrategy(self._reserved, placement_group_bundle_index=place)

    def _check_resources(self, name: str, wanted: dict[str, float]) -> None:
        """Ray waits for ever for what is not there, without a word."""
        self._handles = [handle for handle in self._handles if not handle.closed]
        total = ray.cluster_resources()
        for kind, amount in wanted.items():
            taken = sum(handle.resources[kind] for handle in self._handles)
            if amount and taken + amount > total.get(kind, 0):
                self._complain(
                    f"worker {name!r} needs {amount:g} {kind}, but this run already has {taken:g} "
                    f"of the {total.get(kind, 0):g} that Ray may use"
                )

    def _complain(self, shortage: str) -> None:
        if self._local:
            raise NLRLError(f"{shortage}. Use fewer workers, or raise the cluster's num_cpus")
        _log.warning("%s; waiting until there is room (a cluster may grow)", shortage)


def _start_local(**options: Any) -> None:
    """Starts a Ray on this machine; on one that is busy (or has just lost another Ray) the first try may time out.

    Raises:
        NLRLError: it did not start twice.
    """
    for last in (False, True):
        try:
            with _on_loopback():
                ray.init(address="local", **options)
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if last:
                reason = first_line(error)
                raise NLRLError(
                    f"Ray did not start on this machine: {reason} The same command tries again; without Ray: "
                    "--cluster.kind inline"
                ) from error
            _log.warning("Ray did not start, trying once more: %s", first_line(error))


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A cluster that is started in the block listens on this machine's loopback address alone; one that does is only
    found in such a block.

    Who reaches a cluster runs code on it. On Linux Ray listens on all addresses, because a cluster may grow; it has no
    argument for one that will not (`_node_ip_address` is taken for a mistake if it is 127.0.0.1), but a switch that it
    sets by itself on other systems.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _is_on_loopback_alone(address: str) -> bool:
    """Whether a cluster at a loopback address, such as another run's own, answers at no other address."""
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost", "[::1]") or not port.isdigit():
        return False
    return _answers("127.0.0.1", int(port)) and not _answers(ray.util.get_node_ip_address(), int(port))


def _answers(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=2):
            return True
    except (OSError, OverflowError):
        return False


class MortalHost(Host):
    """A host that Ray makes anew when it dies, and that dies when its object is past mending: what a process has lost
    (a CUDA context, say) only a new process gets back.

    Its arguments come packed: Ray may have forgotten handles and references by the time it needs them again (its issue
    53727), but not bytes.
    """

    def __init__(self, cls: Callable[..., Any], name: str, /, arguments: bytes):
        args, kwargs = cloudpickle.loads(arguments)
        super().__init__(cls, name, *map(_value, args), **{key: _value(value) for key, value in kwargs.items()})

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().call(method, *args, **kwargs)
        except Unusable:
            _log.exception("%s ends itself", self)
            os.kill(os.getpid(), signal.SIGKILL)
            raise


def packed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Arguments for a `MortalHost`."""
    return cloudpickle.dumps((args, kwargs))  # pyright: ignore[reportPrivateImportUsage]


def _value(argument: Any) -> Any:
    return ray.get(argument) if isinstance(argument, ray.ObjectRef) else argument


class RayHandle:
    """A worker in a process of its own."""

    def __init__(self, actor: Any, name: str, resources: dict[str, float]):
        self.name = name
        self.resources = resources
        self.closed = False
        self._actor = actor

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> RayFuture:
        if self.closed:
            raise NLRLError(f"worker {self.name!r} is closed")
        return RayFuture(self._actor.call_in.remote(context(), method, *args, **kwargs), self.name, self._actor)

    def sees(self, path: str) -> bool:
        if len(alive()) < 2:
            return True
        return RayFuture(self._actor.read.remote(path), self.name, self._actor).result() == Path(path).read_bytes()

    def close(self) -> None:
        if not self.closed and ray.is_initialized():
            ray.kill(self._actor)
        self.closed = True


class RayFuture:
    """An answer on its way."""

    def __init__(self, ref: Any, worker: str, actor: Any):
        self.ref = ref
        self._worker, self._actor = worker, actor

    @staticmethod
    def wait(futures: list[RayFuture], block: bool) -> list[RayFuture]:
        by_ref = {future.ref: future for future in futures}
        # A look costs in proportion to the calls under way, so it takes all that is done.
        try:
            done, waiting = ray.wait(list(by_ref), num_returns=len(by_ref), timeout=0)
            if block and not done:
                done, _ = ray.wait(waiting, num_returns=1)
        except OSError as error:
            raise _lost(error) from error
        return [by_ref[ref] for ref in done]

    @property
    def reference(self) -> Any:
        return self.ref

    def result(self, timeout: float | None = None) -> Any:
        try:
            return ray.get(self.ref, timeout=timeout)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except ray.exceptions.GetTimeoutError as error:
            raise TimeoutError(f"worker {self._worker!r} has not answered in {timeout:g} s") from error
        except ray.exceptions.RayError as error:
            raise NLRLError(
                f"worker {self._worker!r} died ({cause_of_death(settled(error, self._actor))}). "
                "Finished records are kept: rerun the same command to resume"
            ) from error
        except OSError as error:
            raise _lost(error) from error


def _lost(error: OSError) -> Unusable:
    """A process without its raylet can ask nobody any more; if it is a worker, another one does its work."""
    return Unusable(
        f"this machine's part of Ray, 'raylet', died ({error}). "
        "Finished records are kept: rerun the same command to resume"
    )


def _dashboard() -> str | None:
    """Ray has the address in no public place."""
    try:
        from ray._private.worker import get_dashboard_url

        return f"http://{found}" if (found := get_dashboard_url()) else None
    except Exception:
        return None
