"""Fuzzing: every parser and loader of what comes from outside, as functions of bytes.

1. A *target* takes bytes, makes of them what its parser or loader reads (a text, a file, a request), and holds the
   answer to what is promised: a value that fits, or one of the errors that it names. Anything else is a finding.
2. A finding is also an answer that takes longer than `SECONDS`: patterns and parsers must not be led to work for ever.
3. The same targets are tried for some seconds by hypothesis in the ordinary tests, which damages the seeds, and for
   minutes by atheris, which is guided by coverage: `python -m nlrl.testing.fuzz --minutes 10`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

SECONDS = 2.0
"""What one input may take, on a machine that does other things besides."""

Run = Callable[[bytes], None]
Seeds = Callable[[], Sequence[bytes]]
_targets: dict[str, Target] = {}


class Finding(AssertionError):
    """A promise that was broken."""


@dataclass(frozen=True)
class Target:
    """One parser or loader."""

    name: str
    run: Run
    make_seeds: Seeds
    allowed: tuple[type[BaseException], ...]
    """What it may raise instead of giving a value."""
    slow: bool = False
    """It takes more than a few milliseconds an input: ordinary tests try fewer."""

    @cached_property
    def seeds(self) -> list[bytes]:
        """Good inputs."""
        return list(self.make_seeds())

    def warm(self) -> None:
        """Tries the seeds without a limit: a first call imports modules and compiles patterns."""
        for seed in self.seeds:
            with suppress(*self.allowed):
                self.run(seed)

    def check(self, data: bytes) -> bool:
        """Tries one input; returns whether it was read (True) or refused.

        Raises:
            Finding: it took too long, or a promise was broken. Any other exception is a finding, too.
        """
        began = time.process_time()
        try:
            self.run(data)
            read = True
        except self.allowed:
            read = False
        seconds = time.process_time() - began
        if seconds > SECONDS:
            raise Finding(f"{self.name}: {seconds:.1f} s for {len(data)} bytes")
        return read


def target(
    name: str, seeds: Seeds, allowed: type[BaseException] | Sequence[type[BaseException]] = (), slow: bool = False
) -> Callable[[Run], Run]:
    """Registers a function of bytes."""
    errors = (allowed,) if isinstance(allowed, type) else tuple(allowed)

    def register(run: Run) -> Run:
        _targets[name] = Target(name, run, seeds, errors, slow)
        return run

    return register


def targets() -> dict[str, Target]:
    """All of them, by name."""
    from nlrl.testing.fuzz import configs, files, games, models, requests, runs, texts  # noqa: F401 - they register

    return dict(sorted(_targets.items()))


def holds(promise: bool, what: str) -> None:
    """Raises `Finding` unless a promise holds."""
    if not promise:
        raise Finding(what)
