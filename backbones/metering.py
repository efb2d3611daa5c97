"""What a model behind an endpoint has used, and the budget that stops it before it uses more.

1. Every attempt reserves its worst case (prompt estimate + `max_tokens`) before it is sent. A reservation that does not
   fit the budget is refused, so spending cannot pass the budget while requests are in flight.
2. An answer settles the reservation with the token counts that the endpoint reports.
3. An attempt whose usage nobody reports (a time-out, an unreadable answer) keeps its worst case: it may be billed.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from types import TracebackType

from nlrl.backbones.language_model import LanguageModelError

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Usage:
    """Totals since the meter was made. `cost` is in the currency of the prices."""

    requests: int = 0
    """Requests taken on, however many attempts each needed."""
    retries: int = 0
    """Attempts beyond the first of a request."""
    errors: int = 0
    """Requests that ended without an answer."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported_tokens: int = 0
    """Worst case of attempts whose usage was never reported; counted against the budget and in `cost`."""
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """All tokens that count against a budget."""
        return self.prompt_tokens + self.completion_tokens + self.unreported_tokens


@dataclass(frozen=True, slots=True)
class _Amount:
    prompt: int = 0
    completion: int = 0

    def __add__(self, other: _Amount) -> _Amount:
        return _Amount(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: _Amount) -> _Amount:
        return _Amount(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion


class Reservation:
    """The worst case of one attempt, held until settled; its `with` block counts it as unreported if nobody does."""

    def __init__(self, meter: Meter, amount: _Amount) -> None:
        self._meter = meter
        self._amount = amount
        self._open = True

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Replaces the worst case by what the endpoint reports (0, 0 when it refused and billed nothing)."""
        self._close(reported=_Amount(prompt_tokens, completion_tokens), unreported=_Amount())

    def _close(self, reported: _Amount, unreported: _Amount) -> None:
        if self._open:
            self._open = False
            self._meter._settle(self._amount, reported, unreported)

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(reported=_Amount(), unreported=self._amount)


class Meter:
    """Counts requests, tokens and cost across threads, and enforces an optional budget.

    Args:
        prompt_price, completion_price: per million tokens.
        budget_tokens: most tokens (prompt and completion together) to use, or None.
        budget_cost: most cost, in the currency of the prices, or None.
    """

    def __init__(
        self,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        budget_tokens: int | None = None,
        budget_cost: float | None = None,
    ) -> None:
        self._prices = (prompt_price, completion_price)
        self._budget_tokens = budget_tokens
        self._budget_cost = budget_cost
        self._lock = threading.Lock()
        self._reported, self._unreported, self._held = _Amount(), _Amount(), _Amount()
        self._requests = self._retries = self._errors = 0

    def count(self, requests: int = 0, retries: int = 0, errors: int = 0) -> None:
        """Adds to the counters."""
        with self._lock:
            self._requests += requests
            self._retries += retries
            self._errors += errors

    def reserve(self, prompt_tokens: int, completion_tokens: int) -> Reservation:
        """Sets the worst case of one attempt aside.

        Raises:
            LanguageModelError: spent + in flight + this worst case would pass the budget.
        """
        amount = _Amount(prompt_tokens, completion_tokens)
        with self._lock:
            self._check(self._reported + self._unreported + self._held, amount)
            self._held += amount
        return Reservation(self, amount)

    @property
    def usage(self) -> Usage:
        """The totals so far."""
        with self._lock:
            return Usage(
                requests=self._requests,
                retries=self._retries,
                errors=self._errors,
                prompt_tokens=self._reported.prompt,
                completion_tokens=self._reported.completion,
                unreported_tokens=self._unreported.tokens,
                cost=self._cost(self._reported + self._unreported),
            )

    def _settle(self, held: _Amount, reported: _Amount, unreported: _Amount) -> None:
        with self._lock:
            self._held -= held
            self._reported += reported
            self._unreported += unreported

    def _cost(self, amount: _Amount) -> float:
        return (amount.prompt * self._prices[0] + amount.completion * self._prices[1]) / MILLION

    def _check(self, used: _Amount, more: _Amount) -> None:
        total = used + more
        if self._budget_tokens is not None and total.tokens > self._budget_tokens:
            raise LanguageModelError(
                f"budget_tokens: {self._budget_tokens:,} allowed, {used.tokens:,} used or in flight, and the next "
                f"request may take {more.tokens:,}; raise budget_tokens or lower max_tokens"
            )
        if self._budget_cost is not None and self._cost(total) > self._budget_cost:
            raise LanguageModelError(
                f"budget_cost: {self._budget_cost:g} allowed, {self._cost(used):.4g} used or in flight, and the next "
                f"request may cost {self._cost(more):.4g}; raise budget_cost or lower max_tokens"
            )
