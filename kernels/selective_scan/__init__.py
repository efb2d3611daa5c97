"""The selective state space recurrence of Mamba-1 over rows of documents."""
