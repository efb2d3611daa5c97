"""The claims on Hymba and Bi-Mamba: what the arms are, what is asked of them, what is measured; on tiny models."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from nlrl.backbones.bimamba.fbi_linear import FBILinear
from nlrl.benchmarks.replications import bimamba, driver, hymba, recall, report, train
from nlrl.benchmarks.replications.claims import Choice
from nlrl.benchmarks.replications.experiment import Data, Report, Run
from nlrl.errors import NLRLError

torch.set_num_threads(1)
VOCAB, CONTEXT = 256, 64


@pytest.fixture
def data():
    """Two words by turns, mostly: something to learn."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(np.where(rng.random(6000) < 0.9, np.arange(6000) % 2 + 5, rng.integers(VOCAB, size=6000)))
    return Data(tokens[:5000].to(torch.int16), tokens[5000:].to(torch.int16), VOCAB, None, CONTEXT)  # pyright: ignore


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    monkeypatch.setattr(recall, "PROBE_TARGETS", 64)


@pytest.fixture
def small(monkeypatch):
    """The claims' models, much smaller."""
    for module, sizes in (
        (hymba, dict(LAYERS=7, WIDTH=24, HEADS=6, KV_HEADS=2, FEED_FORWARD=120, CHANNELS=1)),
        (bimamba, dict(LAYERS=2, WIDTH=32, HEAD_DIM=16, STATE=8)),
    ):
        for name, size in sizes.items():
            monkeypatch.setattr(module, name, size)


# -- recall ------------------------------------------------------------------------------------------------------------
class LooksUp:
    """Says what stood behind the last occurrence of a token. `tells` changes what it reads."""

    def __init__(self, tells=lambda tokens: tokens, reach=10**6):
        self.tells, self.reach = tells, reach

    def hidden(self, tokens, positions):
        out = torch.zeros_like(tokens)
        for row, told, said in zip(tokens.tolist(), self.tells(tokens).tolist(), out, strict=True):
            last = {}
            for i, token in enumerate(row):
                if token in last and i - last[token] <= self.reach:
                    said[i] = told[last[token] + 1]
                last[token] = i
        return out[..., None].float()

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), VOCAB).float()


def shuffled(tokens):
    return tokens[:, torch.randperm(tokens.shape[1], generator=torch.Generator().manual_seed(0))]


def test_who_looks_up_recalls_everything_and_who_misreads_next_to_nothing(data):
    found = recall.recall(LooksUp(), data, "cpu")
    assert found["all"] == 1
    assert {(c["pairs"], c["gap"]) for c in found["cells"]} == {
        (n, gap) for n in recall.PROBE_PAIRS for gap in (0, 16, 32) if 4 * n + gap <= CONTEXT
    }
    assert set(found["by_pairs"].values()) == set(found["by_distance"].values()) == {1}
    assert json.loads(json.dumps(found)) == found
    assert recall.recall(LooksUp(shuffled), data, "cpu")["all"] < 0.2


def test_recall_by_distance_shows_how_far_a_model_sees(data):
    found = recall.recall(LooksUp(reach=16), data, "cpu")["by_distance"]
    assert found["8"] == found["16"] == 1
    assert found["64"] == 0
    assert 0 < recall.recall(LooksUp(reach=24), data, "cpu")["by_distance"]["32"] < 1


def test_training_rows_can_be_answered_and_differ(data):
    rows = recall.training_rows(np.random.default_rng(1), 8, CONTEXT, VOCAB)
    assert rows.tokens.shape == (8, CONTEXT)
    assert 0 <= rows.tokens.min() < rows.tokens.max() < VOCAB
    assert rows.targets.sum(1).min() >= 1
    assert recall.answered(LooksUp(), rows, "cpu").all()
    for row, targets, distance in zip(*rows, strict=True):
        for place in np.flatnonzero(targets):
            pair = place - distance[place]
            assert row[pair - 1 : pair + 1].tolist() == row[place - 1 : place + 1].tolist()
            assert row[place - 1] not in row[pair : place - 1], "nothing later has replaced the pair"
    again, other = (recall.training_rows(np.random.default_rng(s), 8, CONTEXT, VOCAB) for s in (1, 2))
    assert (again.tokens == rows.tokens).all()
    assert (other.tokens != rows.tokens).any()


