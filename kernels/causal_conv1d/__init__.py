"""Depthwise causal convolution over rows of documents, with what came before a call as an argument."""
