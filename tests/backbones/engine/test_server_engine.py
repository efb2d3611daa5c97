"""The server with the real engine behind it: what clients are told is what the engine says."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import httpx
import pytest

from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.backbones.loading import load
from nlrl.backbones.registry import BUNDLED

from .fake_engine import FakeEngine, alternatives, game_tokenizer, logprob_of
from .serving import Running, serving
from .test_server import post_slowly, wait_until

LM_EVAL = os.environ.get("NLRL_LM_EVAL_PYTHON", "")
"""A Python that has lm-evaluation-harness with its `api` extra (see docs/serving.md)."""
CHAT = [{"role": "user", "content": "a b c"}]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def running(engine_of):
    with serving(engine_of("transformer", max_rows=8, weight_version="v1")) as server:
        yield server


def test_a_chat_is_answered_as_the_engine_answers_it(running):
    request = Request(messages=(Message("user", "a b c"),), sampling=Sampling(max_tokens=12, top_logprobs=2), seed=5)
    (said,) = running.engine.generate([request])
    answer = running.openai().chat.completions.create(
        model="native", messages=CHAT, max_tokens=12, seed=5, logprobs=True, top_logprobs=2
    )
    entries = answer.choices[0].logprobs.content
    assert answer.choices[0].message.content == said.text
    assert [entry.logprob for entry in entries] == pytest.approx(said.logprobs, abs=1e-5)
    told = [[top.logprob for top in entry.top_logprobs] for entry in entries]
    assert told == [pytest.approx([value for _, value in top], abs=1e-5) for top in said.top_logprobs]
    assert answer.system_fingerprint == "v1"


@pytest.mark.parametrize("stop", [None, ["e", " g"]])
def test_a_stream_of_the_engine_is_its_answer(running, stop):
    client = running.openai()
    options = {
        "model": "native",
        "prompt": ["a b", "c"],
        "max_tokens": 30,
        "n": 2,
        "seed": 1,
        "logprobs": 0,
        "stop": stop,
    }
    whole, texts, logprobs = client.completions.create(**options), {}, {}
    for chunk in client.completions.create(stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            logprobs.setdefault(choice.index, []).extend(choice.logprobs.token_logprobs)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    for choice in whole.choices:
        assert logprobs[choice.index] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-5)


def test_constraints_hold_and_bad_ones_are_named(running):
    client, schema = running.openai(), {"type": "object", "properties": {"m": {"enum": ["a", "b"]}}, "required": ["m"]}
    schema["additionalProperties"] = False
    chosen = client.chat.completions.create(
        model="native", messages=CHAT, extra_body={"guided_choice": ["+0.10", "a b"]}
    )
    assert chosen.choices[0].message.content in ("+0.10", "a b")
    format = {"type": "json_schema", "json_schema": {"name": "move", "schema": schema}}
    formed = client.chat.completions.create(model="native", messages=CHAT, response_format=format)
    assert json.loads(formed.choices[0].message.content)["m"] in ("a", "b")
    refused = httpx.post(f"{running.url}/v1/completions", json={"prompt": "a", "guided_regex": "("})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "guided_regex")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_leaves_no_row_in_the_engine(running, stream):
    def figure(name):
        return running.engine.metrics()[f"requests_{name}"]

    body = {"n": 512, "ignore_eos": True, "stream": stream, "max_tokens": 100, "stop": ["never said"]}
    with pytest.raises(httpx.ReadTimeout):
        post_slowly(running, body)
    wait_until(lambda: figure("cancelled_total") and figure("running") == figure("waiting") == 0)
    assert figure("cancelled_total") + figure("completed_total") <= 512
    assert running.openai().chat.completions.create(model="native", messages=CHAT, max_tokens=3).choices


# -- lm-evaluation-harness ---------------------------------------------------------------------------------------------
TASKS = {
    "nlrl_choices": """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "nlrl_answers": """
output_type: generate_until
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 12, temperature: 0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}
QUESTIONS = [
    {"text": "best_move:", "choices": ["5", "a1", "draw é"], "label": 0, "answer": "5"},
    {"text": "final_evaluation:", "choices": ["+0.42", "win now"], "label": 1, "answer": "x"},
]


def evaluate(running: Running, model: str, tokenizer: Path, folder: Path, tokenized: bool) -> dict[str, list[dict]]:
    """Samples of each task, as the harness logs them."""
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}\ntest_split: test\n"
    for name, task in TASKS.items():
        (folder / f"{name}.yaml").write_text(f'task: {name}\n{data}doc_to_text: "{{{{text}}}}"{task}')
    arguments = f"base_url={running.url}/v1/completions,model={model},tokenizer={tokenizer},max_length=512"
    arguments += f",tokenized_requests={tokenized},num_concurrent={1 if tokenized else 4}"
    command = [LM_EVAL, "-m", "lm_eval", "--model", "local-completions", "--model_args", arguments]
    command += ["--include_path", str(folder), "--tasks", ",".join(TASKS), "--log_samples", "--output_path"]
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "NO_PROXY": "127.0.0.1",
    }
    done = subprocess.run(
        [*command, str(folder / "out")],
        env=os.environ | offline,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {
        name: [json.loads(line) for path in (folder / "out").rglob(f"samples_{name}_*") for line in path.open()]
        for name in TASKS
    }


def told(sample: dict) -> list[tuple[float, bool]]:
    return [(float(reply[0][0]), reply[0][1] == "True") for reply in sample["resps"]]


@pytest.mark.slow
@pytest.mark.skipif(not LM_EVAL, reason="NLRL_LM_EVAL_PYTHON names no Python with lm-evaluation-harness")
@pytest.mark.parametrize("tokenized", [True, False])
def test_lm_evaluation_harness_reads_what_the_engine_says(tmp_path, tokenized):
    engine, tokenizer = FakeEngine(lambda request: "5"), game_tokenizer()
    with serving(engine) as running:
        samples = evaluate(running, "tiny", BUNDLED / "transformer-base", tmp_path, tokenized)
    for question, sample in zip(QUESTIONS, samples["nlrl_choices"], strict=True):
        for choice, (logprob, greedy) in zip(question["choices"], told(sample), strict=True):
            context = tokenizer(question["text"])["input_ids"]
            tokens = tokenizer(f"{question['text']} {choice}")["input_ids"][len(context) :]
            assert logprob == sum(map(logprob_of, tokens))
            assert greedy == all(alternatives(token, 1)[0][0] == token for token in tokens)
    assert [sample["exact_match"] for sample in samples["nlrl_answers"]] == [1.0, 0.0]


@pytest.mark.slow
@pytest.mark.skipif(not LM_EVAL, reason="NLRL_LM_EVAL_PYTHON names no Python with lm-evaluation-harness")
def test_lm_evaluation_harness_scores_a_bundled_model(tmp_path):
    model, tokenizer = load("transformer-base")
    with Engine(model, tokenizer, name="transformer-base", memory_bytes=1 << 27) as engine:
        with serving(engine) as running:
            samples = evaluate(running, "transformer-base", BUNDLED / "transformer-base", tmp_path, True)
        for question, sample in zip(QUESTIONS, samples["nlrl_choices"], strict=True):
            context = tokenizer(question["text"])["input_ids"]
            wholes = [tokenizer(f"{question['text']} {choice}")["input_ids"] for choice in question["choices"]]
            scores = engine.score_tokens([context] * len(wholes), [whole[len(context) :] for whole in wholes])
            for score, (logprob, greedy) in zip(scores, told(sample), strict=True):
                assert logprob == pytest.approx(sum(one.logprob for one in score), abs=1e-4)
                assert greedy == all(one.likeliest for one in score)
        sampling = Sampling(temperature=0, max_tokens=12, stop=("\n",))
        prompts = [tuple(tokenizer(question["text"])["input_ids"]) for question in QUESTIONS]
        answers = engine.generate([Request(tokens=prompt, sampling=sampling) for prompt in prompts])
        assert [sample["resps"][0][0] for sample in samples["nlrl_answers"]] == [answer.text for answer in answers]


# -- scoring -----------------------------------------------------------------------------------------------------------
def test_an_echo_says_what_the_engine_scores(running):
    tokens = [5, 9, 14, 7, 11]
    answer = running.openai().completions.create(model="native", prompt=tokens, echo=True, logprobs=2, max_tokens=1)
    lists = answer.choices[0].logprobs
    (scores,) = running.engine.score_tokens([tokens[:1]], [tokens[1:]])
    assert lists.token_logprobs[1:5] == pytest.approx([one.logprob for one in scores], abs=1e-5)
    best = [max(top.values()) for top in lists.top_logprobs[1:5]]
    found = [value == top for value, top in zip(lists.token_logprobs[1:5], best, strict=True)]
    assert found == [one.likeliest for one in scores]
