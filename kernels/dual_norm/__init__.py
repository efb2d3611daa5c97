"""The mean of two normalised tensors."""
