"""The architectures of the bundled bases, at their own sizes: as large as the control, trainable, and sampled from
exactly."""

from functools import cache
from itertools import islice

import pytest
import torch

from nlrl.agents.corpus import CorpusSettings, examples
from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Request, Sampling
from nlrl.backbones.loading import load
from nlrl.backbones.packing import TokenBatch, TokenExample, pack
from nlrl.backbones.prompts import encode_texts
from nlrl.backbones.registry import base_name
from nlrl.backbones.train_step import TrainStep, make_optimizer
from nlrl.benchmarks.backbones import CONFIGS, CONTROL, fresh_model, parameters, pretraining_architectures
from nlrl.errors import NLRLError
from nlrl.orchestration.pretrain import architecture, load_pretrain_config, run_pretraining

ARCHITECTURES = pretraining_architectures()
SAME_SIZE = ("bimamba-matched", "diff-transformer-base", "hymba-base")
SMALL = [name for name in ARCHITECTURES if name != "bimamba-base"]
"""Those that a test can afford to train; that one is another size of bimamba-matched."""


@pytest.mark.parametrize("name", SAME_SIZE)
def test_parameters_match_the_controls(name):
    assert parameters(ARCHITECTURES[CONTROL]) == 2_558_400
    assert parameters(ARCHITECTURES[name]) == pytest.approx(2_558_400, rel=0.05)


def test_all_bases_get_the_same_corpus_and_budget():
    same = ("game", "facts", "vocab_size", "seed", "max_seconds", "steps", "rows", "row_length", "workers")
    others = ("no_facts", "transformer_grid")
    configs = [load_pretrain_config(path) for path in CONFIGS.glob("*.toml") if path.stem not in others]
    assert {config.model_type for config in configs} == {"transformer", "ngpt", "diff_transformer", "hymba", "bimamba"}
    assert len({tuple(getattr(config, field) for field in same) for config in configs}) == 1


@cache
def material():
    tokenizer = load(CONTROL)[1]
    found = list(islice(examples(CorpusSettings(), seed=5), 40))
    prompts = encode_texts(tokenizer, [f"<bos>{e.messages[-1].content}<answer>" for e in found])
    answers = encode_texts(tokenizer, [f"{e.completion}<eos>" for e in found])
    return tokenizer, [TokenExample(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]


@cache
def trained(name):
    """A model after 20 steps on one packed row, and the loss before each."""
    model = fresh_model(ARCHITECTURES[name], "cpu").train()
    batch = TokenBatch.of(pack([e for e in material()[1] if len(e) <= 192], 192, rows=1))
    optimizer = make_optimizer(model, 4e-3, (0.9, 0.98), 0.0, torch.device("cpu"))
    step, losses = TrainStep(model, optimizer, clip=1.0, bf16=False), []
    for _ in range(20):
        step.loss_sum.zero_()
        step([batch], masked=True)
        losses.append(float(step.loss_sum))
    return model.eval(), losses


@pytest.mark.parametrize("name", SMALL)
def test_twenty_steps_on_one_row_lower_the_loss(name):
    losses = trained(name)[1]
    assert losses[0] == pytest.approx(torch.tensor(1024.0).log().item(), abs=0.7)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_greedy_answers_do_not_depend_on_the_batch(name):
    tokenizer, found = material()
    model = Engine(trained(name)[0].double(), tokenizer)
    sampling = Sampling(temperature=0.0, max_tokens=12)
    prompts = sorted((e.prompt for e in found[:12]), key=len)
    requests = [Request(tokens=prompt, sampling=sampling) for prompt in (prompts[0], prompts[6], prompts[-1])]
    together = model.generate(requests)
    assert len({completion.prompt_tokens for completion in together}) == 3
    assert any(completion.text for completion in together)
    for request, completion in zip(requests, together, strict=True):
        alone = model.generate([request])[0]
        assert (alone.tokens, alone.text) == (completion.tokens, completion.text)
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-6)


# -- pretraining configs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_config_describes_a_model_that_can_be(path):
    config = load_pretrain_config(path)
    assert architecture(config, 1024).model_type == config.model_type
    if config.out.parent.name == "bundled" and not config.games:
        assert config.out.name == base_name(config.model_type)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (
            dict(model_type="gpt2"),
            r"model_type: .*architectures are bimamba, diff_transformer, hymba, ngpt, transformer",
        ),
        (dict(stored="bits"), "stored as 'bits' is for model_type 'bimamba'"),
        (dict(stored="int4"), r"stored: .*'bits' \(got 'int4'\)"),
    ],
)
def test_impossible_fields_are_refused_by_name(changes, complaint):
    with pytest.raises(NLRLError, match=complaint):
        load_pretrain_config(CONFIGS / "transformer.toml", **changes)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (dict(hiden_size=64), "architecture: a 'hymba' model has no field 'hiden_size'"),
        (dict(num_attention_heads=5, num_key_value_heads=2), "architecture: .*must be a multiple of"),
    ],
)
def test_impossible_architectures_are_refused_before_anything_starts(tmp_path, fields, complaint):
    config = load_pretrain_config(CONFIGS / "hymba.toml", architecture=fields, out=tmp_path / "m")
    with pytest.raises(NLRLError, match=complaint):
        run_pretraining(config)
    assert not (tmp_path / "m").exists()
