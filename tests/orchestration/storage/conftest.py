"""Stores for tests: a folder, memory, and an S3 server on this machine's loopback."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}
_numbers = itertools.count()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of a bucket in an S3 server; the environment says where it is, to child processes, too."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'nlrl[s3]'")
    server_module = pytest.importorskip("moto.server", reason="no S3 server: pip install 'moto[s3]' flask flask-cors")
    import fsspec

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    os.environ.update(KEYS, AWS_ENDPOINT_URL=f"http://{host}:{port}")
    try:
        fsspec.filesystem("s3").mkdir("runs")
        yield "s3://runs"
    finally:
        for name in (*KEYS, "AWS_ENDPOINT_URL"):
            os.environ.pop(name) if name not in before else os.environ.update({name: before[name]})
        server.stop()


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a run may lie, in each kind of store."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/run-{next(_numbers)}"
    return f"file://{tmp_path}/store/run" if request.param == "file" else f"memory://runs/run-{next(_numbers)}"


@pytest.fixture(params=["file", "s3"])
def far_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same in the two that other processes reach."""
    return (
        f"{request.getfixturevalue('s3')}/run-{next(_numbers)}" if request.param == "s3" else f"file://{tmp_path}/run"
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """`cache("b")`: from now on this process is on another machine, as far as local copies go."""

    def use(machine: str) -> Path:
        folder = tmp_path / f"machine-{machine}"
        monkeypatch.setenv("NLRL_CACHE", str(folder))
        return folder

    use("a")
    return use
