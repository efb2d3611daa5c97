"""The bundled bases: small enough to ship, good at their roles, and ignorant of good play."""

from functools import cache
from pathlib import Path

import pytest

import nlrl.backbones
from nlrl.agents.corpus.stream import CorpusSettings
from nlrl.agents.corpus.study import study
from nlrl.orchestration.base_study import pretrained_on
from nlrl.orchestration.config import ModelConfig, RolloutConfig
from nlrl.orchestration.models import open_model
from nlrl.orchestration.statistics import wilson
from nlrl.orchestration.worker import PlayJob, RolloutWorker, game_tasks

NAMES = ("transformer-base", "ngpt-base", "hymba-base")
BUNDLED = Path(nlrl.backbones.__file__).parent / "bundled"
RANDOM_WINS = 0.4365  # of uniformly random play against itself, half the games in each seat (exact)


@cache
def opened(name):
    return open_model(ModelConfig(name=name, dtype="float32"))


def test_bundled_models_are_found_by_name():
    assert set(NAMES) <= set(nlrl.backbones.bundled_names())


def test_shipped_weights_stay_within_their_limits():
    sizes = [path.stat().st_size for path in BUNDLED.glob("*/model.safetensors")]
    assert max(sizes) <= 8_000_000
    assert sum(sizes) <= 24_000_000


@pytest.mark.parametrize("name", NAMES)
def test_every_role_meets_its_bar_on_positions_never_seen(name):
    scores = study(opened(name), CorpusSettings(), prompts=200, seed=11)
    assert set(scores) == {
        "descriptor", "g1_games", "g1_outlooks", "g2", "improvement", "policy", "q", "reader", "v",
    }  # fmt: skip
    assert min(score.parsed for score in scores.values()) >= 0.99  # 0.995 of 1,000; one failure in 200 is within it
    assert scores["g1_games"].exact >= 0.995
    assert scores["g2"].exact >= 0.995
    assert scores["improvement"].exact >= 0.99
    assert scores["reader"].exact >= 0.99
    assert scores["descriptor"].exact >= 0.99
    assert min(score.true_claims for score in scores.values()) >= 0.99


@pytest.mark.parametrize("game", ["breakthrough", "frozen_lake", "maze"])
def test_the_base_of_the_grid_games_meets_its_bars(game):
    """It saw a quarter of the examples that the bases for Tic-Tac-Toe saw, of three games."""
    scores = study(opened("transformer-grid"), pretrained_on("transformer-grid").of_game(game), prompts=25, seed=11)
    assert min(score.parsed for role, score in scores.items() if role != "policy") >= 0.95
    assert scores["policy"].parsed >= 0.7
    assert min(scores[role].exact for role in ("g2", "improvement", "descriptor")) >= 0.8
    assert scores["g1_games"].mean_absolute_error <= 0.02
    assert min(score.true_claims for score in scores.values()) >= 0.85


def test_the_one_bit_base_meets_lower_bars():
    """It is distilled, a quarter of the control's bytes, and weaker; what the loop needs it can do."""
    scores = study(opened("bimamba-base"), CorpusSettings(), prompts=100, seed=11)
    assert min(score.parsed for score in scores.values()) >= 0.93
    assert scores["g1_games"].exact >= 0.97
    assert scores["g2"].exact >= 0.97
    assert scores["improvement"].exact >= 0.85
    assert scores["reader"].exact >= 0.93
    assert scores["descriptor"].exact >= 0.95
    assert min(score.true_claims for score in scores.values()) >= 0.8


@pytest.mark.parametrize(
    ("name", "games"),
    [(name, 1000 if name == "transformer-base" else 400) for name in NAMES]
    + [pytest.param(name, 10_000, marks=pytest.mark.slow) for name in NAMES],
)
def test_base_plays_like_a_random_player(name, games):
    rollout = RolloutConfig(samples_per_state=games, samples_at_start=games)
    worker = RolloutWorker("tictactoe", opened(name), "plain", 64, rollout, run_seed=5)
    records = worker.play(PlayJob("base", 1.0, game_tasks("bundled", 5, 0, "base", games, ("random",), paired=True)))
    wins = sum(record["result"] == "win" for record in records)
    low, high = wilson(wins, games, confidence=0.99)
    assert low <= RANDOM_WINS <= high
