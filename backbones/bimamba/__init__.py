"""Mamba-2, and Bi-Mamba: Mamba-2 with weights of one bit."""
