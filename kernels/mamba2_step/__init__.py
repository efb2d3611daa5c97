"""One token of a Mamba-2 mixer between its two matrices."""
