"""The state space recurrence of Mamba-2, a scalar decay a head, in chunks."""
