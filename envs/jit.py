"""Compiled functions that install without a compiler.

Numba's cache on disk notices a change of the file that a function stands in, and of no other file. Compiled code that
calls compiled code, or reads constants, of another file must not be cached unless both change together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def compiled(function: Callable[..., Any]) -> Any:
    """Compiles `function` at its first call and keeps the machine code: beside the source, else in the user's cache
    folder (or `$NUMBA_CACHE_DIR`), else, where none of them can be written, for this process only."""
    try:
        return njit(function, cache=True)
    except RuntimeError:  # Numba found no folder
        return njit(function)


def _prefetch(typing_context: Any, array: Any, row: Any) -> Any:

    def generate(context, builder, signature, arguments):
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        offset = builder.mul(arguments[1], builder.extract_value(view.shape, 1))
        address = builder.bitcast(builder.gep(view.data, [offset]), ir.PointerType(ir.IntType(8)))
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [address.type, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [address, word(0), word(3), word(1)])  # to read, keep in every cache, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
"""In compiled code, `prefetch(array, row)` asks the processor for `array[row, 0]` (a C-contiguous array with two axes)
and goes on before it is there. Random look-ups in a large table wait for memory most of the time, unless many are on
their way at once."""
