"""`nlrl bench models` runs, keeps what it has, and counts right; how fast anything is, is not tested."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from nlrl import kernels
from nlrl.benchmarks import models
from nlrl.benchmarks.cache import HYMBA, LLAMA, empty_model
from nlrl.benchmarks.kernels.clock import Rates
from nlrl.benchmarks.models import configs, roofline, serving, training
from nlrl.benchmarks.models.report import Report

RATES = Rates(copy=3.0e12, matmul=7.9e14)
TOY = training.Load(2, 16, 0.0)
GRID = serving.Grid((2,), (8,), 24, (6, 2), 4, 16, 0.0)


@pytest.fixture
def report(tmp_path):
    return Report(tmp_path / "lines.json", {})


def kept(report) -> list[dict]:
    return json.loads(report.file.read_text())["lines"]


def toys(known, *names):
    return {name: configs.tiny(known[name]) for name in names}


def test_everything_runs_as_toys(tmp_path, capsys):
    file = tmp_path / "models.json"
    assert models.main(["--tiny", "--json", str(file)]) == 0
    told, printed = json.loads(file.read_text()), capsys.readouterr().out
    found = {(line["part"], line["model"]) for line in told["lines"]}
    served = {(part, name) for part in ("decode", "prefill") for name in configs.SERVED}
    assert found == {("train", name) for name in configs.TRAINED} | served | {("compare", HYMBA), ("compare", LLAMA)}
    assert all(line["value"] > 0 and not line["failed"] and line["met"] is None for line in told["lines"])
    assert all(math.isfinite(number) for line in told["lines"] for number in line["beside"].values())
    assert {"machine", "versions", "command", "rates", "options"} <= told.keys()
    assert all(name in printed for name in (*configs.TRAINED, *configs.SERVED))


def test_parts_and_models_are_chosen_and_the_control_comes_along(tmp_path):
    file = tmp_path / "models.json"
    assert (
        models.main(["--tiny", "--parts", "train", "--kernels", "eager", "--models", "ngpt", "--json", f"{file}"]) == 0
    )
    lines = json.loads(file.read_text())["lines"]
    assert [(line["model"], line["what"]) for line in lines] == [
        ("transformer", "eager kernels"), ("ngpt", "eager kernels"),
    ]  # fmt: skip
    assert lines[0]["beside"]["x control"] == 1
    assert lines[1]["beside"]["x control"] == pytest.approx(lines[1]["value"] / lines[0]["value"])


def test_what_fails_is_a_line_and_the_others_are_kept(monkeypatch, report):
    plain = training.step_rate

    def step_rate(fields, load, device):
        if fields["model_type"] == "ngpt":
            raise torch.OutOfMemoryError("no memory\nat all")
        return plain(fields, load, device)

    monkeypatch.setattr(training, "step_rate", step_rate)
    some = toys(configs.TRAINED, "transformer", "ngpt", "mamba2")
    training.measure(some, ["dispatcher"], TOY, "cpu", RATES, report)
    assert [(line["model"], line["failed"]) for line in kept(report)] == [
        ("transformer", False), ("ngpt", True), ("mamba2", False),
    ]  # fmt: skip
    assert kept(report)[1]["note"] == "OutOfMemoryError: no memory"


def test_a_batch_that_does_not_fit_is_left_out_and_the_largest_that_does_is_compared(monkeypatch, report):
    plain = serving.decode_rate

    def decode_rate(model, batch, *rest):
        if batch == 6:
            raise torch.OutOfMemoryError("no memory")
        if rest[0] == 8:
            raise serving.DoesNotFit("2 sequences")
        return plain(model, batch, *rest)

    monkeypatch.setattr(serving, "decode_rate", decode_rate)
    serving.measure(toys(configs.SERVED, HYMBA, LLAMA), ["decode", "compare"], GRID, "cpu", RATES, report)
    decoded = [line for line in kept(report) if line["part"] == "decode"]
    assert all(line["value"] is None and not line["failed"] for line in decoded)
    compared = [line for line in kept(report) if line["part"] == "compare"]
    assert [line["what"] for line in compared[:2]] == ["batch 2, 24 tokens"] * 2
    assert compared[2]["beside"]["x"] == pytest.approx(compared[0]["value"] / compared[1]["value"])
    assert compared[2]["note"].startswith("batches 2 and 2")
    assert compared[2]["met"] == (compared[2]["beside"]["x"] >= 6)


def test_kernels_are_chosen_anew_for_each_kind(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("NLRL_KERNELS", "eager")
    monkeypatch.setattr("nlrl.kernels.devices.current", lambda: "a GPU of which nothing is recorded")
    op, tensor = kernels.swiglu, SimpleNamespace(is_cuda=True)
    with training.chosen("dispatcher"):
        ours = op._choose((tensor,), {})
        assert ours.__module__.endswith("triton")
    with training.chosen("eager"):
        assert op._choose((tensor,), {}) is op.eager
    assert op._choose((tensor,), {}) is op.eager, "as it was before"
    op.forget_choice()


# -- what a machine allows ---------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def served():
    return {name: empty_model(fields).to(torch.bfloat16) for name, fields in configs.SERVED.items()}


@pytest.mark.parametrize(
    ("name", "batch", "length", "expected"),
    [
        (HYMBA, 1, 1024, 957),
        (HYMBA, 128, 8192, 19_469),
        (LLAMA, 1, 8192, 407),
        (LLAMA, 64, 8192, 2_885),
        (configs.BIMAMBA, 1, 1024, 1 / 278e-6),
    ],
)
def test_rooflines_of_decoding_are_the_published_derivations(served, name, batch, length, expected):
    """At 3.0 TB/s. Bi-Mamba's is that of states in float32, as ours are."""
    found = roofline.decoding_rate(served[name], batch, length, RATES.copy)
    assert found == pytest.approx(expected, rel=0.03)


