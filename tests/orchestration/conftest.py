"""Small runs of the rule-following model: whole iterations in seconds, in this process unless a test says otherwise."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nlrl.orchestration.budget import LEDGER_FILE
from nlrl.orchestration.config import RunConfig, to_toml, validated
from nlrl.orchestration.loop import run
from nlrl.orchestration.records import SHARDS_FOLDER
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import Session, open_session
from nlrl.orchestration.stage_folder import Stage
from nlrl.testing.by_rules import LookupTrainer, RuleModel

SMALL: dict[str, Any] = {
    "name": "small",
    "iterations": 2,
    "trackers": [],
    "model": {"kind": "scripted", "name": "nlrl.testing.by_rules"},
    "rollout": {"games": 16, "samples_per_state": 2, "samples_at_start": 4},
    "targets": {"texts_min": 1, "texts_max": 2, "continuations": 4},
    "evaluation": {"games": 4, "opponents": ["random", "minimax"], "value_states": 5, "probes": ["1 5 9"]},
    "cluster": {"kind": "inline", "threads": 1},
}
"""Everything a run has, as little of it as possible."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the fields of `changes`, table by table."""
    out = dict(base)
    for key, value in changes.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, Mapping) else value
    return out


@pytest.fixture(scope="session")
def small_config() -> Callable[..., RunConfig]:
    """`small_config(out, rollout={"games": 8})`."""

    def make(out: Path, **changes: Any) -> RunConfig:
        return validated(RunConfig, merged(merged(SMALL, {"out": str(out)}), changes), "test")

    return make


@pytest.fixture
def config_file(tmp_path: Path, small_config: Callable[..., RunConfig]) -> Callable[..., Path]:
    """Writes a small run's config for the command line; its run lies in `tmp_path / "run"`."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(to_toml(small_config(tmp_path / "run", **changes)))
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_config: Callable[..., RunConfig]) -> Path:
    """The folder of an uninterrupted small run. Read only. Beside it, `ledgers`: what each stage's ledger held when it
    was committed, at `ledgers/iterations/001/rollout/spent.ledger`."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stage, "commit", keeping_ledgers(place))
        return run(small_config(place / "run")).path


def keeping_ledgers(place: Path) -> Callable[..., Any]:
    """`Stage.commit` of a run at `place / "run"`, which copies the ledger aside."""
    commit = Stage.commit

    def watched(stage: Stage, *args: Any) -> dict[str, Any]:
        kept = place / "ledgers" / stage.dir.relative_to(place / "run")
        kept.mkdir(parents=True)
        shutil.copy(stage.dir / SHARDS_FOLDER / LEDGER_FILE, kept)
        return commit(stage, *args)

    return watched


@pytest.fixture
def session(tmp_path: Path, small_config: Callable[..., RunConfig]) -> Iterator[Callable[..., Session]]:
    """Opens a small run without running it: `session(targets={"kind": "td"})`; stages are called by the test."""
    opened: list[Session] = []

    def make(**changes: Any) -> Session:
        config = small_config(tmp_path / f"session-{len(opened)}", **changes)
        folder = RunFolder.open(config.out, config.model_dump(mode="json", exclude_none=True), to_toml(config))
        opened.append(open_session(config, folder))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


class WatchedModel(RuleModel):
    """A rule-following model that keeps what it was asked, with the weights that were to answer."""

    def __init__(self, log: list[tuple[str, list[Any]]]):
        super().__init__()
        self._log = log

    def generate(self, requests):
        self._log.append((self.weight_version, list(requests)))
        return super().generate(requests)


class WatchedTrainer(LookupTrainer):
    """A trainer that keeps what it was given."""

    def __init__(self, fits: list[SimpleNamespace]):
        super().__init__()
        self._fits = fits

    def fit(self, network, examples, settings):
        self._fits.append(SimpleNamespace(network=network, examples=list(examples), settings=settings))
        return super().fit(network, examples, settings)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A model and a trainer that say what they were asked: `session(model=watched.config)`.

    `calls`: (weight version, requests) of each call of the model. `fits`: network, examples, settings of each training.
    Set `wrap` to spoil the model: a function from model to model.
    """
    watched = SimpleNamespace(calls=[], fits=[], wrap=lambda model: model)
    watched.config = {"kind": "scripted", "name": "watched_model"}
    module: Any = ModuleType("watched_model")
    module.make_model = lambda: watched.wrap(WatchedModel(watched.calls))
    module.make_trainer = lambda: WatchedTrainer(watched.fits)
    monkeypatch.setitem(sys.modules, "watched_model", module)
    return watched


def committed_files(folder: Path) -> dict[str, bytes]:
    """What a run's result is: manifests (which hold the hash of every record and weight), diary, agent."""
    paths = [*folder.glob("iterations/*/*/manifest.json"), folder / "evaluations.md", *folder.glob("agent/*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if path.is_file()}


@pytest.fixture(scope="session", name="committed_files")
def _committed_files() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of everything that a run's result consists of, by path within its folder."""
    return committed_files
