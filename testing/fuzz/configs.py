"""Configs, as files and on the command line, and the addresses of the viewer."""

from __future__ import annotations

import tomllib
from pathlib import Path
from urllib.parse import parse_qs

import nlrl
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, load_config, to_toml, validated
from nlrl.orchestration.overrides import overridden
from nlrl.orchestration.pretrain import load_pretrain_config
from nlrl.testing.fuzz import holds, target
from nlrl.testing.fuzz.folders import file_with
from nlrl.testing.fuzz.texts import text_of
from nlrl.ui.links import params_of, place_of

_CONFIG = b"""name = "a"
method = "gpi"
max_minutes = 1.5
[game]
name = "breakthrough"
params = { rows = 5, columns = 5, deep = [[1, "x"], { a = -1e-3 }], when = 2026-01-01 }
[model]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1"
options = { timeout = 3, extra_body = { top = "\\u0007\\n" } }

[rollout]
opponents = ["random", "epsilon(0.25,minimax)"]
"""
_ARGUMENTS = (b"--seed\0003", b"--game.name\0maze\0--rollout.opponents\0random\0self", b"--model.tuning.rank\0004")
_ADDRESSES = (b"run=a/b&stage=003/rollout&game=abc&ply=3", b"run=..%2f..&ply=99999999999&ply=\xd9\xa3&run=%00")


@target("config files", lambda: [_CONFIG], NLRLError)
def config_files(data: bytes) -> None:
    """A config that is accepted is written so that it reads back equal: the run it makes can be resumed."""
    config = load_config(file_with(data, "config.toml"))
    again = validated(RunConfig, tomllib.loads(to_toml(config)), "again")
    holds(
        again.model_dump(mode="json") == config.model_dump(mode="json"),
        "the config that is written differs from the one that was read",
    )


def _pretraining() -> list[bytes]:
    return [path.read_bytes() for path in sorted((Path(nlrl.__file__).parent / "configs" / "pretrain").glob("*.toml"))]


@target("pretraining configs", _pretraining, NLRLError)
def pretraining_configs(data: bytes) -> None:
    load_pretrain_config(file_with(data, "pretrain.toml"))


@target("overrides", lambda: list(_ARGUMENTS), (NLRLError, SystemExit), slow=True)
def overrides(data: bytes) -> None:
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        overridden(RunConfig(), text_of(data).split("\0")[:8])


@target("addresses", lambda: list(_ADDRESSES))
def addresses(data: bytes) -> None:
    try:
        given = parse_qs(text_of(data), keep_blank_values=True)
    except ValueError:  # more fields than the library takes
        return
    place = place_of({name: values[-1] for name, values in given.items()})
    holds(place_of(params_of(place)) == place, f"{place} is not where its own address leads")
