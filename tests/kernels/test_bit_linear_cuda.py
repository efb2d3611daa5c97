"""The program for tensor cores: on a CPU with a GPU's threads as fibers, and, where there is one, on a GPU."""

import ctypes
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import torch

from nlrl import kernels
from nlrl.kernels import cuda_source, launches
from nlrl.kernels.bit_linear import cuda
from nlrl.kernels.bit_linear.reference import pack_signs

HERE = Path(__file__).parent
WRAPPER = """
#include "emulated_gpu.h"
#include "kernel.cu"
typedef const u16* In;
extern "C" int run_prepare(int gx, int gy, int threads, int bytes, In x, In alpha, In beta, uint4* scaled,
                            float* shift, int rows, int inputs, int chunks, int whole) {
    emulated::launch([=] { prepare(x, alpha, beta, scaled, shift, rows, inputs, chunks, whole); },
                     gx, gy, threads, bytes);
    return 0;
}
extern "C" int run_unpack(int gx, int gy, int threads, int bytes, const u8* bits, uint4* to, int count) {
    emulated::launch([=] { unpack(bits, to, count); }, gx, gy, threads, bytes);
    return 0;
}
extern "C" int run_bit_linear(int gx, int gy, int threads, int bytes, In x, In alpha, In beta, const uint4* scaled,
                               const float* shift, const u8* bits, u16* y, int rows, int inputs, int outputs,
                               int row_bytes, int whole) {
    emulated::first = bits, emulated::past = bits + (size_t)outputs * row_bytes, emulated::strayed = 0;
    emulated::launch(
        [=] { bit_linear(x, alpha, beta, scaled, shift, bits, y, rows, inputs, outputs, row_bytes, whole); },
        gx, gy, threads, bytes);
    return emulated::strayed;
}
"""
NUMBERS = {
    "mma_1": (4, 1, 3, 4),
    "mma_8": (2, 2, 2, 2),
    "mma_16": (1, 3, 2, 4),
    "mma_32": (2, 1, 4, 2),
    "mma_64": (4, 1, 2, 2),
    "mma_64/many": (4, 1, 2, 2),
    "library_from": (71,),
}
"""Launches that divide nothing."""
CASES = [
    (torch.bfloat16, [(1, 1024, 70), (1, 1403, 70), (1, 128, 9)]),
    (torch.float16, [(1, 1664, 70)]),
    (torch.bfloat16, [(3, 640, 70), (8, 1275, 33)]),
    (torch.float16, [(13, 1152, 70)]),
    (torch.bfloat16, [(17, 1150, 70)]),
    (torch.bfloat16, [(64, 256, 70), (70, 640, 70)]),
]
"""Rows, inputs, outputs of one program each; rows of bits are whole vectors of 16 bytes, inputs need not fill them."""


def inputs(shape, dtype, device="cpu"):
    """x, bits, alpha, beta, of fresh random numbers."""
    rows, k, n = shape
    draw = [torch.randn(size, dtype=torch.float64) for size in ((rows, k), (k,), (k,))]
    x, alpha, beta = (tensor.to(device, dtype) for tensor in draw)
    return x, pack_signs(torch.randn(n, k)).to(device), alpha, beta / 4


def assert_exact(y, x, bits, alpha, beta, roundings=1):
    """Against float64 with alpha x rounded as it has to be: what is left is the rounding of y (twice, if a part of it
    is rounded before)."""
    scaled = (x * alpha).double()
    exact = kernels.bit_linear.reference(scaled, bits, torch.ones_like(alpha).double(), torch.zeros_like(beta).double())
    exact = exact + (x.double() * beta.double()).sum(-1, keepdim=True)
    assert y.dtype == x.dtype
    bound = torch.finfo(x.dtype).eps / 2 * exact.abs() + 1e-5 * exact.norm(dim=-1, keepdim=True)
    if roundings > 1:
        bound = bound + torch.finfo(x.dtype).eps / 2 * (x.double() @ beta.double()).abs()[:, None]
    assert ((y.double() - exact).abs() <= bound).all()


# -- without a GPU -----------------------------------------------------------------------------------------------------
def emulator(folder, name, macros):
    """The program, compiled for this machine, to be started as one on a GPU is."""
    library = folder / f"{abs(hash(macros))}.so"
    if not library.exists():
        source = folder / "wrapper.cpp"
        source.write_text(WRAPPER)
        places = [f"-I{HERE}", f"-I{cuda.SOURCE.parent}", *(f"-D{macro}" for macro in macros)]
        command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", *places, str(source), "-o", str(library)]
        subprocess.run(command, check=True, timeout=120)
    function = getattr(ctypes.CDLL(str(library)), f"run_{name}")

    def start(grid, threads, shared, *args):
        assert shared <= cuda_source.MOST_SHARED
        strayed = function(*grid, threads, shared, *cuda_source.c_values(args))
        assert strayed == 0, "loads outside of the bits"

    return start


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    return tmp_path_factory.mktemp("emulated")


@pytest.fixture
def numbers(monkeypatch):
    """Launches that divide nothing, and new memory full of NaN."""
    monkeypatch.setattr(cuda, "LAUNCH", NUMBERS)
    monkeypatch.setattr(launches, "_recorded", lambda op: {})
    torch.use_deterministic_algorithms(True)  # fills uninitialised memory
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("dtype", "shapes"), CASES, ids=lambda case: str(case).removeprefix("torch."))
def test_the_program_on_emulated_tensor_cores_is_exact(folder, numbers, dtype, shapes):
    for shape in shapes:
        arguments = inputs(shape, dtype)
        assert cuda.fits(*arguments[:2])
        y = cuda.multiply(*arguments, partial(emulator, folder))
        assert y is not None
        assert_exact(y, *arguments)


