"""The pytest plugin of nlrl (entry point `pytest11`): fixtures for tests of agents, roles and whole runs.

It adds fixtures and nothing else. A project that uses none of them notices nothing; `pytest -p no:nlrl` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from nlrl.backbones.language_model import LanguageModel
    from nlrl.testing import FaultyModel, ScriptedGame, ScriptedModel


@pytest.fixture(scope="session")
def scripted_model() -> Callable[..., ScriptedModel]:
    """A language model that answers by rules: `scripted_model({"to move: X": "best_move: 5"})`, or a list, or a
    function of the request. See nlrl.testing.ScriptedModel."""
    from nlrl.testing import ScriptedModel

    return ScriptedModel


@pytest.fixture(scope="session")
def faulty_model() -> Callable[..., FaultyModel]:
    """A language model that is wrong in chosen ways: `faulty_model(answers, {0: "illegal"})` for the first request,
    `faulty_model(answers, {"truncated": 0.1}, seed=3)` for a tenth of them. `answers`: a model, or what scripted_model
    takes. See nlrl.testing.FaultyModel."""
    from nlrl.testing import FaultyModel, ScriptedModel

    def make(answers: Any, faults: Mapping[Any, Any], **options: Any) -> FaultyModel:
        inner: LanguageModel = answers if hasattr(answers, "generate") else ScriptedModel(answers)
        return FaultyModel(inner, faults, **options)

    return make


@pytest.fixture(scope="session")
def scripted_game() -> Callable[..., ScriptedGame]:
    """A tiny game from data: `scripted_game({"start": {"left": "lost", "right": "won"}, "lost": -1, "won": 1})`; a
    list of states is a game of one move after another. See nlrl.testing.ScriptedGame."""
    from nlrl.testing import ScriptedGame

    def make(script: Any, *args: Any, **options: Any) -> ScriptedGame:
        kind: Callable[..., ScriptedGame] = ScriptedGame if isinstance(script, Mapping) else ScriptedGame.line
        return kind(script, *args, **options)

    return make


@pytest.fixture
def nlrl_run_dir(tmp_path: Path) -> Callable[..., Path]:
    """A run folder with made-up content: `nlrl_run_dir(metrics=[{"win": 0.4}], records={"001/rollout": [...]})` gives
    its path; `name="second"` makes another one beside it. See nlrl.testing.write_run."""
    from nlrl.testing import write_run

    def make(name: str = "run", **content: Any) -> Path:
        return write_run(tmp_path / "runs" / name, **content)

    return make
