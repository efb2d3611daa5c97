"""Opens the viewer in this process's place."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from pathlib import Path

from nlrl.errors import NLRLError

HOST = "127.0.0.1"
"""Runs may hold prompts and answers that are nobody else's business: the viewer answers this machine only."""
ENTRY = Path(__file__).parent / "entry" / "viewer.py"
"""The script that Streamlit runs."""


SAMPLE = Path(__file__).parent / "sample.tar.xz"
"""A small run of Tic-Tac-Toe that comes with the package, without its weights."""


def view(runs_dir: str | Path = "runs", port: int = 8501, sample: bool = False) -> None:
    """Serves the viewer of the runs under `runs_dir` on http://127.0.0.1:`port` until it is stopped; does not return.

    Args:
        sample: put the run that comes with the package there first.

    Raises:
        NLRLError: there is no such folder, or the port is taken.
    """
    if sample:
        add_sample(Path(runs_dir))
    command = command_for(Path(runs_dir), port)
    print(f"Viewer of {runs_dir}: http://{HOST}:{port} (stop it with Ctrl-C)", flush=True)
    os.execv(command[0], command)


def add_sample(runs_dir: Path) -> Path:
    """Unpacks the shipped run to `runs_dir/sample`, unless something is there; returns its folder."""
    run = runs_dir / "sample"
    if not run.exists():
        fresh = run.with_name(f".sample-{os.getpid()}")
        shutil.unpack_archive(SAMPLE, fresh, filter="data")
        fresh.rename(run)
    return run


def command_for(runs_dir: Path, port: int) -> list[str]:
    """The command that `view` becomes."""
    if not runs_dir.is_dir():
        raise NLRLError(f"{runs_dir}: no such folder; name one that holds runs, such as the `out` of a config")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            raise NLRLError(f"port {port} cannot be used ({error}); name another one with --port") from error
    options = {
        "server.address": HOST,
        "server.port": str(port),
        "server.headless": "true",
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "runner.magicEnabled": "false",
    }
    settings = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "streamlit", "run", str(ENTRY), *settings, "--", str(runs_dir.resolve())]
