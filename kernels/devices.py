"""What was measured on each device: `devices/<name>.json`, one file per kind of GPU.

    {"gpu": "NVIDIA H100 80GB HBM3", "versions": "...",
     "ops": {"swiglu": {"provider": "nlrl", "relative": {"nlrl": 1.0, "torch": 2.4}, "launch": {...}}}}

`provider` is the fastest one that can take the op's place, `relative` the mean time of each over ours, `forward` the
fastest one for calls without gradients where that is another, `launch` launch configurations, where a kernel has some
that differ by device. `nlrl bench kernels --record` writes it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "devices"


def current() -> str:
    """Name of this process's GPU, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def file_of(device: str) -> Path:
    """Where the table of a device lies: `nvidia_h100_80gb_hbm3.json`."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '_', device.lower()).strip('_')}.json"


def read(device: str) -> dict[str, Any]:
    """The table of a device; empty if nothing is recorded.

    Raises:
        ValueError: the file is no such table.
    """
    return _read(file_of(device))


@cache
def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        table = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(table, dict) or not isinstance(table.get("ops", {}), dict):
        raise ValueError(f'{file} should hold {{"gpu": ..., "ops": {{op: {{"provider": ...}}}}}}')
    return table


def launch(op: str, default: dict[str, Any], device: str | None = None) -> dict[str, Any]:
    """An op's launch configuration: the recorded one of a device over the default."""
    table = read(current() if device is None else device)
    return default | table.get("ops", {}).get(op, {}).get("launch", {})


def write(device: str, versions: str, found: dict[str, dict[str, Any]]) -> Path:
    """Puts what was found into the device's table; other ops, and launch configurations, stay. Returns the file."""
    file = file_of(device)
    ops = dict(read(device).get("ops", {}))
    for op, entry in found.items():
        kept = {name: value for name, value in ops.get(op, {}).items() if name != "forward" or "provider" not in entry}
        ops[op] = kept | entry
    file.parent.mkdir(parents=True, exist_ok=True)
    table = {"gpu": device, "versions": versions, "ops": dict(sorted(ops.items()))}
    file.write_text(json.dumps(table, indent=1) + "\n")
    _read.cache_clear()
    return file
