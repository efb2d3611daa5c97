"""Causal attention, of a window or not, to which learned keys and values before every text are always visible."""