def test_rows_hold_episodes_of_all_sizes_some_with_long_gaps():
    rows = recall.training_rows(np.random.default_rng(1), 100, 512, VOCAB)
    assert 0.15 < rows.targets.mean() < 0.25
    assert (rows.distance > 256).any()
    assert np.median(rows.distance[rows.targets]) < 32


def test_a_vocabulary_without_room_for_keys_and_values_is_refused():
    with pytest.raises(NLRLError, match="a vocabulary of 50 tokens has no 32 keys, 16 values and filler"):
        recall.training_rows(np.random.default_rng(0), 1, 512, 50)


# -- Hymba -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["hymba", "bimamba"])
def test_arms_have_equally_many_parameters(name):
    claim = Choice(name).claim()
    by_arm = driver.sizes(claim, 4096)[512]
    assert len(by_arm) == len(claim.arms) <= 7
    assert all(4e6 < params < 8e6 for params in by_arm.values())
    assert max(by_arm.values()) / min(by_arm.values()) < 1.01


def test_every_step_of_the_roadmap_is_the_one_before_and_one_thing_more():
    fields = [hymba.step_fields(step, 1024) for step in "ABCDE"]
    changed = [{k for k in one if one[k] != other[k]} for one, other in pairwise(fields)]
    assert changed == [{"mixer"}, {"sliding_window"}, {"kv_reuse_group"}, {"num_memory_tokens"}]
    assert fields[-1] | {"kv_reuse_group": None} == {
        "mixer": "parallel", "sliding_window": 256, "kv_reuse_group": None, "num_memory_tokens": 128,
    }  # fmt: skip
    with torch.device("meta"):
        config = hymba.claim().arm("e_meta").build(4096, 512).config
    assert config.global_attn_idx == [0, 3, 6]
    assert config.kv_reuse_group == [[1, 2], [4, 5]]


def test_bytes_of_the_decode_state_are_ordered_as_the_architectures_say():
    data = Data(torch.zeros(0), torch.zeros(0), 4096, None, 512)  # pyright: ignore
    sizes = {}
    for arm in hymba.claim().arms:
        with torch.device("meta"):
            model = arm.build(4096, 512)
        sizes[arm.name] = hymba.cache(model, data, "cpu")
    for tokens in ("512", "8192"):
        kv = {name: size[tokens]["kv"] for name, size in sizes.items()}
        assert kv["transformer"] > kv["b_parallel"] > kv["c_windows"] > kv["d_shared"] == kv["e_meta"]
        assert kv["b_parallel"] > kv["a_sequential"] > kv["mamba"] == 0
    assert sizes["mamba"]["512"] == sizes["mamba"]["8192"], "the same at any length"
    assert {name for name, size in sizes.items() if size["512"]["shared"]} == {"e_meta"}
    plain = 2 * hymba.LAYERS * hymba.WIDTH * 2
    assert sizes["transformer"]["8192"] == {"kv": 8192 * plain, "conv": 0, "recurrent": 0, "shared": 0}


# -- Bi-Mamba ----------------------------------------------------------------------------------------------------------
def trained(name, data, steps=30):
    claim = replace(bimamba.claim(), tokens=steps * 256, batch_tokens=256, contexts=(CONTEXT,))
    rows = train.Rows(claim, data, 0)
    teacher = train.train(claim, Run("mamba2", CONTEXT, 0, 8e-3), rows)[0] if claim.arm(name).teacher else None
    return train.train(claim, Run(name, CONTEXT, 0, 8e-3), rows, teacher)


