"""CUDA C++ programs, compiled on the machine that runs them with the NVRTC library that PyTorch brings.

1. `program` compiles a source for a device, about a second each, and keeps what came out, by source, architecture,
   macros and version: in the process, and in the cache folder ($NLRL_CACHE, by default ~/.cache/nlrl) for the next. It
   needs no headers and no CUDA toolkit (`torch.cuda._compile_kernel`, which does the same, asks for one), only NVRTC
   and the driver.
2. Where a source cannot be compiled or loaded, it is None, with one line in the log; the caller has another way.
3. A stream that is being captured does not forbid compiling, which is the host's work. Loading asks the driver for
   memory, which a capture forbids to the thread by default: so it is allowed for that moment, as PyTorch's allocator
   does. A first call outside the capture, as every warm-up is, leaves nothing to load.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)
RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED: a capture does not forbid this thread to ask for memory."""
NO_CONTEXT = 201
"""CUDA_ERROR_INVALID_CONTEXT: this thread has not used the device yet."""
MOST_SHARED = 48 << 10
"""Bytes of shared memory that a block gets without asking for more."""


class SourceError(RuntimeError):
    """A program cannot be compiled, loaded or started."""


class Program:
    """A compiled program on one device."""

    def __init__(self, function: ctypes.c_void_p, device: int, module: ctypes.c_void_p):
        self._function, self._device, self._module = function, device, module

    def __call__(self, grid: Sequence[int], threads: int, shared: int, *args: Tensor | int | None) -> None:
        """Starts it on the current stream of its device.

        Args:
            grid: blocks, two numbers.
            threads: of a block.
            shared: bytes of dynamic shared memory, up to `MOST_SHARED`.
            args: a tensor is a pointer, None a null pointer, a number an `int`. Tensors must outlive the call only on
                this stream, as for every op of PyTorch.

        Raises:
            SourceError: the driver refused.
        """
        values = c_values(args)
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        stream = ctypes.c_void_p(torch.cuda.current_stream(self._device).cuda_stream)
        sizes = (*grid, 1, threads, 1, 1, shared)
        _driver(self._device, "cuLaunchKernel", self._function, *sizes, stream, pointers, None)


def c_values(args: Sequence[Tensor | int | None]) -> list[ctypes.c_int | ctypes.c_void_p]:
    """What a program written in C gets of them."""
    return [
        ctypes.c_int(arg) if isinstance(arg, int) else ctypes.c_void_p(None if arg is None else arg.data_ptr())
        for arg in args
    ]


@cache
def program(device: int, file: Path, name: str, macros: tuple[str, ...] = ()) -> Program | None:
    """The program `name` (`extern "C"`) of a file for a device, or None if it cannot be had.

    Args:
        device: index of the CUDA device; its architecture is compiled for.
        file: the source.
        macros: "NAME=value".
    """
    try:
        major, minor = torch.cuda.get_device_capability(device)
        return _loaded(device, _compiled(file, f"sm_{major}{minor}", macros), name)
    except (OSError, SourceError) as error:
        log.warning("%s is not used: %s", file.name, error)
        return None


# -- compiling ---------------------------------------------------------------------------------------------------------
@cache
def _compiled(file: Path, architecture: str, macros: tuple[str, ...]) -> bytes:
    source = file.read_text()
    parts = "\0".join((source, architecture, *macros, str(torch.version.cuda)))
    kept = _folder() / f"cuda-{hashlib.sha256(parts.encode()).hexdigest()[:32]}.cubin"
    with suppress(OSError):
        return kept.read_bytes()
    code = compile_source(source, architecture, macros)
    _keep(kept, code)
    return code


def _folder() -> Path:
    return Path(os.environ.get("NLRL_CACHE") or Path.home() / ".cache" / "nlrl")


def _keep(path: Path, code: bytes) -> None:
    """Whole or not at all; a folder that cannot be written costs the next process the compiler's second."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(code)
        os.replace(temporary, path)


def compile_source(source: str, architecture: str, macros: Sequence[str] = ()) -> bytes:
    """Machine code for a GPU that need not be there.

    Args:
        architecture: "sm_90".

    Raises:
        OSError: there is no NVRTC.
        SourceError: with the compiler's first complaint.
    """
    nvrtc = _nvrtc()
    options = [text.encode() for text in (f"--gpu-architecture={architecture}", *(f"-D{macro}" for macro in macros))]
    made = ctypes.c_void_p()
    _checked(nvrtc.nvrtcCreateProgram(ctypes.byref(made), source.encode(), b"source.cu", 0, None, None))
    try:
        failed = nvrtc.nvrtcCompileProgram(made, len(options), (ctypes.c_char_p * len(options))(*options))
        if failed:
            words = _text(nvrtc, made, "ProgramLog").decode(errors="replace")
            lines = [line for line in words.splitlines() if "error" in line]
            raise SourceError(f"NVRTC: {(lines or [f'code {failed}'])[0]}")
        return _text(nvrtc, made, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(made))


def _text(nvrtc: Any, made: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _checked(getattr(nvrtc, f"nvrtcGet{what}Size")(made, ctypes.byref(size)))
    text = ctypes.create_string_buffer(size.value)
    _checked(getattr(nvrtc, f"nvrtcGet{what}")(made, text))
    return text.raw


def _checked(code: int) -> None:
    if code:
        raise SourceError(f"NVRTC: code {code}")


@cache
def _nvrtc() -> ctypes.CDLL:
    """Found by the loader where PyTorch has loaded it, else beside PyTorch."""
    major = (torch.version.cuda or "13").split(".")[0]
    name = f"libnvrtc.so.{major}"
    beside = Path(torch.__file__).parents[1] / "nvidia"
    for place in (name, *map(str, sorted(beside.glob(f"*/lib/{name}")))):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    raise OSError(f"{name} is not there")


# -- the driver --------------------------------------------------------------------------------------------------------
def _loaded(device: int, code: bytes, name: str) -> Program:
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with _loading_allowed(device):
        _driver(device, "cuModuleLoadData", ctypes.byref(module), code)
        _driver(device, "cuModuleGetFunction", ctypes.byref(function), module, name.encode())
    return Program(function, device, module)


@contextmanager
def _loading_allowed(device: int) -> Iterator[None]:
    """Even while a stream is captured."""
    mode = ctypes.c_int(RELAXED)
    _driver(device, "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))
    try:
        yield
    finally:
        _driver(device, "cuThreadExchangeStreamCaptureMode", ctypes.byref(mode))


@cache
def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _driver(device: int, call: str, *args: Any) -> None:
    """A call of the driver, in the context that PyTorch has on the device."""
    function = getattr(_libcuda(), call)
    code = function(*args)
    if code == NO_CONTEXT:
        _enter_context(device)
        code = function(*args)
    if code:
        text = ctypes.c_char_p()
        _libcuda().cuGetErrorString(code, ctypes.byref(text))
        raise SourceError(f"{call}: {(text.value or b'unknown error').decode()} ({code})")


def _enter_context(device: int) -> None:
    context, index = ctypes.c_void_p(), ctypes.c_int()
    if _libcuda().cuDeviceGet(ctypes.byref(index), device) or _libcuda().cuDevicePrimaryCtxRetain(
        ctypes.byref(context), index
    ):
        raise SourceError(f"device {device} has no context")
    _libcuda().cuCtxSetCurrent(context)
