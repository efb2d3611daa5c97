"""vLLM for real, on a CPU: in this process, in a Ray actor, and as a server that the endpoint client talks to.

Runs where vllm is installed (`make test-vllm`), on a tiny random Llama; transformers is the reference for tokens and
log-probabilities.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from nlrl.backbones.language_model import Completion, LanguageModel, LanguageModelError, Message, Request, Sampling
from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings
from nlrl.backbones.vllm_model import VLLMModel, VLLMSettings, ray_actor
from nlrl.errors import NLRLError

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here (make test-vllm)")

GREEDY = Sampling(temperature=0.0, max_tokens=16)
DRAWN = Sampling(temperature=1.0, max_tokens=16)
WORDS = ("Hi there", "a longer prompt, with some more words", "42", "?")
LONG = "so long that vLLM caches its prefix; " * 5
CLOSE = 1e-2


def chat(text: str, sampling: Sampling = GREEDY, seed: int = 0) -> Request:
    return Request(messages=(Message("user", text),), sampling=sampling, seed=seed)


def settings(folder: Path, **more) -> VLLMSettings:
    return VLLMSettings(
        model=str(folder), dtype="float32", max_model_len=256, enforce_eager=True, cpu_kvcache_gib=0.25, **more
    )


class Reference:
    """The same checkpoint in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).float().eval()

    def prompt(self, request: Request) -> list[int]:
        turns = [dataclasses.asdict(message) for message in request.messages]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)

    def greedy(self, prompt: Sequence[int], count: int) -> tuple[int, ...]:
        import torch

        ids = self.model.generate(torch.tensor([prompt]), max_new_tokens=count, do_sample=False)
        return tuple(ids[0, len(prompt) :].tolist())

    def logprobs(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        import torch

        with torch.no_grad():
            scores = self.model(torch.tensor([[*prompt, *tokens]])).logits[0].log_softmax(-1)
        return [scores[len(prompt) - 1 + i, token].item() for i, token in enumerate(tokens)]


@pytest.fixture(scope="module")
def reference(tiny_llama) -> Reference:
    return Reference(tiny_llama[0])


def assert_logprobs_are_those_of(reference: Reference, prompt: Sequence[int], completion: Completion) -> None:
    assert len(completion.logprobs) == len(completion.tokens) > 0
    assert completion.logprobs == pytest.approx(reference.logprobs(prompt, completion.tokens), abs=CLOSE)


# --- in this process


@pytest.fixture(scope="module")
def engine(tiny_llama, vllm_environment) -> Iterator[VLLMModel]:
    model = VLLMModel(settings(tiny_llama[0]), weight_version="v0")
    yield model
    model.close()


def test_greedy_tokens_are_those_of_transformers(engine, reference):
    requests = [chat(words) for words in WORDS]
    for request, completion in zip(requests, engine.generate(requests), strict=True):
        prompt = reference.prompt(request)
        assert completion.tokens == reference.greedy(prompt, GREEDY.max_tokens)
        assert completion.text == reference.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        assert completion.prompt_tokens == len(prompt)
        assert completion.weight_version == engine.weight_version == "v0"
    assert isinstance(engine, LanguageModel)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0, 2.0])
def test_logprobs_are_those_at_temperature_one(engine, reference, temperature):
    sampling = Sampling(temperature=temperature, top_k=20, top_p=0.9, max_tokens=16)
    request = chat(WORDS[1], sampling, seed=3)
    assert_logprobs_are_those_of(reference, reference.prompt(request), engine.generate([request])[0])


def test_tokens_are_taken_as_they_are(engine, reference):
    request = chat(WORDS[0])
    prompt = tuple(reference.prompt(request))
    by_messages, by_tokens = engine.generate([request, Request(tokens=prompt, sampling=GREEDY)])
    assert by_messages.tokens == by_tokens.tokens


def test_answers_depend_on_their_seed_and_not_on_their_batch(engine):
    requests = [chat(WORDS[i % 4], DRAWN, seed=i) for i in range(16)]
    together = engine.generate(requests)
    assert [engine.generate([request])[0].tokens for request in requests[:4]] == [c.tokens for c in together[:4]]
    assert [c.tokens for c in engine.generate(requests[::-1])] == [c.tokens for c in together[::-1]]
    reseeded = engine.generate([chat(WORDS[0], DRAWN, seed=seed) for seed in range(8)])
    assert len({c.tokens for c in reseeded}) > 4


