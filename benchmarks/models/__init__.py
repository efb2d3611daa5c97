"""Whole models on one device: `nlrl bench models`, or `python -m nlrl.benchmarks.models`.

1. `train`: tokens a second and MFU of the project's own training step (forward, backward, clipping, optimizer) for
   every architecture at one size, about 127M parameters, on texts of 2,048 tokens, beside the control, a Llama-shaped
   Transformer with flash attention; with the kernels that the dispatcher chooses and with PyTorch calls alone.
2. `decode`: tokens a second of the engine's decoding step (a CUDA graph), and of reading prompts, for models of
   published sizes, as shares of what memory and tensor cores of this machine allow (`roofline`), by rates that are
   measured first.
3. `compare`: Hymba-1.5B beside Llama-3.2-3B after 8,000 tokens, each at its largest batch that fits.

Weights and states are random: speed does not depend on them. A line is printed, and the JSON file written anew, as soon
as it is measured; what fails is a line that says why. `--tiny` runs everything on a CPU with toy sizes.
"""

from nlrl.benchmarks.models.cli import main

__all__ = ["main"]
