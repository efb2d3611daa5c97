"""Workers, here or elsewhere: stages run alike in one process and on a Ray cluster.

1. `spawn` puts an object to work and returns a handle; `handle.call("method", ...)` returns a future; calls to one
   worker are answered one at a time, in order (unless it was spawned with `concurrency`).
2. kind="inline" keeps the object in this process and answers at once: for tests, laptops and debuggers. kind="ray"
   gives each object a process of its own, on any machine of the cluster, with its own CPUs and GPUs. Nothing else may
   differ.
3. What a worker raises, its constructor included, is raised again by the future's `result`, as itself.
4. A worker that dies ends the stage with an error that names it. Nothing is retried behind the user's back (unless
   `max_restarts` asks for it): records are safe, and rerunning the same command makes what is missing.
5. With `max_restarts`, a worker that died is made anew from the arguments of `spawn`, and its unanswered calls are
   repeated; calls that were answered before are not, so each must bring what its answer depends on. One whose object
   says that it is `Unusable` is replaced in the same way.

Arguments are copied to Ray workers, so big ones that many calls share go through `put` once.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from nlrl.errors import NLRLError
from nlrl.orchestration.call_metrics import note_call
from nlrl.orchestration.logs import log_context

if TYPE_CHECKING:
    from nlrl.orchestration.watch import Watch

Kind = Literal["ray", "inline"]
Place = int | Literal["spread"] | None


class Unusable(NLRLError):
    """Raised by a worker's object that cannot go on."""


class Future(Protocol):
    """An answer that may not be there yet."""

    @staticmethod
    def wait(futures: list[Any], block: bool) -> list[Any]:
        """Those of the same kind of cluster that are done; with `block` at least one."""
        ...

    def result(self, timeout: float | None = None) -> Any:
        """Waits for the answer.

        Args:
            timeout: seconds; None waits for ever. Inline answers are always there.

        Raises:
            Exception: what the worker raised.
            NLRLError: the worker died.
            TimeoutError: not there in time.
        """
        ...

    @property
    def reference(self) -> Any:
        """What stands for the answer among the arguments of another call, where it need not pass through here. Where
        the call failed, so does the other one."""
        ...


class Handle(Protocol):
    """A worker."""

    name: str

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Future:
        """Starts a method of the worker's object."""
        ...

    def sees(self, path: str) -> bool:
        """Whether a file of this machine is there, and the same, where the worker is. Waits until it has started."""
        ...

    def close(self) -> None:
        """Ends the worker and frees what it holds; a second call does nothing."""
        ...


class Cluster:
    """Where workers live.

    Args:
        kind: "ray" or "inline".
        address: of a running Ray cluster; "auto" finds one on this machine. None: the one named by RAY_ADDRESS, as
            inside `ray job submit`, or else a local one that ends with `close`.
        num_cpus: how many CPUs the local Ray may hand out (default: all).

    Raises:
        NLRLError: no Ray cluster answers at the address.
    """

    def __init__(self, kind: Kind = "ray", address: str | None = None, num_cpus: int | None = None):
        self.kind: Kind = kind
        self._backend = _backend(kind, address, num_cpus)
        self._handles: list[Handle] = []
        self.watch: Watch | None = None
        """What processes of workers do to be watched."""

    def place(self) -> dict[str, Any]:
        """Where workers live, for people: kind, address, dashboard, job."""
        return {"kind": self.kind} | self._backend.place()

    def spawn(
        self,
        cls: Callable[..., Any],
        *args: Any,
        num_cpus: float = 1,
        num_gpus: float = 0,
        name: str | None = None,
        max_restarts: int = 0,
        threads: int | None = None,
        concurrency: int = 1,
        place: Place = None,
        **kwargs: Any,
    ) -> Handle:
        """Starts a worker around `cls(*args, **kwargs)`; returns before it is ready.

        Args:
            name: for error messages and logs.
            max_restarts: how often a worker that died, or whose object is `Unusable`, is made anew and its unanswered
                calls repeated; only for objects whose calls may be repeated.
            threads: for OpenMP and the like in that process (default: `num_cpus`).
            concurrency: calls that may run at once, each in a thread of its own; the object must be made for it.
            place: the number of a GPU that `reserve` set aside; "spread": a machine with few other workers.

        Raises:
            NLRLError: the local machine does not have that many CPUs or GPUs left.
        """
        name = name or f"{getattr(cls, '__name__', 'worker')}-{len(self._handles)}"
        host = (self.watch.around(cls, name) if self.watch is not None else cls, name, args, kwargs)
        handle = self._backend.spawn(host, num_cpus, num_gpus, max_restarts, threads, concurrency, place)
        self._handles.append(handle)
        return handle

    def resources(self) -> dict[str, float] | None:
        """All CPUs, GPUs and so on that Ray may use; None inline."""
        return self._backend.resources()

    def reserve(self, gpus: int) -> None:
        """Sets whole GPUs aside for the workers whose `place` is one of them, until `close`.

        Raises:
            NLRLError: there are not so many that are free.
        """
        self._backend.reserve(gpus)

    def put(self, value: Any) -> Any:
        """Something big to pass to many calls: a reference that Ray replaces by the value, inline the value itself. Not
        to be changed by who receives it."""
        return self._backend.put(value)

    def gather(self, futures: Iterable[Future]) -> list[Any]:
        """All results, in the order of the futures."""
        return [future.result() for future in futures]

    def map(self, handles: Sequence[Handle], method: str, items: Iterable[Any], max_in_flight: int = 2) -> list[Any]:
        """Calls `method(item)` for every item on whichever worker is free; results in the order of the items."""
        done = dict(self.map_unordered(handles, method, items, max_in_flight))
        return [done[index] for index in range(len(done))]

    def map_unordered(
        self, handles: Sequence[Handle], method: str, items: Iterable[Any], max_in_flight: int = 2
    ) -> Iterator[tuple[int, Any]]:
        """As `map`, but yields (index of the item, result) as they come.

        Args:
            items: taken one by one, only when a worker is free.
            max_in_flight: calls that one worker has at a time; 2 keeps the next item at hand while it works on one.
        """
        if not handles:
            raise ValueError("no workers to map over")
        free = deque(list(handles) * max_in_flight)
        running: dict[Future, tuple[int, Handle]] = {}
        for index, item in enumerate(items):
            handle = free.popleft()
            running[handle.call(method, item)] = index, handle
            yield from self._collect(running, free, block=not free)
        while running:
            yield from self._collect(running, free, block=True)

    def close(self) -> None:
        """Ends all workers, and Ray if this object started it; a second call does nothing."""
        for handle in self._handles:
            handle.close()
        self._handles.clear()
        self._backend.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _collect(
        self, running: dict[Future, tuple[int, Handle]], free: deque[Handle], block: bool
    ) -> Iterator[tuple[int, Any]]:
        for future in first_done(list(running), block):
            index, handle = running.pop(future)
            free.append(handle)
            yield index, future.result()


