"""Rotary position embedding: pairs of channels turn by an angle."""
