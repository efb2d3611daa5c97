"""Adapters and whole models as values, files and folders, without the packages that make them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nlrl.backbones.tuning.settings import Tuning
from nlrl.backbones.tuning.weights import TunedWeights, adapted, base_dtype, export, merged, shapes
from nlrl.errors import NLRLError

RANK, ALPHA = 4, 8
LAYER = "model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def base(tiny_llama) -> Path:
    return tiny_llama[0]


@pytest.fixture(scope="module")
def adapter(base) -> TunedWeights:
    """Of one layer, in the words of PEFT."""
    rows, columns = shapes(base)[f"{LAYER}.weight"]
    generator = torch.Generator().manual_seed(0)
    config = {"r": RANK, "lora_alpha": ALPHA, "target_modules": [LAYER], "use_rslora": False}
    tensors = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.randn(RANK, columns, generator=generator),
        f"base_model.model.{LAYER}.lora_B.weight": torch.randn(rows, RANK, generator=generator),
    }
    return TunedWeights(tensors, json.dumps(config))


def assert_equal(one: TunedWeights, other: TunedWeights) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("kind", ["adapter", "whole"])
def test_what_is_written_is_read(kind, adapter, base, tmp_path):
    tuned = adapter if kind == "adapter" else TunedWeights.of_folder(base)
    tuned.write(tmp_path / "one.safetensors")
    again = TunedWeights.read(tmp_path / "one.safetensors")
    assert_equal(again, tuned)
    assert again.adapter == tuned.adapter
    again.write(tmp_path / "two.safetensors")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    again.write_folder(tmp_path / "folder", base)
    found = TunedWeights.of_folder(tmp_path / "folder")
    assert_equal(found, tuned)
    assert bool(found.adapter) == bool(tuned.adapter)


def test_an_adapter_is_the_same_text_wherever_and_in_whatever_order_it_was_written(adapter, base, tmp_path):
    config = json.loads(adapter.adapter)
    texts = []
    for i, targets in enumerate((["b", "a"], ["a", "b"])):
        folder = tmp_path / str(i)
        adapter.write_folder(folder, base)
        written = {"base_model_name_or_path": str(folder), **config, "target_modules": targets}
        (folder / "adapter_config.json").write_text(json.dumps(written))
        texts.append(TunedWeights.of_folder(folder).adapter)
    assert texts[0] == texts[1]


def test_a_whole_model_takes_everything_else_from_its_base(base, tmp_path):
    TunedWeights.of_folder(base).rounded(torch.bfloat16).write_folder(tmp_path / "model", base)
    names = {path.name for path in base.iterdir()}
    assert {path.name for path in (tmp_path / "model").iterdir()} == names
    for name in names - {"model.safetensors"}:
        assert (tmp_path / "model" / name).read_bytes() == (base / name).read_bytes()
    assert {t.dtype for t in TunedWeights.of_folder(tmp_path / "model").tensors.values()} == {torch.bfloat16}


def test_merging_adds_the_scaled_product_to_its_layer_alone(adapter, base):
    before, after = TunedWeights.of_folder(base).tensors, merged(base, adapter).tensors
    down, up = (adapter.tensors[f"base_model.model.{LAYER}.lora_{side}.weight"] for side in "AB")
    expected = before[f"{LAYER}.weight"] + ALPHA / RANK * up @ down
    assert torch.allclose(after[f"{LAYER}.weight"], expected, atol=1e-6)
    assert all(torch.equal(after[name], before[name]) for name in before if name != f"{LAYER}.weight")


def test_an_untrained_network_is_exported_as_its_base(base, tmp_path):
    export(base, None, tmp_path / "agent")
    assert_equal(TunedWeights.of_folder(tmp_path / "agent"), TunedWeights.of_folder(base))


def test_a_failed_export_leaves_the_old_folder(adapter, base, tmp_path, monkeypatch):
    export(base, None, tmp_path / "agent")
    monkeypatch.setattr(TunedWeights, "write_folder", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(NLRLError, match=r"agent: cannot be written: disk full"):
        export(base, adapter, tmp_path / "agent")
    assert_equal(TunedWeights.of_folder(tmp_path / "agent"), TunedWeights.of_folder(base))


def test_the_layers_and_type_of_a_base(adapter, base):
    assert {adapted(name) for name in adapter.tensors} == {LAYER}
    assert base_dtype(base) == torch.float32
    adapter.require_fits(base)
    TunedWeights.of_folder(base).require_fits(base)


@pytest.mark.parametrize(("spoil", "named"), [
    (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight is of shape None, in the base"),
    (lambda tensors: tensors.update({"model.norm.weight": torch.ones(2)}), r"of shape \(2,\), in the base \(128,\)"),
    (lambda tensors: tensors.update({"more": torch.ones(2)}), "more is of shape"),
])  # fmt: skip
def test_tensors_of_another_model_do_not_fit(base, spoil, named):
    tuned = TunedWeights.of_folder(base)
    spoil(tuned.tensors)
    with pytest.raises(NLRLError, match=named):
        tuned.require_fits(base)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(NLRLError, match="no safetensors"):
        shapes(tmp_path)


def test_the_passes_of_a_batch_cover_it():
    """(texts in a pass, passes) of each worker: no pass is larger than asked for, and a step holds the batch."""
    sft = pytest.importorskip("nlrl.backbones.tuning.sft", exc_type=ImportError)
    for workers in (1, 2, 3):
        for batch in (1, 7, 8, 64):
            size, count = sft.passes(Tuning(pass_size=8, workers=workers), batch)
            assert size <= 8
            assert batch <= size * count * workers < batch + workers + count * workers
