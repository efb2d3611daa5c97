"""The residual step of nGPT, `y = unit(h + a * (unit(x) - h))`."""
