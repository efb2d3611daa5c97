"""The Differential Transformer: V1 (arXiv 2410.05258) and V2 (its authors' note of January 2026)."""
