"""Decoding on a CPU in one native call a token: `compile_model`."""

from nlrl.backbones.engine.cpu.model import CpuModel, compile_model

__all__ = ["CpuModel", "compile_model"]
