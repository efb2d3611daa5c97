"""Fused operations: one folder an op, one call for every device.

`nlrl.kernels.<op>(...)` picks the implementation for the device its first tensor is on. `nlrl.kernels.<op>.reference`
is the formula in plain PyTorch, differentiated by autograd; it runs everywhere and in float64. Triton is imported on
the first call that needs it, never before.
"""

from nlrl.kernels.adam_normalise.reference import adam_normalise as _adam_normalise
from nlrl.kernels.causal_conv1d.eager import causal_conv1d as _eager_causal_conv1d
from nlrl.kernels.causal_conv1d.reference import causal_conv1d as _causal_conv1d
from nlrl.kernels.dispatch import Op
from nlrl.kernels.paged_attention.reference import paged_attention as _paged_attention
from nlrl.kernels.rotary.eager import rotary as _eager_rotary
from nlrl.kernels.rotary.reference import rotary as _rotary
from nlrl.kernels.sample.reference import sample as _sample
from nlrl.kernels.selective_scan.eager import compiled as _compiled_selective_scan
from nlrl.kernels.selective_scan.eager import selective_scan as _eager_selective_scan
from nlrl.kernels.selective_scan.node import node as _selective_scan_node
from nlrl.kernels.selective_scan.reference import selective_scan as _selective_scan
from nlrl.kernels.ssd.eager import ssd as _eager_ssd
from nlrl.kernels.ssd.node import node as _ssd_node
from nlrl.kernels.ssd.reference import ssd as _ssd
from nlrl.kernels.swiglu.eager import swiglu as _eager_swiglu
from nlrl.kernels.swiglu.reference import swiglu as _swiglu
from nlrl.kernels.unit_lerp.eager import unit_lerp as _eager_unit_lerp
from nlrl.kernels.unit_lerp.reference import unit_lerp as _unit_lerp

adam_normalise = Op(_adam_normalise, _adam_normalise, triton="nlrl.kernels.adam_normalise.triton:adam_normalise")
causal_conv1d = Op(_causal_conv1d, _eager_causal_conv1d, triton="nlrl.kernels.causal_conv1d.triton:causal_conv1d")
paged_attention = Op(_paged_attention, _paged_attention, triton="nlrl.kernels.paged_attention.triton:paged_attention")
rotary = Op(_rotary, _eager_rotary, triton="nlrl.kernels.rotary.triton:rotary")
sample = Op(_sample, _sample, triton="nlrl.kernels.sample.triton:sample")
selective_scan = Op(
    _selective_scan,
    _eager_selective_scan,
    triton="nlrl.kernels.selective_scan.triton:selective_scan",
    compiled=_compiled_selective_scan,
    node=_selective_scan_node,
)
ssd = Op(_ssd, _eager_ssd, triton="nlrl.kernels.ssd.triton:ssd", node=_ssd_node)
swiglu = Op(_swiglu, _eager_swiglu, triton="nlrl.kernels.swiglu.triton:swiglu")
unit_lerp = Op(_unit_lerp, _eager_unit_lerp, triton="nlrl.kernels.unit_lerp.triton:unit_lerp")

__all__ = [
    "Op",
    "adam_normalise",
    "causal_conv1d",
    "paged_attention",
    "rotary",
    "sample",
    "selective_scan",
    "ssd",
    "swiglu",
    "unit_lerp",
]