@pytest.mark.parametrize("shape", [(1, 2560, 70), (64, 640, 70)])
def test_the_launches_of_a_device_without_a_table_are_exact(folder, monkeypatch, shape):
    monkeypatch.setattr(launches, "_recorded", lambda op: {})
    arguments = inputs(shape, torch.bfloat16)
    y = cuda.multiply(*arguments, partial(emulator, folder))
    assert y is not None
    assert_exact(y, *arguments)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_many_rows_are_multiplied_by_signs_as_numbers(folder, numbers, dtype):
    arguments = inputs((71, 1150, 70), dtype)
    y = cuda.multiply(*arguments, partial(emulator, folder))
    assert y is not None
    assert_exact(y, *arguments, roundings=2)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_the_program_compiles_with_the_library_that_pytorch_brings(architecture, numbers):
    source = cuda.SOURCE.read_text()
    try:
        cuda_source.compile_source("", architecture)
    except OSError:
        pytest.skip("needs NVRTC")
    asked = set()
    for dtype, rows in ((torch.bfloat16, 1), (torch.float16, 64)):
        cuda.multiply(*inputs((rows, 512, 64), dtype), lambda name, macros: asked.add(macros))
    for macros in asked:
        assert cuda_source.compile_source(source, architecture, macros)


def test_without_a_compiler_the_call_is_left_to_others(monkeypatch):
    monkeypatch.setattr(cuda_source, "program", lambda device, file, name, macros: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for rows in (1, 20, 500):
        assert cuda.bit_linear(*inputs((rows, 512, 16), torch.bfloat16)) is None


@pytest.mark.parametrize(("shape", "dtype"), [((2, 100, 70), torch.bfloat16), ((2, 512, 70), torch.float32)])
def test_what_is_not_for_it_is_left_to_others(shape, dtype):
    assert not cuda.fits(*inputs(shape, dtype)[:2])


# -- on a GPU ----------------------------------------------------------------------------------------------------------
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICE_SHAPES = [
    (1, 8192, 8192), (1, 2560, 10576), (1, 1403, 70), (1, 32768, 300), (3, 1275, 1000), (8, 2560, 2560),
    (16, 8192, 1000), (24, 4096, 4096), (64, 8192, 1111), (70, 1024, 70), (256, 2560, 640),
]  # fmt: skip


def on_device(x, bits, alpha, beta):
    """Ours; NaN in new memory."""
    torch.use_deterministic_algorithms(True)
    try:
        y = cuda.bit_linear(x, bits, alpha, beta)
    finally:
        torch.use_deterministic_algorithms(False)
    assert y is not None, "NVRTC or the driver refused: see the log"
    return y


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", DEVICE_SHAPES)
def test_on_the_device_it_is_exact_and_repeatable(shape, dtype):
    arguments = inputs(shape, dtype, "cuda")
    with launches.trying("bit_linear", "library_from", (1 << 20,)):
        y = on_device(*arguments)
        assert_exact(y, *arguments)
        assert torch.equal(y, on_device(*arguments))
        assert torch.equal(y, kernels.bit_linear(*arguments))


@needs_cuda
def test_many_rows_on_the_device():
    arguments = inputs((500, 1403, 200), torch.bfloat16, "cuda")
    with launches.trying("bit_linear", "library_from", (100,)):
        y = cuda.bit_linear(*arguments)  # new memory as it is: of cuBLAS a deterministic mode asks for more
        assert y is not None
        assert_exact(y, *arguments, roundings=2)


@needs_cuda
@pytest.mark.parametrize("key", sorted(key for key in cuda.CANDIDATES if key.startswith("mma")))
def test_every_candidate_is_exact(key):
    rows = int(key.removeprefix("mma_"))
    arguments = inputs((rows, 1403, 200), torch.bfloat16, "cuda")
    for numbers in cuda.CANDIDATES[key]:
        with launches.trying("bit_linear", key, numbers):
            assert_exact(on_device(*arguments), *arguments)


@needs_cuda
def test_slices_of_larger_tensors_are_read_where_they_lie():
    x, bits, alpha, beta = inputs((9, 1150, 70), torch.bfloat16, "cuda")
    part = x[3:7], bits[5:66], alpha, beta
    assert_exact(on_device(*part), *part)
    flat = torch.cat((bits.new_zeros(1), bits.flatten()))[1:].view_as(bits)
    assert not cuda.fits(x, flat)
    torch.testing.assert_close(kernels.bit_linear(x, flat, alpha, beta), kernels.bit_linear(x, bits, alpha, beta))


@needs_cuda
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize("warm", [True, False], ids=["after a first call", "at the first call"])
def test_it_can_be_captured(rows, warm):
    arguments = inputs((rows, 1024, 200), torch.bfloat16, "cuda")
    key = "mma_1" if rows == 1 else "mma_32"
    with launches.trying("bit_linear", key, (1, 1, 3 if warm else 5, 2)):  # a program that no other test has
        if warm:
            kernels.bit_linear(*arguments)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = kernels.bit_linear(*arguments)
        arguments[0].copy_(torch.randn_like(arguments[0]))
        graph.replay()
        torch.cuda.synchronize()
        assert_exact(y, *arguments)
