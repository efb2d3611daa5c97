"""`nlrl study MODEL`: what a base can do, role by role, in each of the games that it was pretrained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from nlrl.agents.corpus.stream import CorpusSettings, name_of
from nlrl.agents.corpus.study import study
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.models import open_model

Scores = dict[str, dict[str, Any]]
"""Role -> the fields of its `RoleScore`."""


def study_model(name: str, prompts: int, seed: int, about: CorpusSettings) -> Scores | dict[str, Scores]:
    """Scores of every role as plain values; of a base for several games, those of each game by its name."""
    model = open_model(ModelConfig(name=name, dtype="float32"))
    if not about.games:
        return _scores(model, prompts, seed, about)
    return {
        game: _scores(model, prompts, seed, about.of_game(game)) for game in dict.fromkeys(map(name_of, about.specs))
    }


def _scores(model: Any, prompts: int, seed: int, about: CorpusSettings) -> Scores:
    return {role: asdict(score) for role, score in study(model, about, prompts, seed).items()}


def study_table(name: str, prompts: int, seed: int, facts: bool = True) -> Table:
    """The same as a table, about the games that the base's own report names."""
    table = Table(title=f"{name}: {prompts} held-out prompts of each role, seed {seed}")
    for header in ("role", "parsed", "exact", "mean abs. error", "true claims", "claims"):
        table.add_column(header, justify="right")
    about = pretrained_on(name, facts)
    found = study_model(name, prompts, seed, about)
    for game, scores in found.items() if about.games else [("", found)]:
        for role, score in scores.items():
            table.add_row(f"{game} {role}".strip(), *_cells(score))
    return table


def pretrained_on(name: str, facts: bool = True) -> CorpusSettings:
    """What a base's corpus was about, as the report beside its weights says; Tic-Tac-Toe where there is none."""
    from nlrl.backbones.loading import BUNDLED

    reports = [folder / "report.json" for folder in (BUNDLED / name, Path(name))]
    config = next((json.loads(path.read_text())["config"] for path in reports if path.is_file()), {})
    return CorpusSettings(config.get("game", "tictactoe"), facts, games=tuple(config.get("games", {}).items()))


def _cells(score: dict[str, Any]) -> tuple[str, ...]:
    return (
        _share(score["parsed"]),
        _share(score["exact"]),
        "" if score["mean_absolute_error"] is None else f"{score['mean_absolute_error']:.4f}",
        _share(score["true_claims"]) if score["claims"] else "",
        str(score["claims"]),
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
