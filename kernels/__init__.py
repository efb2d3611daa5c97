"""Fused operations: one folder an op, one call for every device.

`nlrl.kernels.<op>(...)` picks the implementation for the device its first tensor is on; `nlrl.kernels.<op>.reference` is the plain
PyTorch one, which runs everywhere and in float64. Triton is imported on the first call that needs it, never before.
"""

from nlrl.kernels.dispatch import Op
from nlrl.kernels.unit_lerp.reference import unit_lerp as _unit_lerp

unit_lerp = Op(reference=_unit_lerp, triton="nlrl.kernels.unit_lerp.triton:unit_lerp")

__all__ = ["Op", "unit_lerp"]
