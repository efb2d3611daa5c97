"""What models, endpoints, web pages and other people's folders say is data: it is not run, not believed as a path, and
not shown as anything but text."""

from __future__ import annotations

import io
import json
import logging
import time
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

import nlrl.backbones
from nlrl.agents.headings import read_sections
from nlrl.agents.language import language_of
from nlrl.agents.metrics.claims import check_claims
from nlrl.agents.metrics.leaks import strip_leaks
from nlrl.backbones import checkpoint
from nlrl.backbones.language_model import Completion, Constraint
from nlrl.backbones.openai_wire import completion, obeyed
from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import canonical_json
from nlrl.orchestration.config import RunConfig, load_config, to_toml, validated
from nlrl.orchestration.frozen import Source
from nlrl.orchestration.logs import setup_logging
from nlrl.orchestration.printable import printable
from nlrl.orchestration.run_folder import verify
from nlrl.orchestration.tables import query
from nlrl.testing import write_run
from nlrl.ui.speakers import Speaker, open_speaker

ESCAPE = "\x1b[2J\x1b]0;title\x07\r\u202e"


# -- checkpoints -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "../outside.safetensors"},
        {"a": "/etc/passwd"},
        {"a": "sub/inside.safetensors"},
        {"a": "..safetensors\u0000"},
        {"a": "pytorch_model.bin"},
        {"a": 3},
        {"a": ["x"]},
        ["a.safetensors"],
        {},
        None,
    ],
)
def test_an_index_names_files_beside_it_and_nothing_else(tmp_path, weight_map):
    (tmp_path / "model").mkdir()
    save_file({"a": torch.zeros(2)}, tmp_path / "outside.safetensors")
    (tmp_path / "model" / checkpoint.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(NLRLError, match=r"index\.json: weight_map must name files"):
        checkpoint.read_tensors(tmp_path / "model")


def test_shards_beside_their_index_are_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00001.safetensors")
    (tmp_path / checkpoint.INDEX).write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    assert checkpoint.read_tensors(tmp_path)[0]["a"].tolist() == [1, 1]


@pytest.mark.parametrize("size", [1, 7, 10**6, 10**9, 2**63, 2**64 - 1])
def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path, size):
    (tmp_path / "model.safetensors").write_bytes(size.to_bytes(8, "little") + b'{"a":{}}')
    with pytest.raises(NLRLError, match="torn or no safetensors file"):
        checkpoint.read_tensors(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a": ' + "9" * 10_000 + "}", "\xff", "[]", ""])
def test_json_that_is_too_deep_too_long_or_none_is_refused(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(NLRLError, match=r"config\.json"):
        nlrl.backbones.load(tmp_path)


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "a = " + "9" * 10_000, "a = '\xff'"])
def test_toml_that_is_too_deep_too_long_or_none_is_refused(tmp_path, text):
    (tmp_path / "config.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(NLRLError, match="is not valid TOML"):
        load_config(tmp_path / "config.toml")


# -- run folders -------------------------------------------------------------------------------------------------------
def test_a_manifest_names_no_file_outside_its_stage(tmp_path):
    run = write_run(tmp_path / "run", records={"001/rollout": [{"kind": "game"}]})
    manifest = run / "iterations/001/rollout/manifest.json"
    said = json.loads(manifest.read_text())
    for name in ("../../../config.toml", "/etc/hostname", "a\0b", "", "x" * 300):
        manifest.write_bytes(canonical_json(said | {"files": {name: {"bytes": 1}}}))
        (problem,) = verify(run)
        assert "manifest.json: names " in problem or "manifest.json: damaged" in problem


def test_a_config_is_written_so_that_it_reads_back_whatever_it_says(tmp_path):
    odd = 'tab\tquote" \\ bell\x07 null\x00 del\x7f\nline\u2028'
    config = validated(RunConfig, {"name": odd, "game": {"params": {odd: [{odd: odd, "b": [1]}]}}}, "test")
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8", newline="")
    assert load_config(tmp_path / "config.toml") == config


def test_a_folders_name_is_no_sql(tmp_path):
    name = 'rollout" AS SELECT 1; CREATE TABLE "x'
    run = write_run(tmp_path / "run", records={"001/rollout": [{"kind": "game"}]})
    (run / "iterations/001/rollout").rename(run / "iterations/001" / name)
    assert query(f"SELECT 1 AS one -- {name}", run)["one"][0].as_py() == 1
    with pytest.raises(NLRLError, match="x does not exist"):
        query(f"SELECT * FROM x -- {name}", run)


def test_a_query_reads_no_file(tmp_path):
    run = write_run(tmp_path / "run", records={"001/rollout": [{"kind": "game"}]})
    for sql in (
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/hostname'",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "SET enable_external_access = true; SELECT * FROM read_text('/etc/hostname')",
    ):
        with pytest.raises(NLRLError):
            query(sql, run)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('kind = "scripted"\nname = "antigravity"', "module 'antigravity' imported"),
        ('kind = "openai"\nbase_url = "http://evil.test/v1"\napi_key_env = "HOME"', "key in HOME sent to http://evil"),
    ],
)
def test_the_viewer_neither_imports_what_a_run_names_nor_sends_it_a_key(tmp_path, monkeypatch, model, message):
    monkeypatch.delenv("NLRL_VIEW_ENDPOINTS", raising=False)
    run = write_run(tmp_path / "run", config=f'name = "theirs"\n[model]\n{model}\n')
    (run / "agent").mkdir()
    with pytest.raises(NLRLError, match=message):
        open_speaker(Speaker("theirs", Source(str(run))))


