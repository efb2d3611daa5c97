"""Every op of `nlrl.kernels`, ours beside the peers that are installed: `nlrl bench kernels`.

1. Each provider of an op is held to the reference in float64, results and gradients. A wrong one is reported and not
   timed.
2. The right ones are timed at the sizes of `shapes`, in one process, one after the other.
3. Achieved rates are the op's own bytes and FLOPs (`costs.py` in its folder) over the median time, also as shares of
   the copy and matrix product rates of this machine, measured in the same run.
4. Every line is appended to `benchmarks/kernels.csv`. `--record` also writes which provider is the fastest, which the
   dispatcher then takes on this kind of device.
5. `--ahead 16` first lets a process for each provider of each op compile all that will be called, so that hardly more
   than the measurements themselves is left.
6. `--read` prints the newest lines of the file, with what is asked of them, and needs no GPU.

Without a GPU nothing is timed; `--check` then holds our kernels to the reference in Triton's interpreter.
"""

from nlrl.benchmarks.kernels.cli import main

__all__ = ["main"]
