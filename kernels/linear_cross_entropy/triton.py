"""Cross-entropy of logits for CUDA, their gradients written over them; products are cuBLAS's (`vocabulary`).

A program reads the logits of one row twice: once for the normaliser, summed as they come in and scaled by the highest
so far (arXiv 1805.02867), once to write gradients. With a teacher it reads the teacher's, too, and once more both for
what the teacher expects of the student's.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from nlrl.kernels.linear_cross_entropy.eager import linear_cross_entropy as eager
from nlrl.kernels.vocabulary import VocabularyLoss, in_one_dtype

LOGITS_AT_ONCE = 8192
"""Of a row: 16 warps with 16 each."""
_LOWEST = tl.constexpr(-3.0e38)
"""Below every logit, yet finite: the first rescaling must not be infinity minus infinity."""


@triton.jit
def _normaliser(ptr, vocabulary, block: tl.constexpr):
    """log of the sum of exponentials of a row."""
    lane = tl.arange(0, block)
    peak = tl.full((), _LOWEST, tl.float32)
    total = tl.zeros((), tl.float32)
    for first in range(0, vocabulary, block):
        at = first + lane
        z = tl.load(ptr + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(z, 0))
        total = total * tl.exp(peak - higher) + tl.sum(tl.exp(z - higher), 0)
        peak = higher
    return peak + tl.log(total)


@triton.jit
def _expected(ptr, teacher_ptr, teacher_norm, vocabulary, block: tl.constexpr):
    """What the teacher's distribution expects of the student's logits."""
    lane = tl.arange(0, block)
    total = tl.zeros((), tl.float32)
    for first in range(0, vocabulary, block):
        at = first + lane
        z = tl.load(ptr + at, mask=at < vocabulary, other=0.0).to(tl.float32)
        t = tl.load(teacher_ptr + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        total += tl.sum(tl.exp(t - teacher_norm) * z, 0)
    return total


@triton.jit
def cross_entropy_rows(
    logits_ptr, targets_ptr, teacher_ptr, weights_ptr, losses_ptr, vocabulary,
    taught: tl.constexpr, gradients: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    weight = tl.load(weights_ptr + row).to(tl.float32)
    logits_ptr += row * vocabulary
    norm = _normaliser(logits_ptr, vocabulary, block)
    target, teacher_norm = tl.full((), -1, tl.int64), norm
    if taught:
        teacher_ptr += row * vocabulary
        teacher_norm = _normaliser(teacher_ptr, vocabulary, block)
        wanted = _expected(logits_ptr, teacher_ptr, teacher_norm, vocabulary, block)
    else:
        target = tl.load(targets_ptr + row).to(tl.int64)
        wanted = tl.load(logits_ptr + target).to(tl.float32)
    tl.store(losses_ptr + row, (norm - wanted) * weight)
    if gradients:
        lane = tl.arange(0, block)
        for first in range(0, vocabulary, block):
            at = first + lane
            inside = at < vocabulary
            slope = tl.exp(tl.load(logits_ptr + at, mask=inside, other=0.0).to(tl.float32) - norm)
            if taught:
                t = tl.load(teacher_ptr + at, mask=inside, other=0.0).to(tl.float32)
                slope -= tl.exp(t - teacher_norm)
            else:
                slope -= tl.where(at == target, 1.0, 0.0)
            tl.store(logits_ptr + at, (slope * weight).to(logits_ptr.dtype.element_ty), mask=inside)


def launch(logits: Tensor, targets: Tensor | None, teacher: Tensor | None, weights: Tensor, gradients: bool) -> Tensor:
    """The sum of the rows' losses. Either targets or a teacher's logits."""
    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    block = min(LOGITS_AT_ONCE, triton.next_power_of_2(logits.shape[1]))
    with torch.cuda.device_of(logits):
        cross_entropy_rows[(len(logits),)](
            logits, losses if targets is None else targets, losses if teacher is None else teacher,
            weights.contiguous(), losses, logits.shape[1], taught=teacher is not None, gradients=gradients,
            block=block, num_warps=max(1, min(16, block // 512)),
        )  # fmt: skip
    return losses.sum()


def linear_cross_entropy(hidden: Tensor, matrix: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """See `reference.linear_cross_entropy`; `eager` takes float64."""
    if hidden.dtype == torch.float64 or not len(hidden):
        return eager(hidden, matrix, targets, weights)

    def rows(logits: Tensor, part: slice, weights: Tensor, gradients: bool) -> Tensor:
        return launch(logits, targets[part].contiguous(), None, weights, gradients)

    hidden, matrix = in_one_dtype(hidden, matrix)
    return VocabularyLoss.apply(hidden, matrix, weights.detach(), rows)
