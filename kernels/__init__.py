"""Fused operations: one folder an op, one call for every device.

`nlrl.kernels.<op>(...)` picks the implementation for the device its first tensor is on. `nlrl.kernels.<op>.reference`
is the formula in plain PyTorch, differentiated by autograd; it runs everywhere and in float64. Triton is imported on
the first call that needs it, never before. `nlrl.kernels.providers()` says what runs here and why.
"""

from nlrl.kernels.adam_normalise.reference import adam_normalise as _adam_normalise
from nlrl.kernels.bit_linear.eager import bit_linear as _eager_bit_linear
from nlrl.kernels.bit_linear.reference import bit_linear as _bit_linear
from nlrl.kernels.causal_conv1d.eager import causal_conv1d as _eager_causal_conv1d
from nlrl.kernels.causal_conv1d.reference import causal_conv1d as _causal_conv1d
from nlrl.kernels.diff_attention.eager import diff_attention as _eager_diff_attention
from nlrl.kernels.diff_attention.node import node as _diff_attention_node
from nlrl.kernels.diff_attention.reference import diff_attention as _diff_attention
from nlrl.kernels.diff_attention_v2.eager import diff_attention_v2 as _eager_diff_attention_v2
from nlrl.kernels.diff_attention_v2.node import node as _diff_attention_v2_node
from nlrl.kernels.diff_attention_v2.reference import diff_attention_v2 as _diff_attention_v2
from nlrl.kernels.dispatch import Op, OpProviders, describe
from nlrl.kernels.dual_norm.eager import dual_norm as _eager_dual_norm
from nlrl.kernels.dual_norm.reference import dual_norm as _dual_norm
from nlrl.kernels.extend_attention.eager import extend_attention as _eager_extend_attention
from nlrl.kernels.extend_attention.reference import extend_attention as _extend_attention
from nlrl.kernels.linear_cross_entropy.eager import linear_cross_entropy as _eager_linear_cross_entropy
from nlrl.kernels.linear_cross_entropy.reference import linear_cross_entropy as _linear_cross_entropy
from nlrl.kernels.linear_distillation.eager import linear_distillation as _eager_linear_distillation
from nlrl.kernels.linear_distillation.reference import linear_distillation as _linear_distillation
from nlrl.kernels.mamba1_mixer.eager import compiled as _compiled_mamba1_mixer
from nlrl.kernels.mamba1_mixer.eager import mamba1_mixer as _eager_mamba1_mixer
from nlrl.kernels.mamba1_mixer.reference import mamba1_mixer as _mamba1_mixer
from nlrl.kernels.mamba1_step.eager import mamba1_step as _eager_mamba1_step
from nlrl.kernels.mamba1_step.reference import mamba1_step as _mamba1_step
from nlrl.kernels.mamba2_mixer.eager import compiled as _compiled_mamba2_mixer
from nlrl.kernels.mamba2_mixer.eager import mamba2_mixer as _eager_mamba2_mixer
from nlrl.kernels.mamba2_mixer.reference import mamba2_mixer as _mamba2_mixer
from nlrl.kernels.mamba2_step.eager import mamba2_step as _eager_mamba2_step
from nlrl.kernels.mamba2_step.reference import mamba2_step as _mamba2_step
from nlrl.kernels.norm_rotary.eager import norm_rotary as _eager_norm_rotary
from nlrl.kernels.norm_rotary.reference import norm_rotary as _norm_rotary
from nlrl.kernels.paged_attention.reference import paged_attention as _paged_attention
from nlrl.kernels.prefix_attention.eager import prefix_attention as _eager_prefix_attention
from nlrl.kernels.prefix_attention.node import node as _prefix_attention_node
from nlrl.kernels.prefix_attention.reference import prefix_attention as _prefix_attention
from nlrl.kernels.ring_attention.eager import ring_attention as _eager_ring_attention
from nlrl.kernels.ring_attention.reference import ring_attention as _ring_attention
from nlrl.kernels.rms_norm.eager import rms_norm as _eager_rms_norm
from nlrl.kernels.rms_norm.reference import rms_norm as _rms_norm
from nlrl.kernels.rotary.eager import rotary as _eager_rotary
from nlrl.kernels.rotary.reference import rotary as _rotary
from nlrl.kernels.sample.reference import sample as _sample
from nlrl.kernels.sample_head.reference import sample_head as _sample_head
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
bit_linear = Op(_bit_linear, _eager_bit_linear, triton="nlrl.kernels.bit_linear.triton:bit_linear")
causal_conv1d = Op(_causal_conv1d, _eager_causal_conv1d, triton="nlrl.kernels.causal_conv1d.triton:causal_conv1d")
diff_attention = Op(
    _diff_attention,
    _eager_diff_attention,
    triton="nlrl.kernels.diff_attention.triton:diff_attention",
    compiled=_eager_diff_attention,
    node=_diff_attention_node,
)
diff_attention_v2 = Op(
    _diff_attention_v2,
    _eager_diff_attention_v2,
    triton="nlrl.kernels.diff_attention_v2.triton:diff_attention_v2",
    compiled=_eager_diff_attention_v2,
    node=_diff_attention_v2_node,
)
dual_norm = Op(_dual_norm, _eager_dual_norm, triton="nlrl.kernels.dual_norm.triton:dual_norm")
extend_attention = Op(
    _extend_attention,
    _eager_extend_attention,
    triton="nlrl.kernels.extend_attention.triton:extend_attention",
    compiled=_eager_extend_attention,
)
linear_cross_entropy = Op(
    _linear_cross_entropy,
    _eager_linear_cross_entropy,
    triton="nlrl.kernels.linear_cross_entropy.triton:linear_cross_entropy",
)
linear_distillation = Op(
    _linear_distillation,
    _eager_linear_distillation,
    triton="nlrl.kernels.linear_distillation.triton:linear_distillation",
)
mamba1_mixer = Op(
    _mamba1_mixer,
    _eager_mamba1_mixer,
    triton="nlrl.kernels.mamba1_mixer.triton:mamba1_mixer",
    compiled=_compiled_mamba1_mixer,
)
mamba1_step = Op(_mamba1_step, _eager_mamba1_step, triton="nlrl.kernels.mamba1_step.triton:mamba1_step")
mamba2_mixer = Op(
    _mamba2_mixer,
    _eager_mamba2_mixer,
    triton="nlrl.kernels.mamba2_mixer.triton:mamba2_mixer",
    compiled=_compiled_mamba2_mixer,
)
mamba2_step = Op(_mamba2_step, _eager_mamba2_step, triton="nlrl.kernels.mamba2_step.triton:mamba2_step")
norm_rotary = Op(_norm_rotary, _eager_norm_rotary, triton="nlrl.kernels.norm_rotary.triton:norm_rotary")
paged_attention = Op(_paged_attention, _paged_attention, triton="nlrl.kernels.paged_attention.triton:paged_attention")
prefix_attention = Op(
    _prefix_attention,
    _eager_prefix_attention,
    triton="nlrl.kernels.prefix_attention.triton:prefix_attention",
    compiled=_eager_prefix_attention,
    node=_prefix_attention_node,
)
ring_attention = Op(
    _ring_attention,
    _eager_ring_attention,
    triton="nlrl.kernels.ring_attention.triton:ring_attention",
    compiled=_eager_ring_attention,
)
rms_norm = Op(_rms_norm, _eager_rms_norm, triton="nlrl.kernels.rms_norm.triton:rms_norm")
rotary = Op(_rotary, _eager_rotary, triton="nlrl.kernels.rotary.triton:rotary")
sample = Op(_sample, _sample, triton="nlrl.kernels.sample.triton:sample")
sample_head = Op(_sample_head, _sample_head, triton="nlrl.kernels.sample_head.triton:sample_head")
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


def ops() -> dict[str, Op]:
    """Every op by its name."""
    return {name: value for name, value in sorted(globals().items()) if isinstance(value, Op)}


def providers(device: str | None = None) -> dict[str, OpProviders]:
    """For each op: which providers are there, which one a device gets and why.

    Args:
        device: name of a GPU, as CUDA gives it, or "cpu"; by default this machine's GPU, or its CPU.
    """
    return {name: describe(op, device) for name, op in ops().items()}


__all__ = [
    "Op",
    "OpProviders",
    "adam_normalise",
    "bit_linear",
    "causal_conv1d",
    "diff_attention",
    "diff_attention_v2",
    "dual_norm",
    "extend_attention",
    "linear_cross_entropy",
    "linear_distillation",
    "mamba1_mixer",
    "mamba1_step",
    "mamba2_mixer",
    "mamba2_step",
    "norm_rotary",
    "ops",
    "paged_attention",
    "prefix_attention",
    "providers",
    "ring_attention",
    "rms_norm",
    "rotary",
    "sample",
    "sample_head",
    "selective_scan",
    "ssd",
    "swiglu",
    "unit_lerp",
]