def test_rounding_after_training_costs_loss_and_leaves_a_bit_a_weight(small, data):
    model, found = trained("mamba2", data)
    rounded = found.measures["rounded"]
    binary = bimamba.binarised(model)
    assert rounded["loss"] == pytest.approx(train.validation_loss(binary, data), rel=1e-6)
    assert rounded["loss"] > found.loss + 0.01
    scales = sum(m.alpha.nbytes for m in binary.modules() if isinstance(m, FBILinear))  # 4 bytes; two of 2 are stored
    assert rounded["projections"] - scales == rounded["weights"] / 8
    full = found.measures["storage"]
    assert full["projections"] == 2 * full["weights"] == 2 * rounded["weights"]
    assert full["memory"] == 2 * found.params
    for sizes in (rounded, full):
        assert 0 < sizes["disk"] - sizes["memory"] < 8192, "the file's header"
    others = [name for name, _ in model.named_parameters() if "_proj" not in name]
    assert all(torch.equal(model.get_parameter(name), binary.get_parameter(name)) for name in others)


def test_the_nearest_signs_are_nearer_than_means_and_exact_where_there_are_two_values():
    torch.manual_seed(0)
    weight = torch.randn(50, 7).exp()
    signs, alpha, beta = bimamba.nearest_signs(weight)
    ours = (signs * alpha + beta - weight).square().sum(0)
    mean = weight.mean(0)
    plain = ((weight - mean).sign() * (weight - mean).abs().mean(0) + mean - weight).square().sum(0)
    assert (ours <= plain).all()
    assert ours.sum() < plain.sum()
    cuts = weight.sort(0).values
    best = torch.stack([((cuts[:i] - cuts[:i].mean(0)) ** 2).sum(0) + ((cuts[i:] - cuts[i:].mean(0)) ** 2).sum(0)
                        for i in range(1, 50)]).amin(0)  # fmt: skip
    assert torch.allclose(ours, best, rtol=1e-4)
    two = torch.tensor([[3.0, -1, 2], [3, 5, 2], [-2, 5, 2]])
    signs, alpha, beta = bimamba.nearest_signs(two)
    assert torch.allclose(signs * alpha + beta, two)
    assert set(signs.flatten().tolist()) == {1.0, -1.0}


def test_binary_arms_learn_and_are_stored_as_bits(small, data):
    teacher = trained("mamba2", data)[1]
    for name in ("distilled", "alone"):
        _, found = trained(name, data)
        assert found.loss < found.curve[0][3] - 0.3
        assert found.measures["rounded"] == {}
        assert found.measures["storage"]["memory"] < 0.6 * teacher.measures["storage"]["memory"]
    claim = bimamba.claim()
    assert claim.arm("distilled").teacher == "mamba2"
    assert claim.arm("alone").teacher is None


# -- end to end --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["hymba", "bimamba"])
def test_a_claim_runs_from_end_to_end(name, small, data, tmp_path, monkeypatch):
    """One step of every arm, its measures, and the page of what came out."""
    whole = Choice(name).claim()
    claim = replace(whole, tokens=2 * 128, batch_tokens=128, contexts=(CONTEXT,), seeds=(0,))
    rows = train.Rows(claim, data, 0)
    results, models, drawn = [], {}, {}
    for arm in claim.arms:
        teacher = models.get(arm.teacher)
        models[arm.name], result = train.train(claim, Run(arm.name, CONTEXT, 0, arm.lrs[0]), rows, teacher)
        assert set(result.measures) == set(claim.measures)
        results.append(result)
    if name == "hymba":
        assert max(r.params for r in results) / min(r.params for r in results) < 1.02
    session = driver.session_of("a test", "cpu", 1)
    settings = driver._settings(claim) | {"corpus": {"tokens": 6000, "sha256": "0" * 64}}
    Report(name, json.loads(json.dumps(settings)), [session], results, []).write(tmp_path / "file.json")
    monkeypatch.setattr(report, "write_png", lambda chart, path: drawn.update({path.name: chart.to_dict()}))
    page = report.write(tmp_path / "file.json", tmp_path / "docs").read_text()
    for arm in claim.arms:
        assert page.count(f"\n| {arm.label} |") >= 2
    values = drawn[{"hymba": "hymba_recall.png", "bimamba": "bimamba_bytes.png"}[name]]["data"]["values"]
    assert {value["arm"] for value in values} >= {arm.label for arm in claim.arms}
    if name == "bimamba":
        assert "\n| Mamba-2, rounded after training |" in page
