"""Differential attention, version 2: two maps over the same keys and values, one gated and subtracted."""
