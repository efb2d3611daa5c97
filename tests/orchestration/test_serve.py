"""`nlrl serve`: what it refuses before anything is loaded, and one real server from start to stop."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from openai import AuthenticationError, OpenAI

from nlrl.errors import NLRLError
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.serve import ServeSettings, check_exposure, is_loopback, listening, open_engine, weight_sets


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("NLRL_API_KEY", raising=False)


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_this_machine_needs_no_key(host):
    assert is_loopback(host)
    check_exposure(host, "", False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_machines_need_a_key_or_leave(host, capsys):
    assert run_cli(["serve", "--model", "transformer-base", "--host", host, "--port", "0"]) == 2
    assert "NLRL_API_KEY" in capsys.readouterr().err
    check_exposure(host, "key", False)
    check_exposure(host, "", True)


@pytest.mark.parametrize("text", ["critic", "=x", "critic=", "critic=/no/such/folder", "default=."])
def test_weight_sets_are_names_and_folders(text):
    with pytest.raises(NLRLError, match="--weights"):
        weight_sets([text])


def test_a_name_stands_for_one_weight_set(tmp_path):
    assert weight_sets([f"a={tmp_path}", f"b={tmp_path}"]) == {"a": tmp_path, "b": tmp_path}
    with pytest.raises(NLRLError, match="name of its own"):
        weight_sets([f"a={tmp_path}", f"a={tmp_path}"])


def test_a_weight_set_is_not_called_like_the_model():
    settings = ServeSettings(model="transformer-base", name="actor")
    with pytest.raises(NLRLError, match="the model itself is called actor"):
        open_engine(settings, {"actor": Path(".")})


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(NLRLError, match="--port"):
        listening("127.0.0.1", taken.getsockname()[1])


def test_weights_of_another_architecture_are_refused(tmp_path):
    settings = ServeSettings(model="transformer-base", device="cpu", max_rows=2, memory_gb=0.05)
    with pytest.raises(NLRLError, match="load_weights"):
        open_engine(settings, {"other": _bundled("diff-transformer-base")})


# -- a real server -----------------------------------------------------------------------------------------------------
def _bundled(name: str) -> Path:
    from nlrl.backbones.registry import BUNDLED

    return BUNDLED / name


def test_a_bundled_model_is_served_until_the_process_is_told_to_stop(monkeypatch):
    monkeypatch.setenv("NLRL_API_KEY", "secret")
    command = [Path(sys.executable).with_name("nlrl"), "serve", "--model", "transformer-base", "--port", "0"]
    command += ["--weights", f"critic={_bundled('transformer-base')}", "--device", "cpu", "--memory-gb", "0.1"]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        ready = server.stdout.readline()
        assert "transformer-base, critic at http://127.0.0.1:" in ready
        url = next(word for word in ready.split() if word.startswith("http"))
        with pytest.raises(AuthenticationError):
            OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
        client = OpenAI(base_url=url, api_key="secret", max_retries=0)
        chat = [{"role": "user", "content": "Which move?"}]
        said = {
            client.chat.completions.create(model=model, messages=chat, max_tokens=8, temperature=0)
            .choices[0]
            .message.content  # pyright: ignore
            for model in ("transformer-base", "critic")
        }
        assert len(said) == 1
        assert said.pop()
        server.send_signal(signal.SIGTERM)
        out, err = server.communicate(timeout=20)
        assert (server.returncode, out, err) == (0, "nlrl: the server has stopped\n", "")
    finally:
        server.kill()
        server.communicate()
