"""RMSNorm, and the sum of a residual stream before it."""
