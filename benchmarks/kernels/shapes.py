"""Where every op is measured and where it is checked, and what is asked of it. Data only.

`paper` holds sizes of published models, `small` those of the bundled ones. Check sizes divide no tile; they are small
enough for Triton's interpreter and for a reference in float64. `documents` means rows of several texts with padding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

ALL = ("forward", "backward", "both")
FORWARD = ("forward",)


class Timed(NamedTuple):
    """One line of measurements for each of its modes."""

    shape: dict[str, int]
    modes: tuple[str, ...] = ALL
    dtype: str = "bfloat16"
    graph: bool = False
    """Too short to be launched one by one: a CUDA graph is replayed."""


class Target(NamedTuple):
    """What is asked of our kernel: a share of the measured copy rate, or a speed beside other providers."""

    at_least: float
    of: str
    """"copy"; or a provider; or several with a comma between, of which the fastest counts."""
    modes: tuple[str, ...] = ALL
    graph: bool | None = None
    """Of measurements by replay only, or of the others only."""
    only: tuple[tuple[str, int], ...] = ()
    """Of sizes with these numbers only."""


def _scan(batch: int, time: int, channels: int = 3200) -> dict[str, int]:
    return {"batch": batch, "time": time, "channels": channels, "states": 16}


def _ssd(batch: int, time: int, heads: int = 80, head_dim: int = 64, states: int = 128) -> dict[str, int]:
    return {"batch": batch, "time": time, "heads": heads, "head_dim": head_dim, "groups": 1, "states": states}


def _step(rows: int, heads: int, head_dim: int, states: int) -> dict[str, int]:
    return {"rows": rows, "heads": heads, "head_dim": head_dim, "groups": 1, "states": states, "taps": 4}


def _step1(rows: int, channels: int, states: int, rank: int) -> dict[str, int]:
    return {"rows": rows, "channels": channels, "states": states, "rank": rank, "taps": 4}


def _conv(batch: int, time: int, channels: int = 3200) -> dict[str, int]:
    return {"batch": batch, "time": time, "channels": channels, "taps": 4}


def _diff(batch: int, time: int, heads: int, width: int) -> dict[str, int]:
    return {"batch": batch, "time": time, "heads": heads, "kv_heads": heads, "width": width}


def _bits(rows: int, inputs: int, outputs: int) -> dict[str, int]:
    return {"rows": rows, "inputs": inputs, "outputs": outputs}


def _prefix(batch: int, time: int, window: int, heads: int = 25, kv_heads: int = 5, key_dim: int = 64):
    return {
        "batch": batch, "time": time, "heads": heads, "kv_heads": kv_heads, "key_dim": key_dim,
        "value_dim": 2 * key_dim, "prefix": 128, "window": window,
    }  # fmt: skip


def _paged(rows: int, context: int, heads: int, kv_heads: int, key_dim: int, v_heads: int = 0, value_dim: int = 0):
    return {
        "rows": rows, "context": context, "heads": heads, "kv_heads": kv_heads, "v_heads": v_heads or kv_heads,
        "key_dim": key_dim, "value_dim": value_dim or key_dim,
    }  # fmt: skip


def _ring(rows: int, slots: int, heads: int = 25, kv_heads: int = 5, key_dim: int = 64, prefix: int = 128):
    return {
        "rows": rows, "slots": slots, "heads": heads, "kv_heads": kv_heads, "key_dim": key_dim,
        "value_dim": 2 * key_dim, "prefix": prefix,
    }  # fmt: skip


def _extend(batch: int, time: int, old: int, heads: int, kv_heads: int, key_dim: int, slots: int = 0, **others: int):
    return {
        "batch": batch, "time": time, "old": old, "heads": heads, "kv_heads": kv_heads, "v_heads": kv_heads,
        "key_dim": key_dim, "value_dim": key_dim, "slots": slots, "reach": slots,
    } | others  # fmt: skip


def _extend_hymba(batch: int, time: int, old: int, slots: int = 0) -> dict[str, int]:
    return _extend(batch, time, old, 25, 5, 64, slots, value_dim=128, prefix=128)


def _head(rows: int, width: int, vocabulary: int, masked: int) -> dict[str, int]:
    return {"rows": rows, "width": width, "vocabulary": vocabulary, "masked": masked}


def _decode(shape: dict[str, int]) -> Timed:
    return Timed(shape, FORWARD, graph=True)


SHAPES: dict[str, dict[str, list[Timed]]] = {
    "unit_lerp": {
        "small": [Timed({"tokens": 8192, "width": 192})],
        "paper": [Timed({"tokens": 32768, "width": 1024}), Timed({"tokens": 32768, "width": 1280})],
    },
    "adam_normalise": {
        "small": [Timed({"rows": 768, "columns": 192, "axis": 1, "rounded": 1}, FORWARD, "float32", True)],
        "paper": [
            Timed({"rows": 32000, "columns": 1280, "axis": 1, "rounded": 1}, FORWARD, "float32"),
            Timed({"rows": 1280, "columns": 5120, "axis": 0, "rounded": 1}, FORWARD, "float32"),
        ],
    },
    "bit_linear": {
        "small": [_decode(_bits(rows, 192, 768)) for rows in (1, 64)],
        "paper": [_decode(_bits(rows, 8192, 8192)) for rows in (1, 8, 16, 32, 64, 256)]
        + [_decode(_bits(1, 2560, 10576))],
    },
    "linear_cross_entropy": {
        "small": [Timed({"tokens": 8192, "width": 192, "vocab": 2048})],
        "paper": [Timed({"tokens": 8192, "width": 4096, "vocab": vocab}) for vocab in (32000, 131072)],
    },
    "linear_distillation": {
        "small": [Timed({"tokens": 8192, "width": 192, "teacher_width": 192, "vocab": 2048})],
        "paper": [Timed({"tokens": 8192, "width": 2560, "teacher_width": 4096, "vocab": 32000})],
    },
    "rms_norm": {
        "small": [Timed({"rows": 8192, "width": 192})],
        "paper": [Timed({"rows": 16384, "width": 4096}), Timed({"rows": 16384, "width": 4096, "added": 1})],
    },
    "dual_norm": {
        "small": [Timed({"rows": 8192, "width": 320})],
        "paper": [Timed({"rows": 16384, "width": 3200})],
    },
    "rotary": {
        "small": [Timed({"batch": 16, "time": 512, "heads": 6, "head_dim": 32})],
        "paper": [Timed({"batch": 4, "time": 4096, "heads": 32, "head_dim": 128})],
    },
    "norm_rotary": {
        "small": [Timed({"batch": 16, "time": 512, "heads": 12, "head_dim": 32})],
        "paper": [Timed({"batch": 4, "time": 4096, "heads": 32, "head_dim": 128})],
    },
    "swiglu": {
        "small": [Timed({"tokens": 8192, "channels": 512})],
        "paper": [Timed({"tokens": 16384, "channels": 5504}), Timed({"tokens": 8192, "channels": 14336})],
    },
    "causal_conv1d": {
        "small": [Timed(_conv(16, 512, 384)), _decode(_conv(64, 1, 384))],
        "paper": [Timed(_conv(8, 2048)), _decode(_conv(128, 1))],
    },
    "selective_scan": {
        "small": [Timed(_scan(16, 512, 384)), _decode(_scan(64, 1, 384))],
        "paper": [Timed(_scan(8, 2048)), _decode(_scan(64, 1)), _decode(_scan(128, 1))],
    },
    "ssd": {
        "small": [Timed(_ssd(16, 512, 8, 48, 64)), _decode(_ssd(64, 1, 8, 48, 64))],
        "paper": [Timed(_ssd(8, 2048)), _decode(_ssd(64, 1)), _decode(_ssd(128, 1))],
    },
    "mamba1_mixer": {
        "small": [Timed(_scan(16, 512, 384) | {"rank": 12, "taps": 4})],
        "paper": [Timed(_scan(8, 2048) | {"rank": 100, "taps": 4})],
    },
    "mamba1_step": {
        "small": [_decode(_step1(64, 384, 16, 12))],
        "paper": [_decode(_step1(rows, 3200, 16, 100)) for rows in (1, 64, 128)],
    },
    "mamba2_mixer": {
        "small": [Timed(_ssd(16, 512, 8, 48, 64) | {"taps": 4})],
        "paper": [Timed(_ssd(8, 2048) | {"taps": 4})],
    },
    "mamba2_step": {
        "small": [_decode(_step(64, 8, 48, 64))],
        "paper": [_decode(_step(rows, 80, 64, 128)) for rows in (1, 64, 128)],
    },
    "diff_attention": {
        "small": [Timed(_diff(16, 512, 3, 32))],
        "paper": [
            Timed(_diff(4, 2048, 24, 64)),
            Timed(_diff(2, 4096, 24, 64)),
            Timed(_diff(4, 2048, 12, 128)),
            Timed(_diff(2, 4096, 12, 128)),
        ],
    },
    "diff_attention_v2": {
        "small": [Timed(_diff(16, 512, 6, 32) | {"kv_heads": 2})],
        "paper": [Timed(_diff(4, 2048, 16, 128) | {"kv_heads": 8}), Timed(_diff(2, 4096, 16, 128) | {"kv_heads": 8})],
    },
    "prefix_attention": {
        "small": [Timed(_prefix(16, 512, 128, 6, 2, 32))],
        "paper": [Timed(_prefix(8, 2048, 1024)), Timed(_prefix(2, 8192, 1024)), Timed(_prefix(2, 8192, 0))],
    },
    "paged_attention": {
        "small": [_decode(_paged(64, 512, 6, 2, 32))],
        "paper": [
            _decode(_paged(1, 1024, 25, 5, 64)),
            _decode(_paged(32, 1024, 25, 5, 64)),
            _decode(_paged(128, 1024, 25, 5, 64)),
            _decode(_paged(32, 8192, 24, 8, 128)),
            _decode(_paged(32, 4096, 24, 8, 128, 4, 256)),
            *(
                _decode(_paged(rows, context, 25, 5, 64, 5, 128) | {"prefix": 128})
                for rows in (1, 32, 128)
                for context in (1024, 8192)
            ),
        ],
    },
    "ring_attention": {
        "small": [_decode(_ring(64, 128, 5, 1, 32, 16))],
        "paper": [_decode(_ring(rows, 1024)) for rows in (1, 32, 128)],
    },
    "extend_attention": {
        "small": [Timed(_extend(16, 64, 256, 6, 2, 32), FORWARD)],
        "paper": [
            *(Timed(_extend_hymba(16, 256, 1024, slots), FORWARD) for slots in (1024, 0)),
            Timed(_extend_hymba(2, 2048, 1024, 1024), FORWARD),
            Timed(_extend_hymba(4, 32, 1024, 1024), FORWARD, graph=True),
            Timed(_extend(8, 512, 4096, 24, 8, 128), FORWARD),
            Timed(_extend(8, 512, 4096, 24, 8, 128, v_heads=4, value_dim=256), FORWARD),
        ],
    },
    "sample": {
        "small": [_decode({"rows": 256, "vocabulary": 2048, "masked": 1})],
        "paper": [_decode({"rows": 256, "vocabulary": 32000, "masked": masked}) for masked in (0, 1)],
    },
    "sample_head": {
        "small": [_decode(_head(rows, 192, 1024, 1)) for rows in (64, 256)],
        "paper": [
            *(_decode(_head(256, width, 2048, masked)) for width in (256, 2048) for masked in (0, 1)),
            *(_decode(_head(256, 2048, 32000, masked)) for masked in (0, 1)),
            *(_decode(_head(rows, 1600, 32001, 0)) for rows in (1, 32)),
        ],
    },
}  # fmt: skip

CHECKS: dict[str, list[dict[str, Any]]] = {
    "unit_lerp": [{"tokens": 37, "width": 100}],
    "adam_normalise": [
        {"rows": 13, "columns": 40, "axis": 1, "rounded": 1},
        {"rows": 40, "columns": 13, "axis": 0, "rounded": 0},
    ],
    "bit_linear": [_bits(1, 100, 70), _bits(17, 203, 40), _bits(1, 1150, 70), _bits(17, 1150, 70)],
    "linear_cross_entropy": [{"tokens": 11, "width": 24, "vocab": 70}],
    "linear_distillation": [{"tokens": 11, "width": 24, "teacher_width": 16, "vocab": 70}],
    "rms_norm": [{"rows": 13, "width": 70}, {"rows": 13, "width": 70, "added": 1}],
    "dual_norm": [{"rows": 13, "width": 70}],
    "rotary": [{"batch": 2, "time": 11, "heads": 3, "head_dim": 32}],
    "norm_rotary": [{"batch": 2, "time": 11, "heads": 3, "head_dim": 32}],
    "swiglu": [{"tokens": 17, "channels": 70}],
    "causal_conv1d": [
        {"batch": 2, "time": 40, "channels": 24, "taps": 4},
        {"batch": 3, "time": 41, "channels": 24, "taps": 4, "documents": True},
        {"batch": 3, "time": 1, "channels": 24, "taps": 4},
    ],
    "selective_scan": [
        {"batch": 2, "time": 40, "channels": 20, "states": 16},
        {"batch": 3, "time": 41, "channels": 20, "states": 4, "documents": True},
        {"batch": 3, "time": 1, "channels": 20, "states": 16},
    ],
    "ssd": [
        {"batch": 2, "time": 70, "heads": 4, "head_dim": 32, "groups": 1, "states": 16},
        {"batch": 3, "time": 41, "heads": 2, "head_dim": 16, "groups": 1, "states": 16, "documents": True},
        {"batch": 1, "time": 70, "heads": 4, "head_dim": 24, "groups": 2, "states": 40},
        {"batch": 3, "time": 1, "heads": 2, "head_dim": 16, "groups": 1, "states": 16},
    ],
    "mamba1_mixer": [
        {"batch": 2, "time": 40, "channels": 20, "states": 16, "rank": 5, "taps": 4},
        {"batch": 3, "time": 41, "channels": 24, "states": 4, "rank": 3, "taps": 4, "documents": True},
    ],
    "mamba1_step": [_step1(3, 70, 16, 5), _step1(19, 40, 10, 20)],
    "mamba2_mixer": [
        _ssd(2, 70, 4, 32, 16) | {"taps": 4},
        _ssd(3, 41, 2, 16, 16) | {"taps": 4, "documents": True},
    ],
    "mamba2_step": [_step(3, 4, 8, 16), _step(2, 3, 12, 10)],
    "diff_attention": [
        {"batch": 2, "time": 45, "heads": 4, "kv_heads": 2, "width": 32},
        {"batch": 1, "time": 40, "heads": 2, "kv_heads": 2, "width": 16, "documents": True},
    ],
    "diff_attention_v2": [
        {"batch": 2, "time": 45, "heads": 4, "kv_heads": 2, "width": 32},
        {"batch": 1, "time": 40, "heads": 2, "kv_heads": 2, "width": 16, "documents": True},
    ],
    "prefix_attention": [
        _prefix(2, 45, 9, 4, 2, 16) | {"prefix": 5},
        _prefix(1, 40, 0, 2, 2, 16) | {"prefix": 20},
        _prefix(2, 45, 30, 2, 1, 16) | {"prefix": 3, "documents": True},
    ],
    "paged_attention": [
        _paged(3, 37, 6, 2, 24),
        _paged(2, 70, 8, 4, 16, 2, 32),
        _paged(3, 37, 6, 2, 24) | {"prefix": 21},
    ],
    "ring_attention": [_ring(3, 37, 6, 2, 24, 0), _ring(2, 250, 5, 1, 16, 21)],
    "extend_attention": [
        _extend_hymba(2, 37, 50, 21) | {"heads": 6, "kv_heads": 2, "v_heads": 2, "prefix": 5},
        _extend(3, 9, 37, 4, 2, 24),
        _extend(2, 11, 20, 8, 4, 16, v_heads=2, value_dim=32, prefix=3),
    ],
    "sample": [{"rows": 5, "vocabulary": 70, "masked": 1}, {"rows": 4, "vocabulary": 1000, "masked": 0}],
    "sample_head": [_head(5, 70, 300, 1), _head(40, 24, 200, 0) | {"scaled": 1}],
}

_SCAN_DECODE = Target(0.85, "copy", FORWARD, True)

TARGETS: dict[str, list[Target]] = {
    "unit_lerp": [
        Target(0.85, "copy", FORWARD),
        Target(0.75, "copy", ("backward",)),
        Target(1.5, "torch.compile", ALL),
    ],
    "adam_normalise": [Target(1 / 1.15, "fused AdamW alone")],
    "bit_linear": [
        Target(5.0, "matrix in 2 bytes", only=(("rows", 1), ("inputs", 8192))),
        Target(1.5, "gemlite", only=(("rows", 1), ("inputs", 8192))),
        *(Target(1.0, "matrix in 2 bytes", only=(("rows", rows),)) for rows in (1, 8, 16, 32, 64)),
    ],
    "linear_distillation": [Target(1.0, "torch,torch.compile", ("both",))],
    "linear_cross_entropy": [Target(1.0, "liger_kernel,fla", ("both",))],
    "rms_norm": [Target(0.95, "liger_kernel,torch.compile")],
    "dual_norm": [Target(0.85, "copy", FORWARD), Target(1.0, "torch,torch.compile")],
    "rotary": [Target(0.85, "copy", FORWARD), Target(1.0, "torch.compile")],
    "norm_rotary": [Target(0.85, "copy", FORWARD), Target(1.0, "torch,torch.compile")],
    "swiglu": [Target(0.95, "liger_kernel,fla,torch.compile")],
    "causal_conv1d": [
        Target(0.95, "causal_conv1d kernel,fla", FORWARD, False),
        Target(0.95, "causal_conv1d update,vllm", FORWARD, True),
    ],
    "selective_scan": [
        Target(1.5, "mamba_ssm", FORWARD, False),
        Target(1.2, "mamba_ssm", ("backward",), False),
        _SCAN_DECODE,
    ],
    "ssd": [
        Target(2.0, "mamba_ssm kernel", FORWARD, False),
        Target(1.5, "mamba_ssm kernel", ("backward",), False),
        _SCAN_DECODE,
    ],
    "mamba1_mixer": [Target(2.0, "separate calls")],
    "mamba1_step": [_SCAN_DECODE],
    "mamba2_mixer": [Target(2.0, "mamba_ssm", FORWARD), Target(1.5, "mamba_ssm", ("backward",))],
    "mamba2_step": [_SCAN_DECODE],
    "diff_attention": [
        Target(1.3, "2 x sdpa,2 x flex", FORWARD),
        Target(1.4, "2 x sdpa,2 x flex", ("backward",)),
    ],
    "diff_attention_v2": [Target(1.1, "torch,torch.compile", ("both",))],
    "prefix_attention": [Target(2.0, "flex,torch", FORWARD)],
    "paged_attention": [Target(0.80, "copy", FORWARD, True)],
    "ring_attention": [Target(0.80, "copy", FORWARD, True)],
    "extend_attention": [Target(2.0, "torch", FORWARD)],
    "sample": [Target(2.0, "torch", FORWARD)],
    "sample_head": [Target(2.0, "torch", FORWARD)],
}
"""No target is named for what the table of the operation does not ask."""
