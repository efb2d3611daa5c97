"""Fixtures of all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.fixture
def interpreted() -> Callable[[str], None]:
    """`interpreted(__file__)` runs a file as a program under Triton's interpreter, which is chosen when triton is
    imported. Without triton the test is skipped."""
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}

    def run(file: str) -> None:
        subprocess.run([sys.executable, file], env=environment, check=True, timeout=300)

    return run
