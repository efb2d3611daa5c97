"""`nlrl serve`: an engine behind an OpenAI-compatible server, until it is told to stop."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from nlrl.backbones.engine import Engine

KEY_VARIABLE = "NLRL_API_KEY"
PATIENCE = 30
"""Seconds that answers under way have when the server is told to stop."""
KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than clients keep theirs, so that none is cut as it is used."""


class ServeSettings(BaseModel):
    """What is served, to whom, and with how much memory. `nlrl serve --help` says what each field means. The key that
    clients must send is in the environment (`KEY_VARIABLE`), where no list of processes shows it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    weights: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    allow_anonymous: bool = False
    device: str = "auto"
    dtype: str = "auto"
    max_rows: int | None = None
    memory_gb: float | None = None
    max_queue: int = 65_536
    max_request_mb: float = 8.0


def serve(settings: ServeSettings) -> None:
    """Serves until SIGINT or SIGTERM; then finishes what is under way and returns.

    Raises:
        NLRLError: the server would be open to anybody, the port is taken, a package is missing, or a model cannot be
            loaded.
    """
    _check_installed()
    key = os.environ.get(KEY_VARIABLE, "")
    check_exposure(settings.host, key, settings.allow_anonymous)
    sets = weight_sets(settings.weights)
    listener = listening(settings.host, settings.port)
    with listener, _stopped_by_sigterm(), open_engine(settings, sets) as engine:
        _say_ready(engine, listener)
        local = is_loopback(settings.host) and not key
        _run(engine, listener, key, round(settings.max_request_mb * 2**20), local)


def check_exposure(host: str, key: str, allow_anonymous: bool) -> None:
    """Raises NLRLError if other machines could use the server without a key."""
    if not (is_loopback(host) or key or allow_anonymous):
        raise NLRLError(
            f"--host {host} lets other machines in: set a key in the environment variable {KEY_VARIABLE}, or say "
            "--allow-anonymous if everybody who reaches this address may use the model"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def weight_sets(given: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` as a table.

    Raises:
        NLRLError: one has no name, a name that is taken, or no such folder.
    """
    sets: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not (name and equals and folder) or name == "default" or name in sets:
            raise NLRLError(f"--weights {text}: write NAME=FOLDER, with a name of its own (not `default`) for each")
        if not Path(folder).is_dir():
            raise NLRLError(f"--weights {text}: there is no folder {folder}")
        sets[name] = Path(folder)
    return sets


def listening(host: str, port: int) -> socket.socket:
    """A socket that clients can already connect to; they wait while the model is loaded.

    Raises:
        NLRLError: the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise NLRLError(f"{host}:{port} cannot be used ({error}); name another with --host and --port") from error


def open_engine(settings: ServeSettings, sets: dict[str, Path]) -> Engine:
    """The engine with all its weight sets.

    Raises:
        NLRLError: a model cannot be loaded, or the weight sets are not of one architecture.
    """
    import torch

    from nlrl.backbones.engine import Engine
    from nlrl.backbones.loading import load_network
    from nlrl.orchestration.models import resolve_device

    own = Path(settings.model).name
    name = settings.name or own
    if name in sets:
        raise NLRLError(f"--weights {name}={sets[name]}: the model itself is called {name}; take another name")
    device = resolve_device(settings.device)
    dtype = settings.dtype if settings.dtype != "auto" else ("bfloat16" if device.startswith("cuda") else "float32")
    model, tokenizer = load_network(settings.model, device=device, dtype=torch.float32)
    engine = Engine(
        model,
        tokenizer,
        name=name,
        max_rows=settings.max_rows,
        memory_bytes=round(settings.memory_gb * 2**30) if settings.memory_gb else None,
        max_queue=settings.max_queue,
        dtype=getattr(torch, dtype),
        weight_version=own,
    )
    try:
        for other, folder in sets.items():
            engine.load_weights(load_network(folder)[0].state_dict(), version=folder.name, name=other)
    except BaseException:
        engine.close()
        raise
    return engine


def _run(engine: Engine, listener: socket.socket, key: str, max_request_bytes: int, local: bool) -> None:
    import uvicorn

    from nlrl.backbones.engine.server.app import create_app

    app = create_app(engine, api_key=key, max_request_bytes=max_request_bytes, local=local)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=PATIENCE
    )
    with suppress(KeyboardInterrupt):  # uvicorn has stopped in good order, and mostly passes on the signal
        uvicorn.Server(config).run(sockets=[listener])
    print("nlrl: the server has stopped", flush=True)


def _say_ready(engine: Engine, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    names = [engine.name if name == "default" else name for name in engine.weight_versions()]
    print(f"nlrl: serving {', '.join(names)} at http://{address}/v1 (stop it with Ctrl-C)", flush=True)


class _stopped_by_sigterm:
    """SIGTERM stops like Ctrl-C within the block, so that the engine is closed either way."""

    def __enter__(self) -> None:
        self._before = signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))

    def __exit__(self, *exception: object) -> None:
        signal.signal(signal.SIGTERM, self._before)


def _check_installed() -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise NLRLError(f"nlrl serve needs {', '.join(missing)}: pip install 'nlrl[serve]'")
