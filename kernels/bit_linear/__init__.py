"""A matrix of one bit a weight, with a scale and a shift for each input."""
