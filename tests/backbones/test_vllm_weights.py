"""Several weight sets in one vLLM: adapters side by side, checkpoints that take turns, exchanges under load.

Runs where vllm is installed (`make test-vllm`). The reference is transformers on merged weights.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nlrl.backbones.language_model import Completion, Message, Request, Sampling
from nlrl.backbones.tuning.weights import TunedWeights, merged, shapes
from nlrl.backbones.vllm_model import VLLMModel, VLLMSettings
from nlrl.errors import NLRLError

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here (make test-vllm)")

RANK, ALPHA = 8, 16
GREEDY = Sampling(temperature=0.0, max_tokens=12)
WORDS = ("Hi there", "a longer prompt, with some more words", "42", "so long that its prefix is kept; " * 4)
REQUESTS = [Request(messages=(Message("user", words),), sampling=GREEDY) for words in WORDS]


def random_adapter(base: Path, seed: int) -> TunedWeights:
    """An adapter of all linear layers, as PEFT would save it, that changes what the model says."""
    generator = torch.Generator().manual_seed(seed)
    tensors, targets = {}, []
    for name, shape in shapes(base).items():
        if "proj" in name:
            targets.append(layer := name.removesuffix(".weight"))
            for side, size in (("A", (RANK, shape[1])), ("B", (shape[0], RANK))):
                random = 0.1 * torch.randn(size, generator=generator)
                tensors[f"base_model.model.{layer}.lora_{side}.weight"] = random
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets}
    return TunedWeights(tensors, json.dumps(config | {"bias": "none", "use_rslora": False, "use_dora": False}))


class Merged:
    """What transformers says with the merged weights."""

    def __init__(self, base: Path, tuned: TunedWeights | None, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        if tuned is not None:
            (tuned if not tuned.adapter else merged(base, tuned)).write_folder(folder, base)
        self._tokenizer = AutoTokenizer.from_pretrained(base)
        self._model = AutoModelForCausalLM.from_pretrained(folder if tuned else base).float().eval()

    def prompt(self, request: Request) -> list[int]:
        turns = [{"role": message.role, "content": message.content} for message in request.messages]
        return self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    @cache  # noqa: B019
    def answer(self, request: Request) -> tuple[int, ...]:
        prompt = self.prompt(request)
        ids = self._model.generate(torch.tensor([prompt]), max_new_tokens=request.sampling.max_tokens, do_sample=False)
        return tuple(ids[0, len(prompt) :].tolist())

    def logprobs(self, request: Request, tokens: tuple[int, ...]) -> list[float]:
        prompt = self.prompt(request)
        with torch.no_grad():
            logits = self._model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        return logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()


@pytest.fixture(scope="module")
def base(tiny_llama) -> Path:
    return tiny_llama[0]


@pytest.fixture(scope="module")
def engine(base, vllm_environment) -> Iterator[VLLMModel]:
    model = VLLMModel(
        VLLMSettings(
            model=str(base), dtype="float32", max_model_len=256, enforce_eager=True, cpu_kvcache_gib=0.25,
            max_lora_rank=RANK,
        ),
        weight_version="base@0",
    )  # fmt: skip
    yield model
    model.close()


@pytest.fixture(scope="module")
def references(base, tiny_llama, tmp_path_factory) -> dict[str, tuple[TunedWeights | None, Merged]]:
    """By version: the weights, and what they say."""
    whole = TunedWeights.of_folder(tiny_llama[1])
    kinds = {
        "base@0": None,
        "actor@1": random_adapter(base, 1),
        "actor@2": random_adapter(base, 2),
        "critic@1": random_adapter(base, 3),
        "whole@1": whole,
    }
    return {
        version: (tuned, Merged(base, tuned, tmp_path_factory.mktemp("merged") / "model"))
        for version, tuned in kinds.items()
    }


def put(engine: VLLMModel, references, version: str) -> None:
    engine.load_weights(references[version][0], version, version.split("@")[0])


def assert_spoken_by(references, version: str, answers: list[Completion]) -> None:
    assert {answer.weight_version for answer in answers} == {version}
    assert [answer.tokens for answer in answers] == [references[version][1].answer(request) for request in REQUESTS]


def test_adapters_and_their_base_answer_side_by_side(engine, references):
    for version in ("actor@1", "critic@1"):
        put(engine, references, version)
    assert engine.weight_versions() == {"default": "base@0", "actor": "actor@1", "critic": "critic@1"}
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: engine.generate(REQUESTS, name), engine.weight_versions()))
    for version, answers in zip(engine.weight_versions().values(), found, strict=True):
        assert_spoken_by(references, version, answers)
    assert len({tuple(answer.tokens for answer in answers) for answers in found}) == 3, "else this would show nothing"


def test_logprobs_and_scores_are_the_adapters_own(engine, references):
    put(engine, references, "actor@1")
    for request, answer in zip(REQUESTS, engine.generate(REQUESTS, "actor"), strict=True):
        own = references["actor@1"][1]
        expected = pytest.approx(own.logprobs(request, answer.tokens), abs=1e-2)
        assert list(answer.logprobs) == expected
        assert engine.score([own.prompt(request)], [answer.tokens], "actor")[0] == expected


def test_every_answer_is_of_the_version_it_names_while_adapters_are_exchanged(engine, references):
    """Six exchanges of one set: more than vLLM keeps."""
    put(engine, references, "actor@1")
    request = Request(messages=REQUESTS[1].messages, sampling=Sampling(temperature=0.0, max_tokens=48))
    right = {version: references[version][1].answer(request) for version in ("actor@1", "actor@2")}
    found: list[Completion] = []
    threads = [threading.Thread(target=lambda: found.extend(engine.generate([request] * 3, "actor"))) for _ in range(6)]
    for i, thread in enumerate(threads):
        thread.start()
        put(engine, references, f"actor@{2 - i % 2}")
    for thread in threads:
        thread.join()
    assert len(found) == 18
    assert all(answer.tokens == right[answer.weight_version] for answer in found)


def test_whole_checkpoints_take_turns(engine, references):
    put(engine, references, "whole@1")
    put(engine, references, "actor@2")
    names = ["whole", "default", "whole", "actor", "default", "whole"]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda name: engine.generate(REQUESTS, name), names))
    for name, answers in zip(names, found, strict=True):
        assert_spoken_by(references, engine.weight_versions()[name], answers)


@pytest.mark.parametrize(
    "foreign",
    [
        TunedWeights({"base_model.model.elsewhere.lora_A.weight": torch.ones(8, 8)}, "{}"),
        TunedWeights({"model.norm.weight": torch.ones(3)}),
    ],
    ids=["adapter of another model", "other tensors"],
)
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_stay(engine, references, foreign):
    put(engine, references, "actor@1")
    with pytest.raises(NLRLError, match="do not fit"):
        engine.load_weights(foreign, "actor@9", "actor")
    assert_spoken_by(references, "actor@1", engine.generate(REQUESTS, "actor"))


def test_an_adapter_of_a_higher_rank_is_refused_and_the_engine_goes_on(engine, references, base):
    put(engine, references, "actor@1")
    wide = random_adapter(base, 5)
    config = json.loads(wide.adapter) | {"r": 64}
    with pytest.raises(NLRLError, match="adapter"):
        engine.load_weights(TunedWeights(wide.tensors, json.dumps(config)), "actor@9", "actor")
    assert_spoken_by(references, "actor@1", engine.generate(REQUESTS, "actor"))
    assert not engine.failed


def test_an_unknown_set_is_refused_by_name(engine):
    with pytest.raises(NLRLError, match="no weights 'actors'"):
        engine.generate(REQUESTS, "actors")
