"""One op: its providers are checked, and those that are right are timed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch._dynamo.config
import torch._functorch.config

from nlrl.benchmarks.kernels.cases import Case, Draw
from nlrl.benchmarks.kernels.clock import Clock, Times, sets_wanted
from nlrl.benchmarks.kernels.compare import (
    OTHERS_ALLOWED,
    OURS_ALLOWED,
    Verdict,
    agrees,
    check,
    copies,
    leaves_of,
    results,
)
from nlrl.benchmarks.kernels.peers import BenchPeer, Inputs, Shape
from nlrl.benchmarks.kernels.shapes import Timed
from nlrl.kernels.costs import Cost, cost
from nlrl.kernels.dispatch import OURS, TORCH, Op

COMPILED = "torch.compile"


@dataclass(frozen=True)
class Provider:
    """An implementation that is to be measured."""

    name: str
    call: Callable
    allowed: float = OTHERS_ALLOWED
    """Error, times that of the reference in the same dtype."""
    peer: BenchPeer | None = None

    def fits(self, shape: Shape) -> bool:
        return self.peer is None or self.peer.fits(shape)


@dataclass(frozen=True)
class Measured:
    """A line of the table."""

    op: str
    provider: str
    shape: Shape
    dtype: str
    mode: str
    times: Times
    cost: Cost
    graph: bool

    @property
    def bytes_per_second(self) -> float:
        return self.cost.bytes / self.times.p50 * 1e6

    @property
    def flops_per_second(self) -> float:
        return self.cost.flops / self.times.p50 * 1e6


@dataclass
class Findings:
    """What came out of one op."""

    op: str
    measured: list[Measured] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    """Providers that were not timed, some or all of their lines, and why."""
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of every provider that could be checked: the worst of its checks."""


def providers_of(op: Op, case: Case, peers: dict[str, BenchPeer], with_peers: bool) -> tuple[list[Provider], list[str]]:
    """Those that are there, ours first; and the names of those that are not."""
    found, absent = [], []
    if op.available()[OURS]:
        found.append(Provider(OURS, op.provider(OURS), OURS_ALLOWED))
    else:
        absent.append(OURS)
    found.append(Provider(TORCH, op.eager))
    if case.compiles:
        torch._functorch.config.donated_buffer = False  # a backward is run many times over
        torch._dynamo.config.recompile_limit = 64  # one for each size, dtype and mode
        found.append(Provider(COMPILED, torch.compile(op.compiled, dynamic=False)))
    for name, peer in peers.items() if with_peers else ():
        if peer.installed:
            found.append(Provider(name, peer.call, peer=peer))
        else:
            absent.append(name)
    return found, absent


def checked(
    op: Op, case: Case, provider: Provider, shapes: list[Shape], dtypes: list[torch.dtype], device: str
) -> Verdict:
    """The worst of all checks that the provider can take; an exception is a wrong result too."""
    text = "nothing to compare: no check has a shape that it does"
    if provider.peer is not None and not provider.peer.same:
        return Verdict(True, "a yardstick that does less: not compared")
    for shape in filter(provider.fits, shapes):
        for dtype in dtypes:
            try:
                verdict = check(
                    case, op.reference, provider.call, shape, dtype, device, provider.allowed, provider.peer, op.eager
                )
            except Exception as error:
                verdict = Verdict(False, _short(error))
            text = f"{verdict.worst} ({words(shape)}, {_name(dtype)})"
            if not verdict.right:
                return Verdict(False, text)
    return Verdict("nothing to compare" not in text, text)


def measure(
    op: Op, case: Case, timed: list[Timed], checks: list[Shape], providers: list[Provider], clock: Clock, device: str
) -> Findings:
    """Checks every provider, then times the right ones at every size."""
    findings = Findings(op.name)
    dtypes = sorted({getattr(torch, line.dtype) for line in timed}, key=str)
    right = []
    for provider in providers:
        verdict = findings.verdicts[provider.name] = checked(op, case, provider, checks, dtypes, device)
        if verdict.right:
            right.append(provider)
        else:
            findings.left_out[provider.name] = f"WRONG, not timed: {verdict.worst}"
        torch.compiler.reset()
    for line in timed:
        for mode in line.modes:
            _measure_line(op, case, line, mode, right, clock, device, findings)
    return findings


