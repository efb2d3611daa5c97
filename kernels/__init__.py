"""Fused operations: one folder an op, one call for every device.

`nlrl.kernels.<op>(...)` picks the implementation for the device its first tensor is on. `nlrl.kernels.<op>.reference`
is the formula in plain PyTorch, differentiated by autograd; it runs everywhere and in float64. Triton is imported on
the first call that needs it, never before.
"""

from nlrl.kernels.dispatch import Op
from nlrl.kernels.swiglu.eager import swiglu as _eager_swiglu
from nlrl.kernels.swiglu.reference import swiglu as _swiglu
from nlrl.kernels.unit_lerp.eager import unit_lerp as _eager_unit_lerp
from nlrl.kernels.unit_lerp.reference import unit_lerp as _unit_lerp

swiglu = Op(_swiglu, _eager_swiglu)
unit_lerp = Op(_unit_lerp, _eager_unit_lerp, triton="nlrl.kernels.unit_lerp.triton:unit_lerp")

__all__ = ["Op", "swiglu", "unit_lerp"]