# -- texts -------------------------------------------------------------------------------------------------------------
def test_halves_of_characters_in_an_answer_can_be_recorded():
    answer = completion(json.loads('{"model": "\\udfff", "choices": [{"text": "a\\ud83d"}]}'), "m")
    assert (answer.text, answer.weight_version) == ("a?", "?")


@pytest.mark.parametrize("text", ["a" * 60 + "!", "a" * 60])
def test_a_pattern_that_takes_for_ever_is_given_up(text):
    began = time.monotonic()
    kept = obeyed(Completion(text=text, finish_reason="stop", weight_version="m"), Constraint("regex", "((a|aa)*)*c"))
    assert kept.finish_reason == "error"
    assert time.monotonic() - began < 5


def claims(text: str) -> None:
    game = make("breakthrough", rows=5, columns=5)
    language_of(game)  # it knows the game's claims
    check_claims(text, game, game.initial_states()[0])


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_sections, "\n" * 30_000),
        (read_sections, "1. " * 10_000),
        (strip_leaks, "won 5 of 8 games " * 600 + "\nbest_move: 5"),
        (claims, "\n" * 8000),
        (claims, "*" * 8000),
    ],
)
def test_long_texts_are_read_in_time(read, text):
    began = time.process_time()
    read(text)
    assert time.process_time() - began < 2


def test_control_characters_reach_no_terminal(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    setup_logging()
    logging.getLogger("nlrl.test").warning("the endpoint said %s", ESCAPE)
    assert not set(said.getvalue()) & set(ESCAPE) - set("[2J]0;title")
    assert r"\x1b[2J\x1b]0;title\x07\r\u202e" in said.getvalue()
    assert printable("two\nlines\tand \u00fcml\u00e4uts") == "two\nlines\tand \u00fcml\u00e4uts"


# -- web pages ---------------------------------------------------------------------------------------------------------
class Silent:
    """As much of an engine as a list of models needs."""

    name, context, max_queue = "tiny", 64, 1

    @property
    def tokenizer(self):
        from nlrl.backbones.plain_tokenizer import read_plain_tokenizer
        from nlrl.backbones.registry import BUNDLED

        return read_plain_tokenizer(BUNDLED / "transformer-base")

    def weight_versions(self) -> dict[str, str]:
        return {"default": "v1"}

    def metrics(self) -> dict[str, float]:
        return {}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8000", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.test:8000"}, 403),
        ({"Host": "127.0.0.1.evil.test"}, 403),
        ({"Host": "127.0.0.1", "Origin": "https://evil.test"}, 403),
        ({"Host": "127.0.0.1", "Origin": "null"}, 403),
        ({"Host": ""}, 403),
    ],
)
def test_a_server_without_a_key_is_not_spoken_to_through_a_web_page(headers, status):
    import asyncio

    from nlrl.backbones.engine.server.app import create_app

    async def asked(local: bool) -> int:
        transport = httpx.ASGITransport(app=create_app(Silent(), local=local))  # pyright: ignore[reportArgumentType]
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return (await client.get("/v1/models", headers=headers)).status_code

    assert asyncio.run(asked(local=True)) == status
    assert asyncio.run(asked(local=False)) == 200


def test_no_code_of_ours_renders_raw_or_evaluates():
    """The places that could are few; a new one has to be looked at and listed here."""
    root = Path(nlrl.__file__).parent
    rooms = ("agents", "backbones", "envs", "kernels", "orchestration", "ui")
    words = ("unsafe_allow_html", "trust_remote_code=True", "shell=True", "weights_only=False", "os.system(")
    found = [
        (str(path.relative_to(root)), word)
        for room in rooms
        for path in (root / room).rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