def _measure_line(
    op: Op, case: Case, line: Timed, mode: str, providers: list[Provider], clock: Clock, device: str, findings: Findings
) -> None:
    """Adds a line for every provider that can do it."""
    dtype = getattr(torch, line.dtype)
    inputs = case.make(Draw(dtype, device), **line.shape)
    call_cost = cost(op.name, mode, dtype.itemsize, **line.shape)  # pyright: ignore[reportArgumentType]
    eager = _or_none(lambda: results(case, op.eager, inputs, mode != "forward"))
    for provider in providers:
        if not provider.fits(line.shape):
            continue
        try:
            if eager is not None and (provider.peer is None or provider.peer.same):
                through = None if provider.peer is None else provider.peer.through
                found = results(case, provider.call, inputs, mode != "forward", provider.peer, through)
                some = through and mode != "forward"
                expected = results(case, op.eager, inputs, True, through=through) if some else eager
                verdict = agrees(found, expected, dtype)
                del found, expected
                if not verdict.right:
                    findings.left_out[provider.name] = f"WRONG at {words(line.shape)}, not timed: {verdict.worst}"
                    continue
            times = _times(case, line, mode, provider, call_cost, clock, device, inputs)
        except Exception as error:  # a peer that does not run must not end the measurements of the others
            findings.left_out[provider.name] = f"failed at {words(line.shape)} {mode}: {_short(error)}"
            continue
        finally:
            _free(device)
        findings.measured.append(
            Measured(op.name, provider.name, line.shape, line.dtype, mode, times, call_cost, line.graph)
        )


def _times(
    case: Case, line: Timed, mode: str, provider: Provider, call_cost: Cost, clock: Clock, device: str, inputs: Inputs
) -> Times:
    if not line.graph:
        return clock.queued(_call(case, mode, provider, inputs))
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device == "cuda" else 0
    count = sets_wanted(call_cost.bytes, cache)
    sets = [case.make(Draw(getattr(torch, line.dtype), device, seed), **line.shape) for seed in range(count)]
    return clock.replayed([_call(case, mode, provider, each) for each in sets])


def _call(case: Case, mode: str, provider: Provider, inputs: Inputs) -> Callable[[], object]:
    """What the clock runs. Its inputs are prepared once; an op that changes them goes on from there."""
    prepared = inputs if provider.peer is None else provider.peer.prepare(inputs)
    if mode == "forward":
        return partial(_forward, provider.call, copies(prepared))
    leaves = leaves_of(case, prepared)
    prepared = copies(prepared, leaves)
    wanted = [prepared[name] for name in leaves]

    def outputs() -> list[torch.Tensor]:
        result = provider.call(**prepared)
        return [part for part in (result if isinstance(result, tuple) else (result,)) if part.requires_grad][:1]

    y = outputs()
    dy = [torch.empty_like(part).copy_(torch.randn_like(part)) for part in y]
    if mode == "backward":
        return lambda: torch.autograd.grad(y, wanted, dy, retain_graph=True, allow_unused=True)
    return lambda: torch.autograd.grad(outputs(), wanted, dy, allow_unused=True)


def _forward(call: Callable, inputs: Inputs) -> object:
    with torch.no_grad():
        return call(**inputs)


def _or_none(call: Callable):
    try:
        return call()
    except torch.OutOfMemoryError:
        return None


def _free(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def words(shape: Shape) -> str:
    """`tokens=32768 width=1024`: a shape as the table and the CSV file have it."""
    return " ".join(f"{name}={value}" for name, value in shape.items())


def groups(measured: Iterable[Measured]) -> Iterator[list[Measured]]:
    """Lines of the same op, shape and mode."""
    found: dict[tuple, list[Measured]] = {}
    for line in measured:
        found.setdefault((line.op, words(line.shape), line.dtype, line.mode), []).append(line)
    yield from found.values()