def test_flops_of_the_control_are_those_counted_by_hand():
    model, time = empty_model(configs.TRAINED["transformer"]), 2048
    width, inner, layers = 768, 1792, 12
    matrices = layers * (4 * width**2 + 3 * width * inner) + 32000 * width
    attention = layers * 12 * (time + 1) / 2 * 4 * 64  # a query and a key: 2 products of 64 channels
    assert roofline.training_flops(model, time) == pytest.approx(6 * matrices + 3 * attention, rel=1e-2)
    assert roofline.forward_flops(model, time, head=False) < roofline.forward_flops(model, time) - 2 * 31999 * width


def test_flops_of_bits_and_of_latent_weights_are_the_same(served):
    dense = empty_model(configs.SERVED[configs.BIMAMBA] | {"packed": False})
    assert roofline.forward_flops(served[configs.BIMAMBA], 512) == roofline.forward_flops(dense, 512)
    bytes_of = roofline.weight_bytes
    assert bytes_of(served[configs.BIMAMBA]) < 0.15 * bytes_of(dense.to(torch.bfloat16))


def test_an_embedding_that_is_not_the_head_is_not_read_by_a_step():
    fields = configs.tiny(configs.SERVED[LLAMA])
    tied, untied = (empty_model(fields | {"tie_word_embeddings": tie}) for tie in (True, False))
    assert roofline.weight_bytes(tied) == roofline.weight_bytes(untied)


def test_trained_models_are_of_one_size_and_ngpt_has_the_controls_matrices():
    found = {name: empty_model(fields) for name, fields in configs.TRAINED.items()}
    sizes = {name: sum(weight.numel() for weight in model.parameters()) for name, model in found.items()}
    assert all(125e6 < size < 129e6 for size in sizes.values()), sizes

    def matrices(model):
        return sorted(tuple(weight.shape) for weight in model.parameters() if weight.dim() == 2)

    assert matrices(found["ngpt"]) == matrices(found["transformer"])
