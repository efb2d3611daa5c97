"""Both attention maps of a differential head, their difference and its norm."""
