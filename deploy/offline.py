"""Wheels for a GPU machine that reaches no registry, in files small enough to carry.

    .venv/bin/python deploy/offline.py OUT                       what `nlrl run` and `nlrl bench` need beside torch
    .venv/bin/python deploy/offline.py OUT --peers               what `nlrl bench kernels --peers` compares with
    .venv/bin/python deploy/offline.py OUT --python 3.11 --part-mb 50

Run it where this project is installed and a registry is reached. There, with all parts in one folder:

    cat part.* | tar x && bash install.sh TARGET && export PYTHONPATH=TARGET

Versions are those installed here. Left out are the packages that a machine with PyTorch for CUDA and transformers has
(`HAS`), and what only the viewer needs. The package itself is the checkout, under the name `nlrl`: install.sh links it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

HAS = ("torch", "triton", "numpy", "transformers", "tokenizers", "safetensors", "huggingface-hub", "setuptools", "pip")
VIEWER = ("streamlit", "altair", "vl-convert-python")
PEERS = ("fla-core", "flash-linear-attention", "liger-kernel", "gemlite")
INSTALL = """set -euo pipefail
target=$(realpath -m "$1"); mkdir -p "$target"
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$target" wheels/*.whl
if [ -e "${2:-}" ]; then ln -sfn "$(realpath "$2")" "$target/nlrl"; fi
"""
"""Its second argument, if there is one, is the checkout."""
MANYLINUX = ("2_5", "2_12", "2_17", "2_24", "2_27", "2_28", "2_31", "2_34", "2_35")


def plain(name: str) -> str:
    """A package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(root: str, without: Iterable[str]) -> dict[str, str]:
    """All that an installed package needs, itself left out: name -> version. What `without` names, and what only that
    needs, is left out."""
    found, waiting, known = dict[str, str](), [(root, frozenset[str]())], {plain(name) for name in without}
    while waiting:
        name, extras = waiting.pop()
        for line in distribution(name).requires or ():
            requirement = Requirement(line)
            wanted = plain(requirement.name)
            asked = [{"extra": extra} for extra in extras] or [{"extra": ""}]
            if requirement.marker and not any(requirement.marker.evaluate(one) for one in asked):
                continue
            if wanted in known:
                continue
            try:
                found[wanted] = distribution(wanted).version
            except PackageNotFoundError:
                continue
            known.add(wanted)
            waiting.append((wanted, frozenset(requirement.extras)))
    return found


def download(wheels: Path, packages: Iterable[str], python: str) -> None:
    """Fetches wheels for x86-64 Linux without what they need."""
    platforms = [f"manylinux_{version}_x86_64" for version in MANYLINUX]
    platforms += [f"manylinux{year}_x86_64" for year in ("1", "2010", "2014")]
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:", "--no-deps", "-d", str(wheels)]
    command += ["--python-version", python, "--implementation", "cp"]
    command += [word for platform in platforms for word in ("--platform", platform)]
    subprocess.run([*command, *packages], check=True)


def pack(out: Path, wheels: Path, part_mb: int) -> list[Path]:
    """The wheels and install.sh as one archive in parts: `part.00`, `part.01`, ..."""
    (out / "install.sh").write_text(INSTALL)
    archive = out / "all.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(out / "install.sh", "install.sh")
        tar.add(wheels, "wheels")
    parts = []
    with archive.open("rb") as file:
        while piece := file.read(part_mb << 20):
            parts.append(out / f"part.{len(parts):02}")
            parts[-1].write_bytes(piece)
    archive.unlink()
    return parts


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--python", default="3.12")
    parser.add_argument("--part-mb", type=int, default=50)
    args = parser.parse_args()
    wheels = args.out / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in args.out.glob("part.*"):
        old.unlink()
    if args.peers:  # no compiled code in them, but not all are published as wheels
        subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(wheels), *PEERS], check=True)
    else:
        found = needed("nlrl", HAS + VIEWER)
        download(wheels, [f"{name}=={version}" for name, version in found.items()], args.python)
    for part in pack(args.out, wheels, args.part_mb):
        print(f"{part}  {part.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
