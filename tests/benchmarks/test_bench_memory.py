"""What a run with Hugging Face models takes, computed without any model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nlrl.benchmarks.answers import plan
from nlrl.benchmarks.memory import Assumed, main, report, size_of, training
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import ModelConfig, RunConfig, load_config, validated
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "llama_8b_70b.toml"
GIB = 1 << 30
ASSUMED = Assumed(prompt=300, answer=100, share=0.4, batch=128)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return load_config(CONFIG)


def test_the_config_of_the_paper_is_valid(config):
    check(config)
    assert config.model.trainable
    assert config.model.prompt_style == config.teacher.prompt_style == "instruct"
    assert config.rollout.games == 512
    assert config.targets.continuations == 5
    assert config.iterations == 31
    assert (config.critic.learning_rate, config.critic.batch_size, config.critic.epochs) == (1e-5, 64, 2)
    assert config.critic.buffer_iterations == 3


@pytest.mark.parametrize(
    ("name", "parameters", "kv_bytes"),
    [("Llama-3.1-8B-Instruct", 8_030_261_248, 131_072), ("Llama-3.1-70B-Instruct", 70_553_706_496, 327_680)],
)
def test_parameters_are_those_of_the_published_checkpoints(name, parameters, kv_bytes):
    """The counts of the model cards; keys and values: 2 * layers * 8 heads * 128 numbers of 2 bytes."""
    size = size_of(f"anywhere/{name}")
    assert (size.parameters, size.kv_bytes) == (parameters, kv_bytes)


def test_a_folder_tells_its_own_shape(tmp_path):
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 1, "vocab_size": 100, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **shape}))
    size = size_of(str(tmp_path))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64
    assert size.parameters == 100 * 64 + 2 * layer + 64
    assert size.adapter(3) == 3 * 2 * ((64 + 64) * 2 + (64 + 32) * 2 + 3 * (64 + 96))
    with pytest.raises(NLRLError, match=r"no folder with a config\.json"):
        size_of(str(tmp_path / "nowhere"))


def test_full_tuning_takes_16_bytes_a_weight_and_shards_divide_them(config):
    size = size_of(config.model.name)
    four = training(config.model, size)
    held = sum(four[name] for name in ("weights, GiB", "gradients, GiB", "AdamW, GiB"))
    assert held == pytest.approx(16 * size.parameters / 4 / GIB)
    whole = config.model.model_copy(update={"tuning": config.model.tuning.model_copy(update={"sharding": "none"})})
    assert training(whole, size)["AdamW, GiB"] == pytest.approx(4 * four["AdamW, GiB"])


def test_adapters_take_a_fraction(config):
    size = size_of(config.model.name)
    tuning = {"kind": "lora", "rank": 32, "workers": 1}
    model = validated(ModelConfig, {"kind": "vllm", "name": "x", "tuning": tuning}, "test")
    lora = training(model, size)
    assert lora["trained weights"] == 83_886_080
    assert lora["sum, GiB"] < training(config.model, size)["sum, GiB"] < 80


def test_everything_of_the_config_fits_on_its_cards(config):
    found = report(config, "h100", ASSUMED)
    for role in ("student", "teacher"):
        assert found[role]["tokens held at once"] > 20_000
    shared = found["a card with vLLM and a worker"]
    assert shared["taken, GiB"] < shared["of, GiB"]
    assert all(minutes > 0 for minutes in found["minutes of an iteration, at best"].values())


def test_the_command_prints_and_takes_overrides(capsys):
    main([str(CONFIG), "--gpu", "h200", "--model.tuning.kind", "lora", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["card"] == "h200"
    assert found["training worker"]["trained weights"] == 83_886_080
    main([str(CONFIG)])
    assert "8,030,261,248" in capsys.readouterr().out


def test_answers_are_about_those_of_a_run_that_plays_by_chance(tmp_path):
    """The rule-following model's first policy plays at random, as the estimate does."""
    values = {
        "name": "counted", "out": str(tmp_path / "run"), "iterations": 1, "trackers": [],
        "model": {"kind": "scripted", "name": "nlrl.testing.by_rules"},
        "rollout": {"games": 64, "samples_per_state": 2, "samples_at_start": 16},
        "targets": {"texts_min": 1, "texts_max": 2, "continuations": 3, "actions": "visited"},
        "evaluation": {"games": 2, "opponents": ["random"], "value_states": 1, "exact_states": 0},
        "cluster": {"kind": "inline", "threads": 1},
    }  # fmt: skip
    config = validated(RunConfig, values, "test")
    expected = plan(config)
    folder = RunFolder(run(config).path)
    targets, improvement = (folder.stage(1, name).load()["metrics"] for name in ("targets", "improvement"))
    assert targets["texts"] == pytest.approx(expected.g1, rel=0.15)
    assert improvement["states"] == pytest.approx(expected.improvement, rel=0.15)
    assert expected.critic_texts == expected.g1
    assert expected == plan(config)
