"""Workers as Ray actors; see `cluster` for what is promised."""

from __future__ import annotations

import logging
import os
import re
import signal
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Host, Place, Spawned, Unusable

_log = logging.getLogger(__name__)
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
PATIENCE = 60
"""Seconds to wait for GPUs that another run still has."""
_FAILED_CONNECTION = (ConnectionError, ValueError, RuntimeError)


class RayBackend:
    """A connection to Ray: the one this process has, the one at an address, or a local one of our own."""

    def __init__(self, address: str | None, num_cpus: int | None):
        self._own = self._local = False
        self._reserved: Any = None
        self._handles: list[RayHandle] = []
        if not ray.is_initialized():
            self._connect(address or os.environ.get("RAY_ADDRESS"), num_cpus)
        self._host_class: Any = ray.remote(Host)
        self._mortal_host_class: Any = ray.remote(MortalHost)

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
            "scheduling_strategy": self._strategy(place),
        }
        if threads is not None:  # Ray's own default is num_cpus, at less cost
            options["runtime_env"] = {"env_vars": dict.fromkeys(_THREAD_VARIABLES, str(threads))}
        host_class = self._mortal_host_class if max_restarts else self._host_class
        actor = host_class.options(**options).remote(cls, name, *args, **kwargs)
        handle = RayHandle(actor, name, {"CPU": num_cpus, "GPU": num_gpus})
        self._handles.append(handle)
        return handle

    def put(self, value: Any) -> Any:
        return ray.put(value)

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
            ray.shutdown()
            self._own = False

    def _connect(self, address: str | None, num_cpus: int | None) -> None:
        # Workers report by results and exceptions; their prints are for those who debug.
        chatty = _log.isEnabledFor(logging.DEBUG)
        quiet = {"logging_level": logging.INFO if chatty else logging.ERROR, "log_to_driver": chatty}
        if address in (None, "", "local"):
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker with num_gpus=0 sees none
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=False, **quiet)
            self._own = self._local = True
            return
        if address.startswith("http"):
            raise NLRLError(
                f"RAY_ADDRESS={address} is where jobs are submitted, not a cluster: unset it to run here, "
                "or use `ray job submit`"
            )
        try:
            ray.init(address=address, **quiet)
        except _FAILED_CONNECTION as error:
            raise NLRLError(f"cluster: no Ray cluster answers at {address!r}: {_first_line(error)}") from error
        self._own = True

    def _strategy(self, place: Place) -> Any:
        if place is None or place == "spread":
            return "SPREAD" if place else "DEFAULT"
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


class MortalHost(Host):
    """A host that Ray makes anew when it dies, and that dies when its object is past mending: what a process has lost
    (a CUDA context, say) only a new process gets back."""

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().call(method, *args, **kwargs)
        except Unusable:
            _log.exception("%s ends itself", self)
            os.kill(os.getpid(), signal.SIGKILL)
            raise


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
        return RayFuture(self._actor.call.remote(method, *args, **kwargs), self.name)

    def close(self) -> None:
        if not self.closed and ray.is_initialized():
            ray.kill(self._actor)
        self.closed = True


class RayFuture:
    """An answer on its way."""

    def __init__(self, ref: Any, worker: str):
        self.ref = ref
        self._worker = worker

    @staticmethod
    def wait(futures: list[RayFuture], block: bool) -> list[RayFuture]:
        by_ref = {future.ref: future for future in futures}
        done, _ = ray.wait(list(by_ref), num_returns=1, timeout=None if block else 0)
        return [by_ref[ref] for ref in done]

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
                f"worker {self._worker!r} died ({_cause_of_death(error)}). "
                "Finished records are kept: rerun the same command to resume"
            ) from error


def _cause_of_death(error: Exception) -> str:
    found = re.search(r"Worker exit type: (\w+)", str(error))
    kind = type(error).__name__
    return f"{kind}, {found[1]}: killed, out of memory or crashed" if found else f"{kind}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
