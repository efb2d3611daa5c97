"""vLLM for real, on a CPU: in this process, in a Ray actor, and as a server that the endpoint client talks to.

Runs where vllm is installed (`make test-vllm`), on tiny random models. What is asked of vLLM is asked of the native
engine too, on the same checkpoint; transformers is the reference for tokens and log-probabilities.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import pytest

from nlrl.backbones.language_model import (
    Completion,
    Constraint,
    LanguageModel,
    LanguageModelError,
    Message,
    Request,
    Sampling,
)
from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings
from nlrl.backbones.tuning.weights import TunedWeights
from nlrl.backbones.vllm_model import VLLMModel, VLLMSettings, ray_actor
from nlrl.errors import NLRLError

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here (make test-vllm)")

GREEDY = Sampling(temperature=0.0, max_tokens=16)
DRAWN = Sampling(temperature=1.0, max_tokens=16)
WORDS = ("Hi there", "a longer prompt, with some more words", "42", "?")
LONG = "so long that vLLM caches its prefix; " * 5
MOVES = Constraint("choice", ("best_move: 1", "best_move: 5", "best_move: 9"))
DATE = Constraint("regex", "[a-c]{3,5}-[0-9]{2}")
SCHEMA = Constraint(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {"move": {"type": "integer", "minimum": 1, "maximum": 9}, "sure": {"type": "boolean"}},
            "required": ["move", "sure"],
            "additionalProperties": False,
        }
    ),
)
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

    def scores(self, prompt: Sequence[int], tokens: Sequence[int]):
        """Log-probabilities of the whole vocabulary in the place of each token, `(tokens, vocab)`."""
        import torch

        with torch.no_grad():
            logits = self.model(torch.tensor([[*prompt, *tokens]])).logits[0]
        return logits.float().log_softmax(-1)[len(prompt) - 1 : -1]

    def logprobs(self, prompt: Sequence[int], tokens: Sequence[int]) -> list[float]:
        return [row[token].item() for row, token in zip(self.scores(prompt, tokens), tokens, strict=True)]


@pytest.fixture(scope="module")
def reference(tiny_llama) -> Reference:
    return Reference(tiny_llama[0])


def assert_logprobs_are_those_of(reference: Reference, prompt: Sequence[int], completion: Completion) -> None:
    assert len(completion.logprobs) == len(completion.tokens) > 0
    assert completion.logprobs == pytest.approx(reference.logprobs(prompt, completion.tokens), abs=CLOSE)


# --- in this process: vLLM, and the native engine beside it


@pytest.fixture(scope="module")
def engine(tiny_llama, vllm_environment) -> Iterator[VLLMModel]:
    model = VLLMModel(settings(tiny_llama[0]), weight_version="v0")
    yield model
    model.close()


def native_engine(model, folder: Path, version: str = "v0"):
    from transformers import AutoTokenizer

    from nlrl.backbones.engine import Engine

    return Engine(model, AutoTokenizer.from_pretrained(folder), max_rows=16, weight_version=version)


@pytest.fixture(scope="module")
def native(tiny_llama):
    from nlrl.backbones.transformer.llama import from_hf_llama

    with native_engine(from_hf_llama(tiny_llama[0]), tiny_llama[0]) as model:
        yield model


@pytest.fixture(params=["native", "engine"], ids=["native", "vllm"])
def lm(request):
    """Either engine, on the first tiny checkpoint."""
    return request.getfixturevalue(request.param)


def exchange(lm, folder: Path, version: str) -> None:
    """Replaces the weights by those of a checkpoint."""
    from nlrl.backbones.transformer.llama import from_hf_llama

    if isinstance(lm, VLLMModel):
        lm.load_checkpoint(folder, version)
    else:
        lm.load_weights(from_hf_llama(folder).state_dict(), version)


def test_greedy_tokens_are_those_of_transformers(lm, reference):
    requests = [chat(words) for words in (*WORDS, LONG)]
    for request, completion in zip(requests, lm.generate(requests), strict=True):
        prompt = reference.prompt(request)
        assert completion.tokens == reference.greedy(prompt, GREEDY.max_tokens)
        assert completion.text == reference.tokenizer.decode(completion.tokens, skip_special_tokens=True)
        assert completion.prompt_tokens == len(prompt)
        assert completion.weight_version == lm.weight_version == "v0"
    assert isinstance(lm, LanguageModel)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 2.0])
def test_logprobs_are_those_at_temperature_one(lm, reference, temperature):
    sampling = Sampling(temperature=temperature, top_k=20, top_p=0.9, max_tokens=16)
    request = chat(WORDS[1], sampling, seed=3)
    assert_logprobs_are_those_of(reference, reference.prompt(request), lm.generate([request])[0])


def test_the_likeliest_tokens_are_told(lm, reference):
    request = chat(WORDS[1], Sampling(max_tokens=8, top_logprobs=3), seed=1)
    (completion,) = lm.generate([request])
    best = reference.scores(reference.prompt(request), completion.tokens).topk(3)
    assert [[token for token, _ in place] for place in completion.top_logprobs] == best.indices.tolist()
    found = [[logprob for _, logprob in place] for place in completion.top_logprobs]
    assert found == [pytest.approx(row, abs=CLOSE) for row in best.values.tolist()]


def test_unlikely_tokens_are_left_out_at_the_requests_temperature(lm):
    def shares(min_p: float) -> list[float]:
        """How likely each drawn token was, at temperature 2, beside the likeliest one."""
        sampling = Sampling(temperature=2.0, min_p=min_p, max_tokens=16, top_logprobs=1, ignore_end=True)
        answers = lm.generate([chat(WORDS[i % 4], sampling, seed=i) for i in range(8)])
        best = [place[0][1] for answer in answers for place in answer.top_logprobs]
        drawn = [logprob for answer in answers for logprob in answer.logprobs]
        return [math.exp((one - top) / 2) for one, top in zip(drawn, best, strict=True)]

    assert min(shares(0.0)) < 0.1
    kept = shares(0.3)
    assert min(kept) >= 0.3 - CLOSE
    assert min(kept) ** 2 < 0.25, "at temperature 1 they would be left out"


def test_scores_are_those_of_transformers_up_to_the_end_of_the_context(lm, reference):
    prompt = reference.prompt(chat(WORDS[1]))
    continuations = [[7, 30, 2, 45], [], [9] * (256 - len(prompt))]
    found = lm.score([prompt] * 3, continuations)
    for scores, tokens in zip(found, continuations, strict=True):
        assert scores == pytest.approx(reference.logprobs(prompt, tokens) if tokens else [], abs=CLOSE)


def test_tokens_are_taken_as_they_are(lm, reference):
    request = chat(WORDS[0])
    prompt = tuple(reference.prompt(request))
    by_messages, by_tokens = lm.generate([request, Request(tokens=prompt, sampling=GREEDY)])
    assert by_messages.tokens == by_tokens.tokens


def test_answers_depend_on_their_seed_and_not_on_their_batch(lm):
    requests = [chat(WORDS[i % 4], DRAWN, seed=i) for i in range(16)]
    together = lm.generate(requests)
    assert [lm.generate([request])[0].tokens for request in requests[:4]] == [c.tokens for c in together[:4]]
    assert [c.tokens for c in lm.generate(requests[::-1])] == [c.tokens for c in together[::-1]]
    reseeded = lm.generate([chat(WORDS[0], DRAWN, seed=seed) for seed in range(8)])
    assert len({c.tokens for c in reseeded}) > 4


def test_answers_end_where_they_should(lm, reference):
    (whole,) = lm.generate([chat(WORDS[0], Sampling(temperature=0.0, max_tokens=12))])
    assert whole.finish_reason == "length"
    assert len(whole.tokens) == 12
    stop = whole.text[4]
    (cut,) = lm.generate([chat(WORDS[0], Sampling(temperature=0.0, max_tokens=12, stop=("zz", stop)))])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert reference.tokenizer.decode(cut.tokens) == cut.text + stop
    assert len(cut.logprobs) == len(cut.tokens)
    drawn = lm.generate([chat(WORDS[0], Sampling(max_tokens=200), seed=seed) for seed in range(16)])
    ended = [c for c in drawn if c.finish_reason == "stop"]
    assert ended
    assert all(c.tokens[-1] == reference.tokenizer.eos_token_id for c in ended)


def test_an_end_token_may_be_ignored(lm, reference):
    sampling = Sampling(max_tokens=200, ignore_end=True)
    answers = lm.generate([chat(WORDS[0], sampling, seed=seed) for seed in range(8)])
    assert [(len(c.tokens), c.finish_reason) for c in answers] == [(200, "length")] * 8
    assert any(reference.tokenizer.eos_token_id in c.tokens[:-1] for c in answers)


def test_no_tokens_wanted_no_tokens_given(lm):
    (completion,) = lm.generate([chat(WORDS[0], Sampling(max_tokens=0))])
    assert (completion.text, completion.tokens, completion.finish_reason) == ("", (), "length")


# --- constraints


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_constrained_answers_obey_and_their_logprobs_are_unmasked(lm, reference, temperature):
    bound = [MOVES, DATE, SCHEMA, None]
    requests = [
        chat(WORDS[i], Sampling(temperature, max_tokens=64, constraint=constraint, top_logprobs=1), seed=i)
        for i, constraint in enumerate(bound)
    ]
    answers = lm.generate(requests)
    move, date, schema, free = answers
    assert move.text in MOVES.value
    assert re.fullmatch(DATE.value, date.text)
    assert sorted(json.loads(schema.text)) == ["move", "sure"]
    assert {answer.finish_reason for answer in (move, date, schema)} == {"stop"}
    for request, answer in zip(requests, answers, strict=True):
        assert_logprobs_are_those_of(reference, reference.prompt(request), answer)
    assert any(place[0][0] != token for place, token in zip(move.top_logprobs, move.tokens, strict=True))
    assert free.tokens == lm.generate(requests[3:])[0].tokens


def test_both_engines_allow_the_same_tokens(native, engine):
    requests = [
        chat(words, Sampling(temperature=0.0, max_tokens=64, constraint=constraint))
        for words in WORDS
        for constraint in (MOVES, DATE, SCHEMA)
    ]
    answers = [[completion.tokens for completion in lm.generate(requests)] for lm in (native, engine)]
    assert answers[0] == answers[1]


def test_constrained_draws_follow_the_renormalised_distribution(lm, reference):
    texts, n = ("1", "5", "9", "x"), 400
    sampling = Sampling(temperature=2.0, max_tokens=4, constraint=Constraint("choice", texts))
    request = chat(WORDS[2], sampling)
    ids = [reference.tokenizer.convert_tokens_to_ids(text) for text in texts]
    expected = (reference.scores(reference.prompt(request), [0])[0, ids] / 2).softmax(-1).tolist()
    drawn = Counter(answer.text for answer in lm.generate([request.with_seed(seed) for seed in range(n)]))
    assert max(expected) < 0.9, "else this would show nothing"
    for text, share in zip(texts, expected, strict=True):
        assert drawn[text] / n == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / n) + 1e-3)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(min_p=2.0), "min_p"),
        (Sampling(constraint=Constraint("regex", "(")), "constraint regex"),
        (Sampling(constraint=Constraint("choice", ())), "constraint choice"),
        (Sampling(constraint=Constraint("json_schema", "{")), "constraint json_schema"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name_before_anything_is_answered(lm, sampling, named):
    with pytest.raises(NLRLError, match=named):
        lm.generate([chat(WORDS[0]), chat(WORDS[0], sampling)])


def test_a_prompt_without_room_is_data_and_the_others_are_answered(lm):
    too_long = Request(tokens=(5,) * 300, sampling=GREEDY)
    completions = lm.generate([chat(WORDS[0]), too_long, chat(WORDS[1])])
    assert [c.finish_reason == "error" for c in completions] == [False, True, False]
    assert "256" in completions[1].error


# --- weights


def test_exchanged_weights_answer_like_a_fresh_model(lm, reference, tiny_llama):
    requests = [chat(words) for words in (*WORDS, LONG)]
    before = lm.generate(requests)
    other = Reference(tiny_llama[1])
    try:
        exchange(lm, tiny_llama[1], version="v1")
        after = lm.generate(requests)
        assert [c.tokens for c in after] == [other.greedy(other.prompt(r), GREEDY.max_tokens) for r in requests]
        assert {c.weight_version for c in after} == {lm.weight_version} == {"v1"}
        assert_logprobs_are_those_of(other, other.prompt(requests[0]), after[0])
    finally:
        exchange(lm, tiny_llama[0], version="v0")
    assert [c.tokens for c in lm.generate(requests)] == [c.tokens for c in before]


def test_weights_are_never_exchanged_under_an_answer(lm, tiny_llama, reference):
    references = {"v0": reference, "v1": Reference(tiny_llama[1])}
    request = chat(WORDS[1], Sampling(temperature=0.0, max_tokens=64))
    right = {version: r.greedy(r.prompt(request), 64) for version, r in references.items()}
    found: list[Completion] = []
    threads = [threading.Thread(target=lambda: found.extend(lm.generate([request] * 4))) for _ in range(6)]
    for i, thread in enumerate(threads):
        thread.start()
        exchange(lm, tiny_llama[(i + 1) % 2], version=f"v{(i + 1) % 2}")
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert all(completion.tokens == right[completion.weight_version] for completion in found)
    assert lm.weight_version == "v0"


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


def test_an_adapter_needs_room(engine):
    with pytest.raises(NLRLError, match="max_lora_rank"):
        engine.load_weights(TunedWeights({}, "{}"), "v9")


# --- several models, and other architectures

CLEAR = 0.25
"""Where the likeliest token leads the second by so much, in nats, bfloat16 and float32 choose the same one."""


@pytest.fixture(scope="module")
def mambas(tiny_llama, tmp_path_factory):
    """Folder: the model in it. A Bi-Mamba, exported with dense matrices, and a Mamba-2 of the same shape."""
    import torch
    from transformers import AutoTokenizer

    from nlrl.backbones import BiMambaConfig, BiMambaForCausalLM, to_hf_mamba2

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama[0])
    sizes = dict(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, head_dim=64, state_size=64,
        tie_word_embeddings=False, initializer_range=0.3, eos_token_id=2,
    )  # fmt: skip
    models = {}
    for binary in (True, False):
        torch.manual_seed(0)
        folder = tmp_path_factory.mktemp("mamba") / "model"
        models[folder] = BiMambaForCausalLM(BiMambaConfig(binary=binary, **sizes)).eval()
        to_hf_mamba2(models[folder], folder, tokenizer)
    return models


@pytest.fixture(scope="module")
def mamba_engine(mambas, vllm_environment) -> Iterator[VLLMModel]:
    """vLLM's Mamba-2, which on a CPU computes in bfloat16 only, beside the Llama of `engine`."""
    model = VLLMModel(settings(next(iter(mambas))).model_copy(update={"dtype": "bfloat16"}))
    yield model
    model.close()