def test_answers_end_where_they_should(engine, reference):
    (whole,) = engine.generate([chat(WORDS[0], Sampling(temperature=0.0, max_tokens=12))])
    assert whole.finish_reason == "length"
    assert len(whole.tokens) == 12
    stop = whole.text[4]
    (cut,) = engine.generate([chat(WORDS[0], Sampling(temperature=0.0, max_tokens=12, stop=(stop,)))])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    drawn = engine.generate([chat(WORDS[0], Sampling(max_tokens=200), seed=seed) for seed in range(16)])
    ended = [c for c in drawn if c.finish_reason == "stop"]
    assert ended
    assert all(c.tokens[-1] == reference.tokenizer.eos_token_id for c in ended)


def test_a_request_that_vllm_refuses_is_data_and_the_others_are_answered(engine):
    too_long = Request(tokens=(5,) * 300, sampling=GREEDY)
    too_cold = chat(WORDS[0], Sampling(temperature=-1.0))
    completions = engine.generate([chat(WORDS[0]), too_long, too_cold, chat(WORDS[1])])
    assert [c.finish_reason == "error" for c in completions] == [False, True, True, False]
    assert "256" in completions[1].error
    assert "temperature" in completions[2].error


def test_exchanged_weights_answer_like_a_fresh_model(engine, reference, tiny_llama):
    requests = [chat(words) for words in (*WORDS, LONG)]
    before = engine.generate(requests)
    other = Reference(tiny_llama[1])
    try:
        engine.load_checkpoint(tiny_llama[1], version="v1")
        after = engine.generate(requests)
        assert [c.tokens for c in after] == [other.greedy(other.prompt(r), GREEDY.max_tokens) for r in requests]
        assert {c.weight_version for c in after} == {engine.weight_version} == {"v1"}
        assert_logprobs_are_those_of(other, other.prompt(requests[0]), after[0])
    finally:
        engine.load_checkpoint(tiny_llama[0], version="v0")
    assert engine.generate(requests) == before


def test_weights_are_never_exchanged_under_an_answer(engine, tiny_llama, reference):
    references = {"v0": reference, "v1": Reference(tiny_llama[1])}
    request = chat(WORDS[1], Sampling(temperature=0.0, max_tokens=64))
    right = {version: r.greedy(r.prompt(request), 64) for version, r in references.items()}
    found: list[Completion] = []
    threads = [threading.Thread(target=lambda: found.extend(engine.generate([request] * 4))) for _ in range(6)]
    for i, thread in enumerate(threads):
        thread.start()
        engine.load_checkpoint(tiny_llama[(i + 1) % 2], version=f"v{(i + 1) % 2}")
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(completion.tokens == right[completion.weight_version] for completion in found)
    assert engine.weight_version == "v0"


