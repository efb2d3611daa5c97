"""`nlrl study MODEL`: what a base can do, role by role."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.table import Table

from nlrl.agents.corpus.stream import CorpusSettings
from nlrl.agents.corpus.study import study
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.models import open_model


def study_model(name: str, prompts: int, seed: int, facts: bool = True, game: str = "tictactoe") -> dict[str, Any]:
    """Scores of every role as plain values; see `RoleScore`."""
    model = open_model(ModelConfig(name=name, dtype="float32"))
    return {role: asdict(score) for role, score in study(model, CorpusSettings(game, facts), prompts, seed).items()}


def study_table(name: str, prompts: int, seed: int, facts: bool = True) -> Table:
    """The same as a table."""
    table = Table(title=f"{name}: {prompts} held-out prompts of each role, seed {seed}")
    for header in ("role", "parsed", "exact", "mean abs. error", "true claims", "claims"):
        table.add_column(header, justify="right")
    for role, score in study_model(name, prompts, seed, facts).items():
        table.add_row(
            role,
            _share(score["parsed"]),
            _share(score["exact"]),
            "" if score["mean_absolute_error"] is None else f"{score['mean_absolute_error']:.4f}",
            _share(score["true_claims"]) if score["claims"] else "",
            str(score["claims"]),
        )
    return table


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
