"""A base for several games is pretrained from one config, and says afterwards which games it knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from nlrl.agents.language import language_of
from nlrl.agents.roles import Roles, StateInput
from nlrl.backbones.loading import load
from nlrl.backbones.prompts import encode_texts
from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration import base_study, pretrain
from nlrl.orchestration.pretrain import load_pretrain_config, run_pretraining

GRID = Path(__file__).parents[2] / "configs" / "pretrain" / "transformer_grid.toml"
SMALL = {"frozen_lake(layout=random,maps=30)": 0.5, "maze(layout=generated,width=5,height=5,seed=*)": 0.5}
QUICK = dict(steps=2, rows=2, row_length=1024, max_seconds=None, workers=0, device="cpu", study_prompts=0)


@pytest.fixture(autouse=True)
def small_sample(monkeypatch):
    monkeypatch.setattr(pretrain, "TOKENIZER_TEXTS", 400)


def check_base(folder, games):
    """The saved base loads, keeps each game's atoms whole, and its report names the games."""
    tokenizer = load(str(folder))[1]
    for text in (" +0.50", " left"):
        assert len(encode_texts(tokenizer, [text])[0]) == 1
    assert dict(base_study.pretrained_on(str(folder)).games) == games


def test_a_few_steps_on_several_games_make_a_base_that_knows_their_words(tmp_path):
    config = load_pretrain_config(GRID, out=tmp_path / "m", games=SMALL, vocab_size=900, **QUICK)
    report = run_pretraining(config)
    assert report["training"]["steps"] == 2
    assert report["config"]["games"] == SMALL
    check_base(tmp_path / "m", SMALL)
    study = base_study.study_model(str(tmp_path / "m"), 1, 0, config.about)
    assert set(study) == {"frozen_lake", "maze"}
    assert study["maze"]["g1_games"]["prompts"] == 1


@pytest.mark.slow
def test_the_base_of_grid_games_can_be_pretrained_as_its_config_says(tmp_path):
    config = load_pretrain_config(GRID, out=tmp_path / "m", **QUICK)
    report = run_pretraining(config)
    assert 2_400_000 < report["parameters"] < 2_800_000
    check_base(tmp_path / "m", config.games)
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 4_000_000


def test_the_grid_config_covers_its_games_and_their_prompts_are_short():
    games = load_pretrain_config(GRID).games
    assert sum(games.values()) == pytest.approx(1)
    for name in ("breakthrough", "frozen_lake", "maze"):
        assert any(spec.startswith(name) for spec in games)
    for game in (make("frozen_lake"), make("maze")):
        prompt = Roles(game).policy.messages(StateInput(game.initial_states()[0]))[-1].content
        assert len(prompt) < 120
        assert language_of(game).board(game.initial_states()[0]) in prompt


@pytest.mark.parametrize(
    ("games", "complaint"),
    [
        ({"chess": 1.0}, "unknown game 'chess'"),
        ({"maze(layout=spiral)": 1.0}, "unknown layout"),
        ({"maze": 0.0}, "a share must be above 0"),
    ],
)
def test_games_that_cannot_be_are_refused_by_name(games, complaint):
    with pytest.raises(NLRLError, match=f"games.*{complaint}"):
        load_pretrain_config(GRID, games=games)
