"""`nlrl bench cache`: the published figures to the digit, and our states to the byte."""

import json

import pytest
import torch

from nlrl.benchmarks import cache
from nlrl.benchmarks.backbones import fresh_model

pytest.importorskip("nlrl.backbones.hymba.modeling")


@pytest.fixture(scope="module")
def hymba():
    return cache.empty_model(cache.PUBLISHED[cache.HYMBA])


@pytest.fixture(scope="module")
def llama():
    return cache.empty_model(cache.PUBLISHED[cache.LLAMA])


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Hymba-1.5B", 1_522_797_824),
        ("Llama-3.2-3B", 3_212_749_824),
        ("Llama-3.2-1B", 1_235_814_400),
        ("nGPT 1B", 1.03e9),
        ("Differential 3B, version 1", 3.47e9),
        ("Bi-Mamba 1.3B", 1_306.9e6),
        ("Bi-Mamba 2.7B", 2_656.8e6),
    ],
)
def test_published_models_have_their_published_sizes(name, count):
    found = sum(weight.numel() for weight in cache.empty_model(cache.PUBLISHED[name]).parameters())
    assert found == (count if isinstance(count, int) else pytest.approx(count, rel=4e-3))


# -- the paper's figures -----------------------------------------------------------------------------------------------
def test_the_papers_formula_gives_the_papers_figures(hymba, llama):
    ours, theirs = cache.paper_hymba(hymba.config, 8000), cache.paper_transformer(llama.config, 8000)
    assert ours == 46_817_280 + 28_508_160 + 3_276_800 == 78_602_240
    assert theirs == 917_504_000
    assert theirs / ours == pytest.approx(11.673, abs=5e-4)


def test_the_formula_of_transformers_gives_other_rows_of_the_papers_table():
    small = cache.empty_model(cache.PUBLISHED["Llama-3.2-1B"])
    assert cache.paper_transformer(small.config, 8000) == 262_144_000  # printed: 262


ABLATION = dict(
    model_type="hymba", vocab_size=32001, hidden_size=1024, num_hidden_layers=12, num_attention_heads=16,
    num_key_value_heads=4,
)  # fmt: skip
"""What table 10's cache figures imply of its 300M model."""


@pytest.mark.parametrize(
    ("row", "fields", "megabytes"),
    [
        (5, dict(sliding_window=None, num_memory_tokens=0), 148.24),
        (7, dict(sliding_window=256, num_memory_tokens=0, global_attn_idx=[], kv_reuse_group=[]), 5.51),
        (8, dict(sliding_window=256, num_memory_tokens=0, kv_reuse_group=[]), 41.19),
        (9, dict(sliding_window=256, num_memory_tokens=0), 39.42),
        (13, dict(sliding_window=256, num_memory_tokens=128), 40.01),
    ],
)
def test_the_formula_gives_the_ablation_too(row, fields, megabytes):
    config = cache.empty_model(ABLATION | fields).config
    assert cache.paper_hymba(config, 8000) / 1e6 == pytest.approx(megabytes, abs=5e-3)


# -- everything counted ------------------------------------------------------------------------------------------------
def test_everything_that_nvidias_code_keeps(hymba, llama):
    assert cache.everything_hymba(hymba.config, 8000) == 81_879_040
    assert cache.everything_hymba(hymba.config, 8192) == 82_984_960
    ratio = cache.paper_transformer(llama.config, 8000) / cache.everything_hymba(hymba.config, 8000)
    assert ratio == pytest.approx(11.21, abs=5e-3)


def test_our_states_of_hymba_to_the_byte(hymba):
    found = cache.footprint(hymba, 8192)
    assert found.kv == 3 * 8192 * 1920 + 14 * 1024 * 1920
    assert found.conv == 614_400
    assert found.recurrent == 6_553_600
    assert found.shared == 4_177_920 + found.conv + found.recurrent  # what the meta tokens leave: once, not a sequence
    assert found.sequence + 4_177_920 == 86_056_960


def test_growth_per_token_beyond_the_window(hymba, llama):
    assert cache.footprint(hymba, 8193).sequence - cache.footprint(hymba, 8192).sequence == 5760
    assert cache.footprint(llama, 8193).sequence - cache.footprint(llama, 8192).sequence == 114_688


def test_a_text_shorter_than_the_window_takes_no_more_than_it_needs(hymba):
    assert cache.footprint(hymba, 100).kv == (3 + 14) * 100 * 1920


@pytest.mark.parametrize("name", ["Bi-Mamba 1.3B", "Bi-Mamba 2.7B"])
def test_mambas_keep_the_same_of_every_text(name):
    model = cache.empty_model(cache.PUBLISHED[name])
    assert cache.footprint(model, 1024) == cache.footprint(model, 32_768)


@pytest.mark.parametrize("name", cache.bundled())
def test_figures_from_the_meta_device_are_those_of_real_states(name):
    fields = cache.bundled()[name]
    state = fresh_model(fields, "cpu").new_state(1, 300, dtype=torch.bfloat16)
    found = cache.footprint(cache.empty_model(fields), 300)
    assert found.sequence + found.shared == state.nbytes


# -- the program -------------------------------------------------------------------------------------------------------
def test_the_program_prints_and_writes_what_it_found(tmp_path, capsys):
    assert cache.main(["--lengths", "1024", "--json", str(tmp_path / "found.json")]) == 0
    printed = capsys.readouterr().out
    assert "78.602       917.504   11.673x" in printed
    assert "81.879       917.504   11.206x" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["hymba"] for row in found["comparison"]][:2] == [78_602_240, 81_879_040]
    assert {row["model"] for row in found["published"]} == set(cache.PUBLISHED)
    assert {row["model"] for row in found["bundled"]} == set(cache.bundled())
