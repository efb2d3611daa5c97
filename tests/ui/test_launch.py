from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.run_folder import verify
from nlrl.testing import write_run
from nlrl.ui.launch import add_sample, command_for, view


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_viewer_really_serves_on_this_machine_only(tmp_path):
    write_run(tmp_path / "run")
    port = free_port()
    code = f"from nlrl.ui.launch import view; view({str(tmp_path)!r}, {port})"
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    try:
        assert answer(f"http://127.0.0.1:{port}/_stcore/health", server) == b"ok", (tmp_path / "log").read_text()
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
        server.wait()
    assert "--server.address=127.0.0.1" in command_for(tmp_path, port)


def answer(url: str, server: subprocess.Popen[bytes]) -> bytes:
    for _ in range(300):
        try:
            return urllib.request.urlopen(url, timeout=5).read()
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    return b""


def test_a_missing_folder_is_refused():
    with pytest.raises(NLRLError, match="no such folder"):
        view("no/such/runs")


def test_a_taken_port_is_refused_by_number(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(NLRLError, match=rf"port {port} cannot be used.*--port"):
            command_for(tmp_path, port)
    with pytest.raises(NLRLError, match="port 70000"):
        command_for(tmp_path, 70000)


def test_the_sample_is_a_whole_run_and_is_copied_once(tmp_path):
    run = add_sample(tmp_path)
    assert all(re.search("(critic|actor), from before it, is not$", problem) for problem in verify(run)), "no networks"
    (run / "metrics.jsonl").write_text("mine now\n")
    assert add_sample(tmp_path) == run
    assert (run / "metrics.jsonl").read_text() == "mine now\n"
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
