"""Damages inputs as accidents and attackers do."""

from __future__ import annotations

from random import Random

WORDS = tuple(
    word.encode()
    for word in (
        "", "\0", "\n", '"', "'", "\\", "{", "}", "[", "]", "(", ")", "<", ">", ",", ".", ":", "=", "/", "..", "../",
        "%", "-1", "0", "1e999", "9" * 5000, "NaN", "Infinity", "null", "true", "\U00010000",
        "\\ud800", "\u0663", "\uff11", "\u2212", "\x1b[31m", "<script>", "=cmd()", "'; DROP TABLE games; --", "${x}",
        "{{ 7*7 }}", "__class__", "best_move", "final_evaluation", "</think>", " ", "\t", "\r\n", "a" * 300, "5 " * 200,
        "[" * 3000, "{" * 3000, "(" * 3000, '{"a":' * 2000, "(a+)+" * 20, "-" * 5000, "epsilon(0.5," * 500,
    )
)  # fmt: skip
"""Pieces that have broken parsers before."""


def damaged(data: bytes, times: int, random: Random) -> bytes:
    """`data` after so many changes."""
    for _ in range(times):
        data = random.choice(_CHANGES)(data, random)
    return data


def _span(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randint(0, len(data))
    return start, min(len(data), start + random.choice((0, 1, 2, 8, 64)))


def _cut(data: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _insert(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + random.choice(WORDS) + data[end:]


def _flip(data: bytes, random: Random) -> bytes:
    if not data:
        return data
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _repeat(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:end] + data[start:end] * random.choice((1, 3, 200)) + data[end:]


def _drop(data: bytes, random: Random) -> bytes:
    start, end = _span(data, random)
    return data[:start] + data[end:]


_CHANGES = (_cut, _insert, _insert, _flip, _repeat, _drop)
