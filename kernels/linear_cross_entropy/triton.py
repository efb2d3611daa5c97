"""Cross-entropy of logits for CUDA, their gradients written over them; products are cuBLAS's (`vocabulary`).

A program reads the logits of one row twice: once for the normaliser, summed as they come in and scaled by the highest
so far (arXiv 1805.02867), once to write gradients. With a teacher it reads the teacher's, too, and once more both for
what the teacher expects of the student's. Where logits come by columns (`by_columns`), the two are programs of their
own: `reduce_part` and `slopes_of_part`.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.launches import choose
from nlrl.kernels.linear_cross_entropy.by_columns import by_columns, pays
from nlrl.kernels.linear_cross_entropy.eager import linear_cross_entropy as eager
from nlrl.kernels.vocabulary import ALIGNED, Found, VocabularyLoss, by_tokens, in_one_dtype

LOGITS_AT_ONCE = 8192
"""Of a row: 16 warps with 16 each."""
SCALE = (8192, 8)
"""Numbers of a program, warps."""
CANDIDATES = {"scale": [(block, warps) for block in (4096, 8192, 16384) for warps in (4, 8, 16)]}
_LOWEST = tl.constexpr(-3.0e38)
"""Below every logit, yet finite: the first rescaling must not be infinity minus infinity."""


@triton.jit
def _normaliser(ptr, vocabulary, readable, block: tl.constexpr):
    """log of the sum of exponentials of a row. Memory may be read up to `readable`: whole groups load faster."""
    lane = tl.arange(0, block)
    peak = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, vocabulary, block):
        at = first + lane
        z = tl.load(ptr + at, mask=at < readable, other=0.0).to(tl.float32)
        z = tl.where(at < vocabulary, z, float("-inf"))
        higher = tl.maximum(peak, tl.max(z, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), 0)
        peak = higher
    return peak + tl.log(total)


@triton.jit
def _expected(ptr, teacher_ptr, teacher_norm, vocabulary, readable, block: tl.constexpr):
    """What the teacher's distribution expects of the student's logits."""
    lane = tl.arange(0, block)
    total = tl.zeros((), tl.float32)
    for first in range(0, vocabulary, block):
        at = first + lane
        z = tl.load(ptr + at, mask=at < readable, other=0.0).to(tl.float32)
        t = tl.load(teacher_ptr + at, mask=at < readable, other=0.0).to(tl.float32)
        total += tl.sum(tl.where(at < vocabulary, tl.exp(t - teacher_norm) * z, 0.0), 0)
    return total


@triton.jit
def cross_entropy_rows(
    logits_ptr, targets_ptr, teacher_ptr, weights_ptr, losses_ptr, row_stride, teacher_stride, vocabulary,
    readable, taught: tl.constexpr, gradients: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_ptr + row).to(tl.float32)
    logits_ptr += row * row_stride
    norm = _normaliser(logits_ptr, vocabulary, readable, block)
    target, teacher_norm = tl.full((), -1, tl.int64), norm
    if taught:
        teacher_ptr += row * teacher_stride
        teacher_norm = _normaliser(teacher_ptr, vocabulary, readable, block)
        wanted = _expected(logits_ptr, teacher_ptr, teacher_norm, vocabulary, readable, block)
    else:
        target = tl.load(targets_ptr + row).to(tl.int64)
        wanted = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(losses_ptr + row, (norm - wanted) * weight)
    if gradients:
        lane = tl.arange(0, block)
        for first in range(0, vocabulary, block):
            at = first + lane
            inside = at < readable
            slope = tl.exp(tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32) - norm)
            if taught:
                t = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32)
                slope -= tl.exp(t - teacher_norm)
            else:
                slope -= tl.where(at == target, 1.0, 0.0)
            tl.store(logits_ptr + at, (slope * weight).to(logits_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["first"])
def reduce_part(
    logits_ptr, targets_ptr, norms_ptr, wanted_ptr, row_stride, first, columns, readable, block: tl.constexpr
):  # fmt: skip
    """The normaliser of some columns of a row, and the target's logit if it is among them."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    tl.store(norms_ptr + row, _normaliser(logits_ptr, columns, readable, block))
    target = tl.load(targets_ptr + row).to(tl.int64) - first
    if (target >= 0) & (target < columns):
        tl.store(wanted_ptr + row, tl.load(logits_ptr + target).to(tl.float32))


