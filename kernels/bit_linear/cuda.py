"""Launches of `kernel.cu`, the one-bit linear map on tensor cores for bfloat16 and float16.

1. Bits are read once for each 64 rows, n k / 8 bytes. A block of some outputs (`LAUNCH`) reads all of its rows of x, so
   2 m k n / (outputs of a block) bytes of x come from the second cache.
2. m rows, k inputs and n outputs are n k / 256 times `N_TILES` mmas; the weights of each `N_TILES` of them take four
   shifts and four logical operations. One row is bound by these, some dozens of rows by the mmas.
3. From some hundreds of rows on a library multiplies faster than this, even after the signs are written as numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nlrl.kernels import cuda_source
from nlrl.kernels.launches import choose

SOURCE = Path(__file__).parent / "kernel.cu"
LAUNCH = {
    "mma_1": (4, 1, 16, 4),
    "mma_8": (4, 1, 16, 4),
    "mma_16": (4, 1, 16, 2),
    "mma_32": (4, 1, 8, 2),
    "mma_64": (4, 1, 8, 2),
    "mma_64/many": (4, 2, 4, 2),
    "library_from": (385,),
}
"""By rows of x that a block takes (1: it also makes alpha x itself): tiles of 16 outputs a warp, warps along the
outputs, warps along the inputs, words of 32 weights that a lane loads at once. Blocks of 64 outputs are 128 at 8,192
outputs, one for each processor of a Hopper; several groups of 64 rows (`many`) have blocks enough with twice the
outputs. `library_from`: rows from which cuBLAS multiplies, by signs that were made
numbers."""
CANDIDATES = {
    "mma_1": [(4, 1, 16, 4), (4, 1, 8, 4), (4, 1, 16, 2), (2, 1, 8, 4), (2, 1, 16, 4), (2, 2, 8, 4), (1, 2, 8, 4)],
    "mma_8": [(4, 1, 16, 4), (4, 1, 16, 2), (4, 1, 8, 4), (4, 1, 8, 2), (2, 1, 8, 4), (2, 1, 16, 4), (2, 2, 8, 2)],
    "mma_16": [(4, 1, 16, 2), (4, 1, 8, 4), (4, 1, 8, 2), (2, 1, 16, 4), (2, 1, 8, 4), (2, 2, 8, 2), (2, 2, 4, 4)],
    "mma_32": [(4, 1, 8, 2), (4, 1, 8, 4), (2, 1, 8, 2), (2, 2, 4, 2), (2, 2, 8, 2), (4, 1, 4, 2)],
    "mma_64": [(4, 1, 8, 2), (2, 2, 4, 2), (4, 2, 4, 2), (2, 4, 2, 2), (2, 1, 8, 2), (4, 1, 4, 2)],
    "mma_64/many": [(4, 1, 8, 2), (2, 2, 4, 2), (4, 2, 4, 2), (2, 4, 2, 2), (4, 1, 4, 2)],
    "library_from": [(129,), (385,)],
}
CHUNK = 512
"""Inputs whose bits the four lanes of a row load at once, four words each."""
MOST_TILES = 8
"""Tiles of 8 rows of x in a block."""
STRIDE = 20
"""Floats between rows of sums in shared memory."""
OLDEST = 8, 0
"""Tensor cores take bfloat16 since then."""

Load = Callable[[str, tuple[str, ...]], Callable | None]
"""A program by its name and macros, or None if it cannot be had."""


def bit_linear(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor) -> Tensor | None:
    """See `reference.bit_linear`; None if this call is not for it or it cannot be compiled.

    Args:
        x: `(rows, inputs)`, contiguous, as are the others.
    """
    if not fits(x, bits) or torch.cuda.get_device_capability(x.device) < OLDEST:
        return None
    return multiply(x, bits, alpha, beta, partial(cuda_source.program, x.device.index, SOURCE))


def fits(x: Tensor, bits: Tensor) -> bool:
    """Rows of whole vectors of 16 bytes, as many as an `int` can count."""
    vectors = bits.shape[1] % 16 == 0 and bits.data_ptr() % 16 == 0
    return x.dtype in (torch.bfloat16, torch.float16) and vectors and bits.numel() < 1 << 31


def multiply(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor, load: Load) -> Tensor | None:
    """The launches, of whatever programs `load` gives."""
    most = 8 * MOST_TILES
    if len(x) > most and len(x) >= choose("bit_linear", "library_from", LAUNCH["library_from"])[0]:
        return _by_library(x, bits, alpha, beta, load)
    return _by_tiles(x, bits, alpha, beta, load)


def _by_library(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor, load: Load) -> Tensor | None:
    """Two bytes a weight, for the length of the call."""
    unpack = load("unpack", _macros(x.dtype, M_TILES=1, N_TILES=1, OUT_WARPS=1, WORDS=4, THREADS=32, FUSED=0))
    if unpack is None:
        return None
    signs = x.new_empty((len(bits), 8 * bits.shape[1]))
    unpack((-(-bits.numel() // 256), 1), 256, 0, bits, signs, bits.numel())
    shift = torch.mv(x, beta)[:, None].expand(-1, len(bits))
    return torch.addmm(shift, x * alpha, signs[:, : x.shape[1]].T)


def _by_tiles(x: Tensor, bits: Tensor, alpha: Tensor, beta: Tensor, load: Load) -> Tensor | None:
    (rows, inputs), (outputs, row_bytes) = x.shape, bits.shape
    chunks = -(-row_bytes * 8 // CHUNK)
    whole = inputs % 8 == 0 and all(tensor.data_ptr() % 16 == 0 for tensor in (x, alpha, beta))
    fused, tiles = rows == 1 and _row_fits(chunks), 1 << (-(-min(rows, 8 * MOST_TILES) // 8) - 1).bit_length()
    key = "mma_1" if fused else f"mma_{8 * tiles}{'/many' if rows > 8 * MOST_TILES else ''}"
    m_tiles, out_warps, k_warps, words = choose("bit_linear", key, LAUNCH[key])
    macros = _macros(x.dtype, M_TILES=m_tiles, N_TILES=tiles, OUT_WARPS=out_warps, WORDS=words,
                     THREADS=32 * out_warps * k_warps, FUSED=int(fused))  # fmt: skip
    main, prepare = load("bit_linear", macros), None if fused else load("prepare", macros)
    if main is None or (prepare is None and not fused):
        return None
    groups, scaled, shift = -(-rows // (8 * tiles)), None, None
    if prepare is not None:
        scaled = x.new_empty((groups, chunks, 16, tiles, 32, 8))
        shift = x.new_empty((groups * 8 * tiles,), dtype=torch.float32)
        prepare((len(shift), 1), 256, 4 * 8, x, alpha, beta, scaled, shift, rows, inputs, chunks, int(whole))
    warps = out_warps * min(k_warps, chunks * (4 // words))
    shared = 4 * warps * 8 * tiles * STRIDE + (_row_bytes(chunks) if fused else 0)
    y, grid = x.new_empty((rows, outputs)), (-(-outputs // (16 * m_tiles * out_warps)), groups)
    sizes = rows, inputs, outputs, row_bytes, int(whole)
    main(grid, 32 * warps, shared, x, alpha, beta, scaled, shift, bits, y, *sizes)
    return y


def _row_bytes(chunks: int) -> int:
    """Of shared memory for one row of alpha x and the zeros beside it."""
    return 16 * (64 * chunks + 4 + 64)


def _row_fits(chunks: int) -> bool:
    """With sums of 32 warps."""
    return _row_bytes(chunks) + 4 * 32 * 8 * STRIDE <= cuda_source.MOST_SHARED


def _macros(dtype: torch.dtype, **numbers: int) -> tuple[str, ...]:
    named = tuple(f"{name}={value}" for name, value in numbers.items())
    return (*named, "HALF") if dtype == torch.float16 else named
