"""nGPT, the normalised Transformer (arXiv 2410.01131)."""
