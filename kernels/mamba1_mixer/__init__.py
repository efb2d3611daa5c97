"""A Mamba-1 mixer between its two matrices, over rows of documents."""
