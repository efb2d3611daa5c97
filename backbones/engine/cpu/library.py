"""The native library: built from the sources beside this file on first use, then found in the cache folder.

It is plain C behind `ctypes`: no header of PyTorch is read, so a build takes seconds and no version of PyTorch matters.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger(__name__)
SOURCE = "model.cpp"
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-fopenmp-simd", "-pthread", "-fPIC", "-shared", "-fno-math-errno",
    "-fno-trapping-math", "-Wno-psabi",
)  # fmt: skip
"""No -ffast-math: linked into a library it changes how the whole process rounds denormal numbers."""
SECONDS = 300
"""What a build may take."""


class BuildError(Exception):
    """Why there is no library."""


def _structure(name: str, **kinds) -> type[ctypes.Structure]:
    """A C structure; values are names of fields, keys their type."""
    fields = [(field, getattr(ctypes, f"c_{kind}")) for kind, names in kinds.items() for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Sizes = _structure(
    "Sizes",
    int64="layers hidden intermediate vocab heads kv_heads key_dim value_dim kind interleaved turns meta inner conv "
    "taps ssm_heads ssm_dim states groups norm_groups rank reach",
    double="eps",
)


class Outer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("embedding", "lm_head", "turns")]


class Cache(ctypes.Structure):
    """`attention.h`: where keys and values are; strides in floats."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((f"{part}_{axis}", ctypes.c_int64) for part in ("key", "value") for axis in ("layer", "block", "head")),
        ("table", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("table_row", "blocks", "page", "rows", "length")),
    ]


class Part(ctypes.Structure):
    """`recurrent.h`: a state with a row axis; strides in floats."""

    _fields_ = [("data", ctypes.c_void_p), ("layer", ctypes.c_int64), ("row", ctypes.c_int64)]


class HymbaParts(ctypes.Structure):
    """`hymba.h`: HymbaState."""

    _fields_ = [
        *((name, Cache) for name in ("whole", "ring")),
        *((name, Part) for name in ("conv", "ssm")),
        *((f"meta_{name}", ctypes.c_void_p) for name in ("keys", "values", "conv", "ssm")),
        ("rows", ctypes.c_int64),
    ]


class Call(ctypes.Structure):
    """`step.h`: n tokens, and those whose logits are wanted."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "threads", "outputs")),
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "rows", "wanted", "logits")),
        *((name, ctypes.c_int64) for name in ("logits_stride", "start")),
    ]


class Draw(ctypes.Structure):
    """`sampler.h`: what `sample` takes and gives."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "vocab", "threads")),
        ("logits", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("seeds", "steps", "temperature", "tokens", "logprobs")),
    ]


class Burst(ctypes.Structure):
    """`burst.h`: rows that draw, and the columns of all rows."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n", "steps", "threads", "vocab", "ends_count", "places")),
        *((name, ctypes.c_void_p) for name in ("rows", "ends", "logits")),
        *((name, ctypes.c_void_p) for name in ("ids", "positions", "drawn", "seeds", "limit", "temperature")),
        *((name, ctypes.c_void_p) for name in ("finished", "ignores_end", "tokens", "logprobs")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None, with one warning that says why, where it cannot be built."""
    try:
        return opened(build())
    except (BuildError, OSError) as error:
        log.warning("decoding with PyTorch, as the native CPU library cannot be had: %s", error)
        return None


def opened(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.nlrl_lanes.restype = ctypes.c_int64
    for name in (*STEPS, "nlrl_burst"):
        getattr(found, name).restype = ctypes.c_int64
    found.nlrl_sample.restype = None
    return found


STEPS = ("nlrl_decoder_step", "nlrl_bimamba_step", "nlrl_hymba_step")
"""Functions that read tokens; each returns 0 or the number of a mistake, and so does nlrl_burst."""


def build(more_flags: Sequence[str] = ()) -> Path:
    """Where the library is, built if it is not there yet.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    flags, here = (*FLAGS, *more_flags), Path(__file__).parent
    folder = Path(os.environ.get("NLRL_CACHE") or Path.home() / ".cache" / "nlrl")
    path = folder / f"cpu-{_fingerprint(here, flags)}.so"
    if path.exists():
        return path
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError("g++ is not installed")
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _run([compiler, *flags, "-o", str(temporary), str(here / SOURCE)])
        os.replace(temporary, path)
    except OSError as error:
        raise BuildError(f"{folder} cannot be written: {error}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise BuildError(f"g++ took more than {SECONDS} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        raise BuildError(f"g++ failed: {lines[0] if lines else f'exit code {done.returncode}'}")


def _fingerprint(here: Path, flags: Sequence[str]) -> str:
    """Of the sources, the flags, and the processor that "native" means."""
    files = sorted([*here.glob("*.h"), *here.glob("*.cpp")])
    parts = [file.name.encode() + b"\0" + file.read_bytes() for file in files]
    known = hashlib.sha256(b"\0".join([*parts, " ".join(flags).encode(), _processor().encode()]))
    return known.hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([platform.machine(), platform.processor(), *dict.fromkeys(told)])