@triton.jit(do_not_specialize=["first"])
def slopes_of_part(
    logits_ptr, slopes_ptr, targets_ptr, norms_ptr, weights_ptr, row_stride, slopes_stride, first, readable,
    block: tl.constexpr,
):  # fmt: skip
    """Weighted slopes of some columns of a row, perhaps over their logits."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * block + tl.arange(0, block)
    norm, weight = tl.load(norms_ptr + row), tl.load(weights_ptr + row).to(tl.float32)
    target = tl.load(targets_ptr + row).to(tl.int64) - first
    z = tl.load(logits_ptr + row * row_stride + at, mask=at < readable, other=0.0).to(tl.float32)
    slope = tl.exp(z - norm) - tl.where(at == target, 1.0, 0.0)
    place = slopes_ptr + row * slopes_stride + at
    tl.store(place, (slope * weight).to(slopes_ptr.dtype.element_ty), mask=at < readable)


@triton.jit
def _scale(values_ptr, found_ptr, factor_ptr, count, overwrite: tl.constexpr, block: tl.constexpr):
    factor = tl.load(factor_ptr).to(tl.float32)
    if overwrite:  # noqa: SIM102, what is known before the program runs stands alone
        if factor == 1.0:
            return
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    values = tl.load(values_ptr + at, mask=at < count, other=0.0)
    tl.store(found_ptr + at, (values.to(tl.float32) * factor).to(values.dtype), mask=at < count)


def scaled(gradient: Tensor, factor: Tensor, overwrite: bool) -> Tensor:
    """`vocabulary.Scale`, multiplied in float32. Whether the factor is 1, which is usual, the device alone knows: its
    programs then end at once."""
    if not gradient.is_contiguous():
        return gradient * factor.to(gradient.dtype)
    found = gradient if overwrite else torch.empty_like(gradient)
    block, warps = choose("linear_cross_entropy", "scale", SCALE)
    with torch.cuda.device_of(gradient):
        _scale[(triton.cdiv(gradient.numel(), block),)](
            gradient, found, factor, gradient.numel(), overwrite, block, num_warps=warps
        )
    return found


def launch(logits: Tensor, targets: Tensor | None, teacher: Tensor | None, weights: Tensor, gradients: bool) -> Tensor:
    """The sum of the rows' losses. Either targets or a teacher's logits, whose rows may lie apart."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    block, warps = _block(logits.shape[1])
    with torch.cuda.device_of(logits):
        cross_entropy_rows[(len(logits),)](
            logits, losses if targets is None else targets, losses if teacher is None else teacher,
            weights.contiguous(), losses, logits.stride(0), 0 if teacher is None else teacher.stride(0),
            logits.shape[1], min(_readable(each) for each in (logits, teacher) if each is not None),
            taught=teacher is not None, gradients=gradients, block=block, num_warps=warps,
        )  # fmt: skip
    return losses.sum()


def _readable(rows: Tensor) -> int:
    """Columns whose memory belongs to the row: whole groups, if rows lie that far apart."""
    whole = triton.cdiv(rows.shape[1], ALIGNED) * ALIGNED
    return whole if whole <= rows.stride(0) else rows.shape[1]


def _block(columns: int) -> tuple[int, int]:
    """So many at once, by so many warps."""
    block = min(LOGITS_AT_ONCE, triton.next_power_of_2(columns))
    return block, max(1, min(16, block // 512))


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """See `reference.linear_cross_entropy`; `eager` takes float64."""
    if hidden.dtype == torch.float64 or not len(hidden):
        return eager(hidden, matrix, targets, weights)

    def make(hidden: Tensor, matrix: Tensor, for_hidden: bool, for_matrix: bool) -> Found:
        if for_matrix and pays(hidden, matrix):
            return by_columns(hidden, matrix, for_hidden, weights, reduce, slopes)
        return by_tokens(hidden, matrix, for_hidden, for_matrix, weights, rows)

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        return launch(logits, targets[part], None, weights, gradients)

    def reduce(logits: Tensor, first: int, norm: Tensor, wanted: Tensor) -> None:
        block, warps = _block(logits.shape[1])
        with torch.cuda.device_of(logits):
            reduce_part[(len(logits),)](
                logits, targets, norm, wanted, logits.stride(0), first, logits.shape[1],
                _readable(logits), block, num_warps=warps,
            )  # fmt: skip

    def slopes(logits: Tensor, slope: Tensor, first: int, norm: Tensor) -> None:
        block, warps = _block(logits.shape[1])
        with torch.cuda.device_of(logits):
            slopes_of_part[(len(logits), triton.cdiv(logits.shape[1], block))](
                logits, slope, targets, norm, weights, logits.stride(0), slope.stride(0), first,
                _readable(logits), block, num_warps=warps,
            )  # fmt: skip

    hidden, matrix = in_one_dtype(hidden, matrix)
    targets, weights = targets.contiguous(), weights.detach().contiguous()
    return VocabularyLoss.apply(hidden, matrix, make, scaled)