def test_weights_of_another_shape_are_refused_and_the_old_ones_stay(engine, tiny_llama, tmp_path):
    before = engine.generate([chat(WORDS[0])])
    other = shutil.copytree(tiny_llama[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(NLRLError, match="num_hidden_layers"):
        engine.load_checkpoint(other, version="v9")
    with pytest.raises(NLRLError, match=r"config\.json"):
        engine.load_checkpoint(tmp_path / "nowhere", version="v9")
    assert engine.generate([chat(WORDS[0])]) == before


def test_an_exported_bi_mamba_is_served_as_it_is(tiny_llama, vllm_environment, tmp_path):
    """vLLM's Mamba2, which on a CPU computes in bfloat16 only, reads the dense export of a binary model."""
    import torch
    from transformers import AutoTokenizer

    from nlrl.backbones import BiMambaConfig, BiMambaForCausalLM, to_hf_mamba2

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama[0])
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, head_dim=64, state_size=64,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = BiMambaForCausalLM(BiMambaConfig(initializer_range=0.3, eos_token_id=2, **sizes)).eval()
    to_hf_mamba2(model, tmp_path / "m", tokenizer)
    served = VLLMModel(settings(tmp_path / "m").model_copy(update={"dtype": "bfloat16"}))
    try:
        completions = served.generate([chat(words, DRAWN, seed=7) for words in (*WORDS, LONG)])
    finally:
        served.close()
    reference = Reference(tmp_path / "m")
    reference.model = model
    for completion, words in zip(completions, (*WORDS, LONG), strict=True):
        expected = reference.logprobs(reference.prompt(chat(words)), completion.tokens)
        assert completion.logprobs == pytest.approx(expected, abs=0.15)
        assert max(expected) - min(expected) > 1, "else this would show nothing"


def test_a_folder_without_a_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(NLRLError, match=r"model: .*config\.json"):
        VLLMModel(settings(tmp_path))


def test_a_dead_engine_is_an_error_and_leaves_no_process(tiny_llama, vllm_environment):
    import psutil

    before = set(psutil.Process().children(recursive=True))
    model = VLLMModel(settings(tiny_llama[0]))
    try:
        model.generate([chat(WORDS[0])])
        started = set(psutil.Process().children(recursive=True)) - before
        assert started
        for process in started:
            process.kill()
        with pytest.raises(LanguageModelError, match="died"):
            model.generate([chat(WORDS[0])])
    finally:
        model.close()
        model.close()
    assert not [process for process in started if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    with pytest.raises(LanguageModelError, match="closed"):
        model.generate([chat(WORDS[0])])


# --- behind a server


@pytest.fixture(scope="module")
def endpoint(vllm_server) -> Iterator[OpenAIModel]:
    model = OpenAIModel(OpenAISettings(model="tiny", base_url=vllm_server, api_key_env=""))
    yield model
    model.close()


def test_the_server_gives_tokens_and_logprobs(endpoint, reference):
    requests = [chat(words) for words in WORDS]
    completions = endpoint.generate(requests)
    for request, completion in zip(requests, completions, strict=True):
        prompt = reference.prompt(request)
        assert completion.tokens == reference.greedy(prompt, GREEDY.max_tokens)
        assert completion.prompt_tokens == len(prompt)
        assert completion.finish_reason == ("length" if len(completion.tokens) == GREEDY.max_tokens else "stop")
        assert completion.weight_version.startswith("tiny")
        assert_logprobs_are_those_of(reference, prompt, completion)
    usage = endpoint.meter.usage
    assert usage.requests == 4
    assert usage.completion_tokens == sum(len(c.tokens) for c in completions)
    assert usage.unreported_tokens == usage.errors == 0


def test_the_server_takes_prompts_of_tokens(endpoint, reference):
    prompt = reference.prompt(chat(WORDS[0]))
    (completion,) = endpoint.generate([Request(tokens=tuple(prompt), sampling=GREEDY)])
    assert completion.tokens == reference.greedy(prompt, GREEDY.max_tokens)
    assert_logprobs_are_those_of(reference, prompt, completion)


def test_the_server_keeps_to_seeds(endpoint, reference):
    requests = [chat(WORDS[0], DRAWN, seed=seed) for seed in range(8)]
    first = endpoint.generate(requests)
    assert [c.tokens for c in endpoint.generate(requests[::-1])] == [c.tokens for c in first[::-1]]
    assert len({c.tokens for c in first}) > 4
    assert_logprobs_are_those_of(reference, reference.prompt(requests[0]), first[0])


def test_the_server_refuses_one_prompt_and_answers_the_others(endpoint):
    completions = endpoint.generate([chat(WORDS[0]), chat("far too long " * 40)])
    assert [c.finish_reason for c in completions] == ["length", "error"]
    assert "HTTP 400" in completions[1].error


def test_the_server_is_asked_for_a_model_that_it_has_not(vllm_server):
    model = OpenAIModel(OpenAISettings(model="large", base_url=vllm_server, api_key_env=""))
    with pytest.raises(LanguageModelError, match="no model 'large'; it serves: tiny"):
        model.generate([chat(WORDS[0])])
    model.close()


# --- in a Ray actor, and what is left afterwards


def test_it_answers_inside_a_ray_actor(tiny_llama, vllm_environment, reference):
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        actor = ray_actor(settings(tiny_llama[0]), weight_version="v0")
        request = chat(WORDS[0])
        (completion,) = ray.get(actor.generate.remote([request]), timeout=180)
        assert completion.tokens == reference.greedy(reference.prompt(request), GREEDY.max_tokens)
        ray.get(actor.close.remote(), timeout=60)
    finally:
        ray.shutdown()
