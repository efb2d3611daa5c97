"""Programs that NVRTC compiles: kept, and done without. What runs on a GPU is tested with the ops that have one."""

import logging

import pytest
import torch

from nlrl.kernels import cuda_source

SOURCE = """extern "C" __global__ void fill(int* to, int value) { to[threadIdx.x] = value; }"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A source of its own, so that no other test's program is found, and a device that is not there."""
    monkeypatch.setenv("NLRL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_source, "_loaded", lambda device, code, name: (device, code, name))
    path = tmp_path / "fill.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def compiled(monkeypatch):
    """What was compiled, by a compiler that answers with what it was asked."""
    asked = []

    def compile_source(source, architecture, macros):
        asked.append((source, architecture, macros))
        return repr(asked[-1]).encode()

    monkeypatch.setattr(cuda_source, "compile_source", compile_source)
    return asked


def test_a_source_is_compiled_once_for_all_its_programs_and_processes(file, compiled):
    first = cuda_source.program(0, file, "fill", ("A=1",))
    assert first == (0, repr((SOURCE, "sm_90", ("A=1",))).encode(), "fill")
    cuda_source.program(1, file, "other", ("A=1",))
    cuda_source._compiled.cache_clear()  # as another process has it
    assert cuda_source.program(2, file, "fill", ("A=1",))[1] == first[1]
    assert len(compiled) == 1
    cuda_source.program(0, file, "fill", ("A=2",))
    assert len(compiled) == 2


def test_a_cache_folder_that_cannot_be_written_only_costs_time(file, compiled, monkeypatch):
    monkeypatch.setenv("NLRL_CACHE", str(file / "no folder"))
    assert cuda_source.program(0, file, "fill") is not None
    assert len(compiled) == 1


@pytest.mark.parametrize("problem", [OSError("no such library"), cuda_source.SourceError("no such instruction")])
def test_without_a_program_there_is_one_line_in_the_log(file, monkeypatch, caplog, problem):
    def fails(*args):
        raise problem

    monkeypatch.setattr(cuda_source, "compile_source", fails)
    with caplog.at_level(logging.WARNING):
        assert [cuda_source.program(0, file, "fill") for _ in range(2)] == [None, None]
    assert [record.getMessage() for record in caplog.records] == [f"fill.cu is not used: {problem}"]


class Driver:
    """Of a thread that has not used the device yet; refuses what it is told to."""

    def __init__(self, refused=""):
        self.calls, self.entered, self.refused = [], False, refused

    def __getattr__(self, name):
        def call(*args):
            self.calls.append(name)
            if name == "cuCtxSetCurrent":
                self.entered = True
            if name in ("cuLaunchKernel", "cuModuleLoadData") and not self.entered:
                return cuda_source.NO_CONTEXT
            return 999 if name == self.refused else 0

        return call


def test_a_thread_that_is_new_to_the_device_gets_its_context(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(cuda_source, "_libcuda", lambda: driver)
    cuda_source._driver(0, "cuLaunchKernel", None)
    entering = ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"]
    assert driver.calls == ["cuLaunchKernel", *entering, "cuLaunchKernel"]


def test_a_capture_forbids_again_what_it_did_even_if_loading_fails(monkeypatch):
    driver = Driver(refused="cuModuleLoadData")
    monkeypatch.setattr(cuda_source, "_libcuda", lambda: driver)
    with pytest.raises(cuda_source.SourceError, match="cuModuleLoadData"):
        cuda_source._loaded(0, b"", "fill")
    assert driver.calls[0] == driver.calls[-1] == "cuThreadExchangeStreamCaptureMode"


def test_nvrtc_names_what_is_wrong():
    try:
        assert cuda_source.compile_source(SOURCE, "sm_80")
    except OSError:
        pytest.skip("needs NVRTC")
    with pytest.raises(cuda_source.SourceError, match="error"):
        cuda_source.compile_source("this is no program", "sm_90")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_program_runs_on_the_current_stream(tmp_path):
    path = tmp_path / "fill.cu"
    path.write_text(SOURCE)
    fill = cuda_source.program(torch.cuda.current_device(), path, "fill")
    assert fill is not None
    to = torch.zeros(64, dtype=torch.int32, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda.current_stream().wait_stream(torch.cuda.default_stream())
        fill((1, 1), 32, 0, to, -7)
        torch.cuda.current_stream().synchronize()
    assert to.tolist() == [-7] * 32 + [0] * 32
