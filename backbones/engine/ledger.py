"""What the host knows of every row's answer, in arrays by row, so that a burst costs it the same few calls for one
row and for a thousand.

1. A sequence takes a seat when its prompt has been read and leaves it when its row is taken back; no two seats have the
   same number.
2. A flight is a draw that the device has been asked for: rows, their seats, and the copies of what was drawn. Several
   may be under way; they land in order. What one brings for a seat that has been left meanwhile is dropped.
3. `count` says how many tokens of an answer have landed, `planned` how many there will be when all flights have, unless
   the answer ends before.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass
from itertools import count

import numpy as np

from nlrl.backbones.engine.runner import Features
from nlrl.backbones.engine.sequence import Sequence
from nlrl.backbones.engine.transfer import Download

EVERY_TOKEN, WATCHED, FILTERS, NUMBERS, MASK, TOP = (1 << i for i in range(6))
"""What a row asks for. EVERY_TOKEN: nothing can be drawn before the host has seen the last token."""


@dataclass(eq=False)
class Flight:
    """A draw under way."""

    rows: np.ndarray
    seats: np.ndarray
    results: Download
    """tokens `(rows, steps)`, log-probabilities `(rows, steps)`, and expectations `(rows,)` if some row wants one."""


class Ledger:
    """Answers and settings of `rows` rows; an answer has at most `length` tokens."""

    def __init__(self, rows: int, length: int, ends: frozenset[int]):
        self.ends = ends
        self._ends = np.array(sorted(ends))
        self.drawn = np.zeros((rows, length), np.int32)
        self.logprobs = np.zeros((rows, length), np.float32)
        self.expectation = np.full(rows, np.nan, np.float32)
        self.count, self.planned, self.prompt, self.limit, self.seats = np.zeros((5, rows), np.int64)
        self.ignores_end = np.zeros(rows, np.bool_)
        self.asks = np.zeros(rows, np.uint8)
        self._columns = (self.drawn, self.logprobs, self.expectation, self.count, self.planned, self.prompt, self.limit,
                         self.seats, self.ignores_end, self.asks)  # fmt: skip
        self._numbers = count(1)

    def seat(self, sequences: Many[Sequence]) -> np.ndarray:
        """Gives sequences the seats of their rows; returns the rows."""
        rows = np.array([s.row for s in sequences], np.int64)
        asks: dict[int, int] = {}
        for s in sequences:
            if s.drawn:
                before = len(s.drawn)
                self.drawn[s.row, :before], self.logprobs[s.row, :before] = s.drawn, s.logprobs
            if id(s.sampling) not in asks:
                asks[id(s.sampling)] = _asks(s)
            self.asks[s.row] = asks[id(s.sampling)] | (WATCHED if s.watched else 0)
        settings = [(len(s.drawn), len(s.prompt), s.sampling.max_tokens, next(self._numbers)) for s in sequences]
        self.count[rows], self.prompt[rows], self.limit[rows], self.seats[rows] = np.array(settings).T
        self.planned[rows] = self.count[rows]
        self.ignores_end[rows] = [s.sampling.ignore_end for s in sequences]
        self.expectation[rows] = [s.expectation for s in sequences]
        return rows

    def leave(self, row: int) -> None:
        """Nobody sits there any more."""
        self.seats[row] = 0

    def move(self, old: Many[int], new: Many[int]) -> None:
        """Seats go to other rows; only while no flight is under way."""
        for column in self._columns:
            column[new] = column[old]
        self.seats[old] = 0

    def asked(self, rows: np.ndarray) -> int:
        """What any of the rows asks for."""
        return int(np.bitwise_or.reduce(self.asks[rows], initial=0))

    def features(self, rows: np.ndarray) -> Features:
        asked = self.asked(rows)
        return Features(bool(asked & FILTERS), bool(asked & NUMBERS), bool(asked & MASK), bool(asked & TOP))

    def unplanned(self, rows: np.ndarray) -> np.ndarray:
        """How many tokens of each row's answer nobody has asked the device for."""
        return self.limit[rows] - self.planned[rows]

    def slots(self, rows: np.ndarray, steps: int) -> np.ndarray:
        """How many tokens each row's state has to hold for so many steps more."""
        return self.prompt[rows] - 1 + np.minimum(self.planned[rows] + steps, self.limit[rows])

    def depart(self, rows: np.ndarray, steps: int, results: Download) -> Flight:
        """Notes that the device will draw so many tokens more."""
        self.planned[rows] = np.minimum(self.planned[rows] + steps, self.limit[rows])
        return Flight(rows, self.seats[rows], results)

    def land(self, flight: Flight) -> tuple[np.ndarray, np.ndarray, int]:
        """Notes what a flight has brought: (rows of it that are still taken, which of their answers are complete, how
        many tokens came)."""
        tokens, logprobs, *expectation = flight.results.wait()
        here = self.seats[flight.rows] == flight.seats
        rows, tokens, logprobs = flight.rows[here], tokens[here], logprobs[here]
        for numbers in expectation:
            self.expectation[rows] = numbers[here]
        steps = tokens.shape[1]
        ends = np.isin(tokens, self._ends) & ~self.ignores_end[rows, None]
        first_end = np.where(ends.any(1), ends.argmax(1) + 1, steps + 1)
        new = np.minimum(np.minimum(first_end, self.limit[rows] - self.count[rows]), steps)
        which, step = np.nonzero(np.arange(steps) < new[:, None])
        places = rows[which], self.count[rows[which]] + step
        self.drawn[places], self.logprobs[places] = tokens[which, step], logprobs[which, step]
        self.count[rows] += new
        return rows, (new == first_end) | (self.count[rows] >= self.limit[rows]), int(new.sum())

    def answer(self, row: int) -> tuple[list[int], list[float]]:
        """Tokens and their log-probabilities, as far as they have landed."""
        length = self.count[row]
        return self.drawn[row, :length].tolist(), self.logprobs[row, :length].tolist()


def _asks(s: Sequence) -> int:
    """Of its sampling alone."""
    how = s.sampling
    asks = {
        EVERY_TOKEN: how.constraint is not None or how.top_logprobs > 0,
        FILTERS: how.temperature > 0 and (how.top_k > 0 or how.top_p < 1 or how.min_p > 0),
        NUMBERS: how.expected_number,
        MASK: how.constraint is not None,
        TOP: how.top_logprobs > 0,
    }
    return sum(bit for bit, wanted in asks.items() if wanted)