def first_done(futures: Sequence[Future], block: bool = True) -> list[Any]:
    """Those that are done; with `block` at least one. All are of one cluster."""
    return type(futures[0]).wait(list(futures), block) if futures else []


def was_restarted() -> bool:
    """Whether the worker that calls this took the place of one that died."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and context.was_current_actor_reconstructed


class Host:
    """Holds a worker's object in its process. A constructor that fails is reported by the calls, which is where users
    look."""

    def __init__(self, cls: Callable[..., Any], name: str, /, *args: Any, **kwargs: Any):
        self._name = name
        self._failure: Exception | None = None
        try:
            self._object = cls(*args, **kwargs)
        except Exception as error:
            self._failure = error

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any:
        if self._failure is not None:
            raise self._failure
        began = time.perf_counter()
        result = getattr(self._object, method)(*args, **kwargs)
        note_call(method, args, time.perf_counter() - began, result)
        return result

    def call_in(self, context: dict[str, Any], method: str, /, *args: Any, **kwargs: Any) -> Any:
        """`call`, with the log context of whoever calls from another process."""
        with log_context(**context):
            return self.call(method, *args, **kwargs)

    def read(self, path: str) -> bytes | None:
        """A file as this process sees it; None, if it does not."""
        try:
            return Path(path).read_bytes()
        except OSError:
            return None

    def close(self) -> None:
        """Closes the object, if it is one that can be closed. (Where a process ends with its object, nobody asks.)"""
        close = getattr(getattr(self, "_object", None), "close", None)
        if close is not None:
            close()

    def __repr__(self) -> str:
        return self._name  # what Ray puts before a worker's log lines


Spawned = tuple[Callable[..., Any], str, tuple[Any, ...], dict[str, Any]]
"""What a worker is made of: class, name, arguments."""


class Backend(Protocol):
    """What the two kinds of cluster have to offer."""

    def spawn(
        self,
        host: Spawned,
        num_cpus: float,
        num_gpus: float,
        max_restarts: int,
        threads: int | None,
        concurrency: int,
        place: Place,
    ) -> Handle: ...

    def resources(self) -> dict[str, float] | None: ...

    def reserve(self, gpus: int) -> None: ...

    def put(self, value: Any) -> Any: ...

    def place(self) -> dict[str, Any]: ...

    def close(self) -> None: ...


def _backend(kind: Kind, address: str | None, num_cpus: int | None) -> Backend:
    if kind == "inline":
        return _Inline()
    if kind == "ray":
        from nlrl.orchestration.ray_backend import RayBackend  # ray costs a second and 100 MB

        return RayBackend(address, num_cpus)
    raise NLRLError(f"cluster: kind is {kind!r}, must be 'ray' or 'inline'")


# -- inline ------------------------------------------------------------------------------------------------------------
class _Inline:
    def spawn(
        self,
        host: Spawned,
        num_cpus: float,
        num_gpus: float,
        max_restarts: int,
        threads: int | None,
        concurrency: int,
        place: Place,
    ) -> InlineHandle:
        return InlineHandle(*host, max_restarts)

    def resources(self) -> None:
        return None

    def reserve(self, gpus: int) -> None:
        pass

    def put(self, value: Any) -> Any:
        return value

    def place(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass


class InlineHandle:
    """A worker in this process."""

    def __init__(
        self, cls: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], max_restarts: int
    ):
        self.name = name
        self._spawned, self._restarts = (cls, name, args, kwargs), max_restarts
        self._host: Host | None = self._new_host()

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> InlineFuture:
        if self._host is None:
            raise NLRLError(f"worker {self.name!r} is closed")
        try:
            return InlineFuture(self._host.call(method, *args, **kwargs), None)
        except Unusable as error:
            if not self._restarts:
                return InlineFuture(None, error)
            self._restarts -= 1
            self._host.close()
            self._host = self._new_host()
            return self.call(method, *args, **kwargs)
        except Exception as error:
            return InlineFuture(None, error)

    def sees(self, path: str) -> bool:
        return True

    def close(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.close()

    def _new_host(self) -> Host:
        cls, name, args, kwargs = self._spawned
        return Host(cls, name, *args, **kwargs)


class InlineFuture:
    """An answer that is there."""

    def __init__(self, value: Any, error: Exception | None):
        self._value, self._error = value, error

    @staticmethod
    def wait(futures: list[InlineFuture], block: bool) -> list[InlineFuture]:
        return futures

    def result(self, timeout: float | None = None) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    @property
    def reference(self) -> Any:
        return self.result()
