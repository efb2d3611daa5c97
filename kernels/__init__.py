"""Fused operations: one folder an op, one call for every device.

`nlrl.kernels.<op>(...)` picks the implementation for the device its first tensor is on. `nlrl.kernels.<op>.reference`
is the formula in plain PyTorch, differentiated by autograd; it runs everywhere and in float64. Triton is imported on
the first call that needs it, never before.
"""

from nlrl.kernels.adam_normalise.reference import adam_normalise as _adam_normalise
from nlrl.kernels.causal_conv1d.eager import causal_conv1d as _eager_causal_conv1d
from nlrl.kernels.causal_conv1d.reference import causal_conv1d as _causal_conv1d
from nlrl.kernels.dispatch import Op
from nlrl.kernels.selective_scan.eager import compiled as _compiled_selective_scan
from nlrl.kernels.selective_scan.eager import selective_scan as _eager_selective_scan
from nlrl.kernels.selective_scan.reference import selective_scan as _selective_scan
from nlrl.kernels.ssd.eager import ssd as _eager_ssd
from nlrl.kernels.ssd.reference import ssd as _ssd
from nlrl.kernels.swiglu.eager import swiglu as _eager_swiglu
from nlrl.kernels.swiglu.reference import swiglu as _swiglu
from nlrl.kernels.unit_lerp.eager import unit_lerp as _eager_unit_lerp
from nlrl.kernels.unit_lerp.reference import unit_lerp as _unit_lerp

adam_normalise = Op(_adam_normalise, _adam_normalise, triton="nlrl.kernels.adam_normalise.triton:adam_normalise")
causal_conv1d = Op(_causal_conv1d, _eager_causal_conv1d)
selective_scan = Op(_selective_scan, _eager_selective_scan, compiled=_compiled_selective_scan)
ssd = Op(_ssd, _eager_ssd)
swiglu = Op(_swiglu, _eager_swiglu)
unit_lerp = Op(_unit_lerp, _eager_unit_lerp, triton="nlrl.kernels.unit_lerp.triton:unit_lerp")

__all__ = ["Op", "adam_normalise", "causal_conv1d", "selective_scan", "ssd", "swiglu", "unit_lerp"]
