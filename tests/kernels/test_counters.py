"""Counts of programs: memory that launches, and graphs captured long ago, go on using."""

import weakref

import torch

from nlrl.kernels import counters


def test_a_count_stays_where_it_was_as_more_are_needed(monkeypatch):
    monkeypatch.setattr(counters, "_counters", {})
    few = counters.counter(3, torch.device("cpu"))
    alive = weakref.ref(few)
    assert counters.counter(counters.LEAST, few.device) is few
    many = counters.counter(5000, few.device)
    assert len(many) >= 5000
    assert not many.any()
    assert counters.counter(3, few.device) is many
    del few
    assert alive() is not None
