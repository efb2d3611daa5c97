"""What deploy/offline.py would carry to a machine without a network, and how it is packed."""

from __future__ import annotations

import importlib.util
import subprocess
import tarfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "offline.py"


@pytest.fixture(scope="module")
def offline() -> ModuleType:
    spec = importlib.util.spec_from_file_location("offline", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_runs_is_there_at_the_versions_installed_here(offline):
    found = offline.needed("nlrl", offline.HAS + offline.VIEWER)
    assert {"ray", "tensorboard", "pydantic", "open-spiel", "llguidance", "grpcio", "llvmlite"} <= set(found)
    assert found["ray"] == version("ray")


def test_what_such_a_machine_has_and_what_only_the_viewer_needs_stays_here(offline):
    found = offline.needed("nlrl", offline.HAS + offline.VIEWER)
    assert not {"torch", "triton", "sympy", "numpy", "transformers", "streamlit", "altair", "pandas"} & set(found)
    assert {"streamlit", "pandas"} <= set(offline.needed("nlrl", offline.HAS))


def test_parts_make_the_archive_again_and_its_script_links_the_checkout(offline, tmp_path):
    wheels, out = tmp_path / "wheels", tmp_path / "out"
    wheels.mkdir()
    out.mkdir()
    (wheels / "a.whl").write_bytes(bytes(range(256)) * 12_000)
    parts = offline.pack(out, wheels, 1)
    assert [part.name for part in parts] == ["part.00", "part.01", "part.02"]
    assert all(part.stat().st_size <= 1 << 20 for part in parts)
    whole = tmp_path / "whole.tar"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    with tarfile.open(whole) as tar:
        tar.extractall(tmp_path / "there", filter="data")
    assert (tmp_path / "there" / "wheels" / "a.whl").read_bytes() == (wheels / "a.whl").read_bytes()
    script, checkout = (tmp_path / "there" / "install.sh").read_text(), tmp_path / "checkout"
    checkout.mkdir()
    script = "\n".join(line for line in script.splitlines() if "pip install" not in line)
    subprocess.run(["bash", "-c", script, "install.sh", str(tmp_path / "target"), str(checkout)], check=True)
    assert (tmp_path / "target" / "nlrl").resolve() == checkout.resolve()
