"""A key is planted in the environment, and endpoints do their worst to have it written down: nothing that a run leaves
behind, and nothing that it prints, has it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from urllib.parse import quote

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, load_config, validated

KEY = "sk-planted-7f3a/91c0+zz"
FORMS = (KEY, quote(KEY, safe=""), json.dumps(KEY)[1:-1], KEY[3:])
LOUD = "import logging, sys; logging.basicConfig(level=logging.DEBUG); "
PROGRAM = "from nlrl.orchestration.cli import run_cli; sys.exit(run_cli(sys.argv[1:]))"


def answer(text: str) -> dict:
    return {"model": f"tiny {KEY}", "system_fingerprint": KEY, "choices": [{"message": {"content": text}}]}


TROUBLE = (
    (500, {"error": {"message": f"upstream said: bad key {KEY}"}}),
    (429, {"error": {"message": f"key {KEY} is too busy", "code": KEY}}),
    (400, {"error": {"message": f"Authorization: Bearer {KEY} may not ask that", "type": KEY}}),
    (200, f"not JSON, but {KEY}"),
    (200, {"choices": [KEY]}),
    (200, answer(f"Your key is {KEY}. best_move: 5")),
    (400, {"error": {"message": f"unknown field seed for {KEY}", "param": "seed"}}),
)


class Endpoint:
    """Sends the key back in every way it can, and a move in between."""

    def __init__(self, fatal: int = 0):
        numbers = count()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(200, {"data": [{"id": f"other {KEY}"}]})

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Authorization"] == f"Bearer {KEY}"
                number = next(numbers)
                if fatal and number >= 6:
                    self._send(fatal, {"error": {"message": f"Incorrect API key {KEY}", "code": f"model {KEY}"}})
                elif number % 2:
                    self._send(*TROUBLE[number // 2 % len(TROUBLE)])
                else:
                    self._send(200, answer(f"best_move: {number // 2 % 9 + 1}"))

            def _send(self, status: int, body: object) -> None:
                data = (body if isinstance(body, str) else json.dumps(body)).encode()
                self.send_response(status)
                for name, value in (("Content-Length", str(len(data))), ("Content-Type", "application/json")):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """Short, for Ray's sockets are in it."""
    folder = Path(tempfile.mkdtemp(prefix="nk-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(config: Path, ray_folder: Path, loud: bool) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"TEACHER_KEY": KEY, "NO_PROXY": "127.0.0.1", "RAY_TMPDIR": str(ray_folder)}
    if loud:
        environment |= {"OPENAI_LOG": "debug", "RAY_BACKEND_LOG_LEVEL": "debug"}
    code = (LOUD if loud else "import sys; ") + PROGRAM
    command = [sys.executable, "-c", code, "run", str(config)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def write_config(folder: Path, url: str, cluster: str) -> Path:
    path = folder / "config.toml"
    path.write_text(f"""
name = "planted"
method = "prompted"
out = "{folder / "run"}"
iterations = 1
[model]
kind = "openai"
name = "tiny"
base_url = "{url}"
api_key_env = "TEACHER_KEY"
options = {{ max_retries = 3, retry_delay = 0.001, timeout = 5, max_concurrency = 2 }}
[evaluation]
games = 6
exact_states = 0
opponents = ["random"]
[rollout]
games = 4
workers = 1
samples_per_state = 1
[cluster]
kind = "{cluster}"
""")
    return path


def places_of_the_key(*folders: Path) -> list[str]:
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [str(path) for path in files if any(form.encode() in path.read_bytes() for form in FORMS)]


@pytest.mark.parametrize("loud", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_run_writes_and_prints_no_key(tmp_path, ray_folder, loud):
    endpoint = Endpoint()
    try:
        done = run(write_config(tmp_path, endpoint.url, "inline"), ray_folder, loud)
    finally:
        endpoint.close()
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    assert not any(form in done.stdout + done.stderr for form in FORMS)
    assert places_of_the_key(tmp_path / "run") == []
    assert any(b"***" in path.read_bytes() for path in (tmp_path / "run").rglob("records.jsonl")), "it was answered"


@pytest.mark.parametrize("fatal", [401, 404])
def test_a_run_that_fails_says_so_without_the_key(tmp_path, ray_folder, fatal):
    endpoint = Endpoint(fatal)
    try:
        done = run(write_config(tmp_path, endpoint.url, "inline"), ray_folder, loud=True)
    finally:
        endpoint.close()
    assert done.returncode == 2
    assert "TEACHER_KEY" in done.stderr if fatal == 401 else "has no model" in done.stderr
    assert not any(form in done.stdout + done.stderr for form in FORMS)
    assert places_of_the_key(tmp_path / "run") == []


def test_neither_ray_nor_its_logs_keep_the_key(tmp_path, ray_folder):
    endpoint = Endpoint(fatal=401)
    try:
        done = run(write_config(tmp_path, endpoint.url, "ray"), ray_folder, loud=True)
    finally:
        endpoint.close()
    assert done.returncode == 2, done.stderr[-3000:]
    assert not any(form in done.stdout + done.stderr for form in FORMS)
    assert any(ray_folder.rglob("*.log")), "Ray's session is where it was told to be"
    assert places_of_the_key(tmp_path / "run", ray_folder) == []


@pytest.mark.parametrize(
    ("model", "field"),
    [
        ({"options": {"api_key": KEY}}, "options.api_key"),
        ({"options": {"extra_body": {"deep": [{"Authorization": KEY}]}}}, "options.extra_body.deep.Authorization"),
        ({"options": {"hfToken": KEY}}, "options.hfToken"),
        ({"api_key": KEY}, "model.api_key"),
        ({"api_key_env": KEY}, "model.api_key_env"),
        ({"kind": "openai", "base_url": f"http://me:{KEY}@h/v1"}, "model.base_url"),
        ({"kind": "openai", "base_url": f"http://h/v1?api-key={KEY}"}, "model.base_url"),
    ],
)
def test_a_config_with_a_key_is_refused_by_the_name_of_its_field(model, field):
    with pytest.raises(NLRLError, match=field.replace(".", r"\.")) as refused:
        validated(RunConfig, {"model": model}, "config.toml")
    assert KEY not in str(refused.value)


def test_a_refused_config_leaves_no_folder(tmp_path, ray_folder):
    path = write_config(tmp_path, "http://127.0.0.1:9/v1", "inline")
    path.write_text(path.read_text().replace("max_retries = 3", f'api_key = "{KEY}"'))
    with pytest.raises(NLRLError, match="api_key_env"):
        load_config(path)
    done = run(path, ray_folder, loud=False)
    assert (done.returncode, KEY in done.stderr, (tmp_path / "run").exists()) == (2, False, False)


def test_options_that_only_sound_alike_stay():
    fine = {"max_tokens": 5, "budget_tokens": 9, "stop_token": "x", "extra_body": {"token": "", "keyboard": "a"}}
    assert validated(RunConfig, {"model": {"options": fine}}, "a").model.options == fine
