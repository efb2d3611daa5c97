"""Hymba: attention and Mamba heads in parallel, behind learned meta tokens."""
