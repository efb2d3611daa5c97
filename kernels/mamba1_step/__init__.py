"""One token of a Mamba-1 mixer between its two matrices."""