def texts_of(completions: Sequence[Completion]) -> tuple[str, ...]:
    return tuple(completion.text for completion in completions)


def greedy_until_unclear(completion: Completion) -> tuple[int, ...]:
    leads = [best[1] - second[1] for best, second in completion.top_logprobs]
    return completion.tokens[: next((i for i, lead in enumerate(leads) if lead < CLEAR), len(leads))]


def test_greedy_answers_of_both_engines_agree_for_the_control(native, engine):
    ragged = [
        Request(tokens=tuple(range(5, 6 + 9 * i)), sampling=Sampling(temperature=0.0, max_tokens=48)) for i in range(8)
    ]
    answers = [[completion.tokens for completion in lm.generate(ragged)] for lm in (native, engine)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize("binary", [True, False], ids=["bi-mamba", "mamba-2"])
def test_greedy_answers_of_both_engines_agree_for_mambas(binary, mambas, mamba_engine, tiny_llama):
    """Both Mambas in one engine of vLLM, one after the other: they have one shape."""
    folder, model = next((f, m) for f, m in mambas.items() if m.config.binary == binary)
    mamba_engine.load_checkpoint(folder, folder.parent.name)
    sampling = Sampling(temperature=0.0, max_tokens=24, top_logprobs=2)
    requests = [
        Request(tokens=tuple(5 + (7 * i + j * j) % 90 for j in range(3 + 5 * i)), sampling=sampling) for i in range(24)
    ]
    with native_engine(model, tiny_llama[0]) as native:
        clear = [greedy_until_unclear(completion) for completion in native.generate(requests)]
    theirs = [
        completion.tokens[: len(mine)] for completion, mine in zip(mamba_engine.generate(requests), clear, strict=True)
    ]
    assert theirs == clear
    assert sum(map(len, clear)) > 48, "else this would show little"
    assert len({tokens for tokens in clear if tokens}) > 8


def test_the_logprobs_of_a_served_bi_mamba_are_its_own(mambas, mamba_engine):
    folder, model = next((f, m) for f, m in mambas.items() if m.config.binary)
    mamba_engine.load_checkpoint(folder, folder.parent.name)
    reference = Reference(folder)
    reference.model = model
    requests = [chat(words, DRAWN, seed=7) for words in (*WORDS, LONG)]
    for request, completion in zip(requests, mamba_engine.generate(requests), strict=True):
        expected = reference.logprobs(reference.prompt(request), completion.tokens)
        assert completion.logprobs == pytest.approx(expected, abs=0.15)
        assert max(expected) - min(expected) > 1, "else this would show nothing"


def test_several_models_answer_side_by_side(native, engine, mamba_engine, mambas, tiny_llama):
    """Two engines of vLLM; two weight sets of the native one, and another model in a second."""
    from nlrl.backbones.transformer.llama import from_hf_llama

    requests = [chat(words) for words in WORDS]
    native.load_weights(from_hf_llama(tiny_llama[1]).state_dict(), "v1", name="other")
    with native_engine(next(iter(mambas.values())), tiny_llama[0]) as second:
        for asked in (
            [engine.generate, mamba_engine.generate],
            [native.generate, lambda some: native.generate(some, weights="other"), second.generate],
        ):
            alone = [ask(requests) for ask in asked]
            with ThreadPoolExecutor() as pool:
                together = list(pool.map(lambda ask: ask(requests), asked))
            assert [texts_of(some) for some in together] == [texts_of(some) for some in alone]
            assert len(set(map(texts_of, alone))) == len(asked)


# --- what can go wrong


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
        assert not model.failed
        with pytest.raises(LanguageModelError, match="died"):
            model.generate([chat(WORDS[0])])
        assert model.failed
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
