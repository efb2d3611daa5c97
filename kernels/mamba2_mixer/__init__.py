"""A Mamba-2 mixer between its two matrices, over rows of documents."""
