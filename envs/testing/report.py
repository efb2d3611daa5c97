"""What a suite found: one `Check` a promise, kept, broken or not applicable, and a `Report` that prints them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple


class NotApplicable(Exception):
    """The promise does not concern this game; the message says why."""


class Check(NamedTuple):
    """The outcome of one promise."""

    promise: str
    ok: bool | None
    """None: not applicable."""
    message: str = ""
    """What is wrong, or why the promise does not apply."""


class Report:
    """The checks of one game, in order. Iterating gives `Check`s; `str` is a table for people."""

    def __init__(self, name: str, checks: Iterable[Check]):
        self.name, self.checks = name, tuple(checks)

    @property
    def ok(self) -> bool:
        """No promise is broken."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.ok is False)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __len__(self) -> int:
        return len(self.checks)

    def __getitem__(self, promise: str) -> Check:
        """The check of `promise`.

        Raises:
            KeyError: there is no such promise; the message lists them.
        """
        found = next((check for check in self.checks if check.promise == promise), None)
        if found is None:
            raise KeyError(f"{promise!r}; there are: {[check.promise for check in self.checks]}")
        return found

    def __str__(self) -> str:
        kept = sum(check.ok is True for check in self.checks)
        foot = f"{kept} kept, {len(self.failed)} broken, {len(self) - kept - len(self.failed)} not applicable"
        return "\n".join([self.name, *map(_line, self.checks), foot])


_MARKS = {True: "ok", False: "BROKEN", None: "n/a"}


def _line(check: Check) -> str:
    message = f": {check.message}" if check.message else ""
    return f"  {_MARKS[check.ok]:8}{check.promise}{message}"


def require(holds: bool, promise: str, state: Any = None) -> None:
    """Raises AssertionError with `promise`, and the state it was broken in, unless it `holds`."""
    if not holds:
        raise AssertionError(promise if state is None else f"{promise}, in state {state!r}")


def require_value_error(call: Callable[[], Any], promise: str, state: Any) -> None:
    """Requires that `call` raises ValueError and nothing else."""
    try:
        call()
    except ValueError:
        return
    except Exception as error:
        raise AssertionError(f"{promise} with a ValueError, not {error!r}, in state {state!r}") from error
    raise AssertionError(f"{promise} with a ValueError, in state {state!r}")


def run(promise: str, check: Callable[[], None]) -> Check:
    """The outcome of one check. Whatever it raises but NotApplicable is a broken promise."""
    try:
        check()
    except NotApplicable as reason:
        return Check(promise, None, str(reason))
    except AssertionError as error:
        return Check(promise, False, str(error))
    except Exception as error:
        return Check(promise, False, f"raised {error!r}")
    return Check(promise, True)
