"""The server keeps OpenAI's interface, seen through OpenAI's own client; the engine behind it is scripted."""

from __future__ import annotations

import json
import threading
import time
from contextlib import ExitStack

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nlrl.backbones.language_model import Completion, Constraint, LanguageModelError, Message, Request, Sampling
from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings
from nlrl.backbones.prompts import PromptEncoder
from nlrl.errors import NLRLError

from .fake_engine import FakeEngine, alternatives, game_tokenizer, logprob_of, says
from .serving import Running, serving

TOKENIZER = game_tokenizer()
CHAT = [{"role": "user", "content": "Which move?"}]
LETTERS = "win é… 5"
"""Has letters that are several tokens each."""


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def start():
    """start(engine, **options of create_app) runs a server until the test's end."""
    with ExitStack() as stack:
        yield lambda engine, **options: stack.enter_context(serving(engine, **options))


@pytest.fixture(scope="module")
def shared():
    """A server whose engine answers at once; tests must not count on what it saw before."""
    with serving(FakeEngine(says(LETTERS))) as running:
        yield running


@pytest.fixture
def client(shared):
    return shared.openai()


@pytest.fixture
def engine(shared):
    """The engine behind `client`, which has seen nothing yet."""
    for seen in (shared.engine.requests, shared.engine.weights, shared.engine.clients):
        seen.clear()
    return shared.engine


def encoded(text):
    return TOKENIZER(text)["input_ids"]


def wait_until(holds, seconds=5.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def post(running, path, body, **options):
    return httpx.post(running.url + path, json=body, timeout=30, **options)


# -- what is asked for -------------------------------------------------------------------------------------------------
def test_a_chat_is_rendered_by_the_models_own_template(client, engine):
    answer = client.chat.completions.create(model="tiny", messages=CHAT)
    (prompt,) = PromptEncoder(TOKENIZER).encode([Request(messages=(Message("user", "Which move?"),))])
    assert engine.requests[0].tokens == prompt
    assert answer.choices[0].message.content == LETTERS
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.system_fingerprint == "v1"
    spoken = len(encoded(LETTERS)) + 1
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == {
        "prompt_tokens": len(prompt),
        "completion_tokens": spoken,
    }


def test_messages_may_come_in_parts_and_from_developers(client, engine):
    parts = [{"type": "text", "text": "Which"}, {"type": "text", "text": "move?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
    client.chat.completions.create(model="tiny", messages=messages)
    chat = (Message("system", "Be brief."), Message("user", "Which\nmove?"))
    assert engine.requests[0].tokens == PromptEncoder(TOKENIZER).encode([Request(messages=chat)])[0]


def test_every_sampling_field_arrives(client, engine):
    extra = {"top_k": 5, "min_p": 0.1, "ignore_eos": True, "metadata": {"a": "b"}, "store": True}
    client.chat.completions.create(
        model="critic", messages=CHAT, temperature=0.5, top_p=0.75, max_completion_tokens=9, stop=["a", "b"], seed=11,
        logprobs=True, top_logprobs=3, user="me", extra_body=extra,
    )  # fmt: skip
    expected = Sampling(0.5, 5, 0.75, 0.1, 9, ("a", "b"), ignore_end=True, top_logprobs=3)
    assert (engine.requests[0].sampling, engine.requests[0].seed) == (expected, 11)
    assert (engine.weights, engine.clients) == (["critic"], ["me"])


def test_what_is_left_out_or_null_has_openais_defaults(shared, engine):
    nothing = {"temperature": None, "stop": None, "n": None, "tools": None, "top_k": -1}
    post(shared, "/v1/chat/completions", {"messages": CHAT, **nothing}).raise_for_status()
    post(shared, "/v1/completions", {"prompt": "Which move?", **nothing}).raise_for_status()
    chat, plain = (request.sampling for request in engine.requests)
    assert chat == Sampling(max_tokens=1024 - len(engine.requests[0].tokens))
    assert plain == Sampling(max_tokens=16)
    assert len({request.seed for request in engine.requests}) == 2


@pytest.mark.parametrize(
    ("prompt", "count"),
    [("win", 1), (["win", "draw"], 2), (encoded("win"), 1), ([encoded("win"), encoded("draw")], 2)],
    ids=["text", "texts", "tokens", "lists of tokens"],
)
def test_prompts_come_as_text_or_tokens_one_or_many(client, engine, prompt, count):
    answer = client.completions.create(model="tiny", prompt=prompt, n=2, seed=3)
    expected = [tuple(encoded(text)) for text in ("win", "draw")[:count] for _ in range(2)]
    assert sorted(r.tokens for r in engine.requests) == sorted(expected)
    assert [choice.index for choice in answer.choices] == list(range(2 * count))


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"guided_choice": ["a1", "b2"]}, Constraint("choice", ("a1", "b2"))),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_json": {"type": "array"}}, Constraint("json_schema", '{"type": "array"}')),
        ({"structured_outputs": {"choice": ["a1"]}}, Constraint("choice", ("a1",))),
        ({"structured_outputs": {"regex": "a"}}, Constraint("regex", "a")),
        ({"structured_outputs": {"json": '{"type":"array"}'}}, Constraint("json_schema", '{"type":"array"}')),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_schema", '{"type": "object"}')),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "m", "schema": {"type": "array"}}}},
            Constraint("json_schema", '{"type": "array"}'),
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_constraints_arrive_whatever_they_are_called(client, engine, fields, constraint):
    client.chat.completions.create(model="tiny", messages=CHAT, extra_body=fields)
    assert engine.requests[0].sampling.constraint == constraint


# -- answers -----------------------------------------------------------------------------------------------------------
def test_n_answers_have_seeds_of_their_own_that_repeat(start):
    client = start(FakeEngine(lambda request: f"answer {request.seed}")).openai()

    def ask(n, seed):
        answer = client.chat.completions.create(model="tiny", messages=CHAT, n=n, seed=seed)
        return [choice.message.content for choice in answer.choices]

    three = ask(3, 5)
    assert three == ask(3, 5)
    assert len(set(three)) == 3
    assert three[:1] == ask(1, 5) == ["answer 5"]
    assert not set(three) & set(ask(3, 6))


def chat_stream(client, **options):
    """(text, reason, entries of log-probabilities) by index, and the usage."""
    texts, reasons, entries, usage = {}, {}, {}, None
    for chunk in client.chat.completions.create(model="tiny", messages=CHAT, stream=True, **options):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
            if choice.logprobs:
                entries.setdefault(choice.index, []).extend(e.model_dump() for e in choice.logprobs.content or [])
    return texts, reasons, entries, usage


@pytest.mark.parametrize("wanted", [{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 2}], ids=str)
def test_a_streamed_chat_says_the_same(client, wanted):
    options = {"n": 2, "seed": 1, "max_tokens": 20} | wanted
    whole = client.chat.completions.create(model="tiny", messages=CHAT, **options)
    texts, reasons, entries, usage = chat_stream(client, stream_options={"include_usage": True}, **options)
    for choice in whole.choices:
        assert (texts[choice.index], reasons[choice.index]) == (choice.message.content, choice.finish_reason)
        told = [entry.model_dump() for entry in choice.logprobs.content] if choice.logprobs else None
        assert entries.get(choice.index) == told
    assert usage == whole.usage


@pytest.mark.parametrize("logprobs", [None, 0, 2])
@pytest.mark.parametrize("echo", [False, True])
def test_a_streamed_completion_says_the_same(client, logprobs, echo):
    options = {"prompt": ["win é", "draw"], "logprobs": logprobs, "echo": echo, "n": 2, "seed": 1}
    whole = client.completions.create(model="tiny", **options)
    texts, reasons, lists = {}, {}, {}
    for chunk in client.completions.create(model="tiny", stream=True, **options):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        for key, values in (choice.logprobs.model_dump() if choice.logprobs else {}).items():
            lists.setdefault(choice.index, {}).setdefault(key, []).extend(values)
    for choice in whole.choices:
        assert (texts[choice.index], reasons[choice.index]) == (choice.text, choice.finish_reason)
        assert lists.get(choice.index) == (choice.logprobs.model_dump() if choice.logprobs else None)


def test_a_stream_ends_with_done_and_tells_no_usage_unasked(shared):
    lines = post(shared, "/v1/chat/completions", {"messages": CHAT, "stream": True}).text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


def test_log_probabilities_of_a_chat_spell_its_text_in_bytes(client):
    answer = client.chat.completions.create(model="tiny", messages=CHAT, logprobs=True, top_logprobs=2)
    entries = answer.choices[0].logprobs.content
    assert bytes(byte for entry in entries[:-1] for byte in entry.bytes).decode() == LETTERS
    assert entries[-1].token == "<eos>"
    tokens = [*encoded(LETTERS), TOKENIZER.eos_token_id]
    assert [entry.logprob for entry in entries] == [logprob_of(token) for token in tokens]
    for token, entry in zip(tokens, entries, strict=True):
        assert [top.logprob for top in entry.top_logprobs] == [value for _, value in alternatives(token, 2)]
    assert any(entry.token.startswith("bytes:\\x") for entry in entries)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_an_echo_scores_the_prompt_as_evaluation_harnesses_read_it(client, max_tokens):
    """lm-evaluation-harness cuts off the context and the drawn token, sums up, and compares each with the likeliest."""
    prompt = [encoded("win draw loss"), encoded("é")]
    answer = client.completions.create(model="tiny", prompt=prompt, max_tokens=max_tokens, logprobs=1, echo=True)
    for tokens, choice in zip(prompt, answer.choices, strict=True):
        lists = choice.logprobs
        assert len(lists.tokens) == len(lists.top_logprobs) == len(lists.text_offset) == len(tokens) + max_tokens
        assert lists.token_logprobs[: len(tokens)] == [None, *map(logprob_of, tokens[1:])]
        likeliest = [lists.token_logprobs[i] == max(lists.top_logprobs[i].values()) for i in range(1, len(tokens))]
        assert likeliest == [token % 2 == 0 for token in tokens[1:]]
        assert choice.text.startswith(TOKENIZER.decode(tokens))
    assert answer.usage.completion_tokens == 2 * max_tokens


def test_an_echo_without_log_probabilities_is_the_prompt_as_it_came(client):
    answer = client.completions.create(model="tiny", prompt="win é", echo=True, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].logprobs) == ("win é", None)


def test_offsets_count_letters(client):
    lists = client.completions.create(model="tiny", prompt="x", logprobs=0).choices[0].logprobs
    whole = [(name, at) for name, at in zip(lists.tokens, lists.text_offset, strict=True) if name[:6] != "bytes:"]
    assert all(LETTERS[at:].startswith(name) for name, at in whole if name != "<eos>")
    assert whole[-1] == ("<eos>", len(LETTERS))


def test_our_own_client_gets_tokens_and_log_probabilities(shared):
    model = OpenAIModel(OpenAISettings(model="tiny", base_url=f"{shared.url}/v1", api_key_env="", max_retries=0))
    tokens = tuple(encoded("win"))
    chat, plain = model.generate([Request(messages=(Message("user", "Well?"),)), Request(tokens=tokens)])
    model.close()
    for answer in (chat, plain):
        assert answer.tokens == (*encoded(LETTERS), TOKENIZER.eos_token_id)
        assert answer.logprobs == tuple(map(logprob_of, answer.tokens))
        assert answer.weight_version == "tiny@v1"
    assert plain.prompt_tokens == len(tokens)


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"best_of": 2}, "best_of"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_regex"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "structured_outputs.grammar"),
        ({"guided_json": 5}, "guided_json"),
    ],
    ids=str,
)
def test_a_bad_field_is_refused_by_name(shared, fields, param):
    answer = post(shared, "/v1/chat/completions", {"messages": CHAT, **fields})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param.split(".")[0].split("[")[0] in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0},
        {"tools": []},
        {"logit_bias": {}},
        {"best_of": 1},
        {"new_field": 5},
        {"n": 2, "best_of": 2},
    ],
    ids=str,
)
def test_fields_that_ask_for_nothing_are_let_through(shared, fields):
    assert post(shared, "/v1/chat/completions", {"messages": CHAT, **fields}).status_code == 200


@pytest.mark.parametrize(
    ("prompt", "code"),
    [([], None), ([5000], None), ([-1], None), ([[1, "a"]], "value_error"), ([4] * 1024, "context_length_exceeded")],
    ids=["empty", "unknown token", "negative token", "mixed", "too long"],
)
def test_a_prompt_that_cannot_be_is_refused(shared, prompt, code):
    error = post(shared, "/v1/completions", {"prompt": prompt}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", code)


def test_the_client_raises_what_the_status_means(client):
    with pytest.raises(openai.NotFoundError, match="'other' is not served here; these are: tiny, critic") as unknown:
        client.chat.completions.create(model="other", messages=CHAT)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="tiny", messages=CHAT, temperature=-2)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="x")


def test_no_json_and_no_json_type_are_refused(shared):
    broken = httpx.post(f"{shared.url}/v1/completions", content="{", headers={"Content-Type": "application/json"})
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    form = httpx.post(f"{shared.url}/v1/completions", content='{"prompt": "x"}', headers={"Content-Type": "text/plain"})
    assert form.status_code == 400, "a web page could send this without asking"


def test_a_key_is_asked_for_everywhere_but_for_health(start):
    running = start(FakeEngine(), api_key="secret")
    with pytest.raises(openai.AuthenticationError):
        running.openai("wrong").models.list()
    assert [httpx.get(f"{running.url}{path}").status_code for path in ("/health", "/metrics", "/v1/models")] == [
        200,
        401,
        401,
    ]
    assert running.openai("secret").models.list().data[0].id == "tiny"


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(start, announced):
    running = start(FakeEngine(), max_request_bytes=10_000)
    body = json.dumps({"prompt": "x" * 3_000_000}).encode()
    content = body if announced else iter([body[:5_000], body[5_000:]])
    answer = httpx.post(f"{running.url}/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    with pytest.raises(openai.APIStatusError) as error:
        running.openai().completions.create(model="tiny", prompt="x" * 3_000_000)
    assert error.value.status_code == 413


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_and_leaves_nothing_behind(start, stream):
    engine = FakeEngine(delay=0.05, max_queue=2)
    with pytest.raises(openai.RateLimitError) as full:
        start(engine).openai().chat.completions.create(model="tiny", messages=CHAT, n=3, stream=stream)
    assert int(full.value.response.headers["retry-after"]) >= 1
    assert full.value.code == "queue_full"
    wait_until(lambda: engine.running == 0)
    assert engine.cancelled == 2


def refusal(error):
    return FakeEngine(refusal=lambda request: error, fault=lambda request: None)


def fault(outcome):
    return FakeEngine(fault=lambda request: outcome)


@pytest.mark.parametrize(
    ("engine", "status", "param"),
    [
        (refusal(NLRLError("constraint regex '(': no closing bracket")), 400, "guided_regex"),
        (fault(Completion("", finish_reason="error", error="the prompt does not fit into memory")), 400, None),
        (fault(LanguageModelError("the engine is closed")), 503, None),
        (fault(RuntimeError("a secret of the machine")), 500, None),
    ],
    ids=["refused", "answered by an error", "engine gone", "fault"],
)
def test_what_the_engine_cannot_do_has_its_status(start, engine, status, param):
    running = start(engine)
    answer = post(running, "/v1/chat/completions", {"messages": CHAT, "guided_regex": "("})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)
    assert "secret" not in answer.text
    assert httpx.get(f"{running.url}/health").status_code == (503 if status == 503 else 200)


def test_a_stream_that_fails_midway_says_so(start):
    engine = FakeEngine(says("one two three"), fault=lambda request: LanguageModelError("the engine is closed"))
    with pytest.raises(openai.APIError, match="engine is closed"):
        list(start(engine).openai().chat.completions.create(model="tiny", messages=CHAT, stream=True))


# -- clients that leave, servers that stop -----------------------------------------------------------------------------
@pytest.mark.parametrize("body", [{}, {"stream": True}, {"n": 3}, {"guided_choice": ["a"]}], ids=str)
def test_a_client_that_hangs_up_frees_its_places(start, body):
    engine = FakeEngine(says("word " * 100), delay=0.05)
    running = start(engine)
    with pytest.raises(httpx.ReadTimeout):
        post_slowly(running, body)
    wait_until(lambda: engine.running == 0)
    assert engine.cancelled == len(engine.requests) == body.get("n", 1)
    wait_until(lambda: 'status="499"} 1.0' in httpx.get(f"{running.url}/metrics").text)


def post_slowly(running, body):
    """Reads for 0.3 seconds in all, then hangs up."""
    whole = {"messages": CHAT, **body}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=whole, timeout=0.3) as answer:
        end = time.monotonic() + 0.3
        for _ in answer.iter_bytes():
            if time.monotonic() > end:
                raise httpx.ReadTimeout("long enough")


def test_an_answer_under_way_is_finished_before_the_server_stops():
    engine = FakeEngine(says("one two three"), delay=0.05)
    running, answers = Running(engine), []
    ask = threading.Thread(target=lambda: answers.append(post(running, "/v1/completions", {"prompt": "x"})))
    ask.start()
    wait_until(lambda: engine.running == 1)
    running.stop()
    ask.join(10)
    assert answers[0].json()["choices"][0]["text"] == "one two three"
    assert not running.thread.is_alive()


# -- what the server tells of itself -----------------------------------------------------------------------------------
def test_every_weight_set_is_a_model(client):
    cards = {card.id: card for card in client.models.list()}
    assert {name: card.version for name, card in cards.items()} == {"tiny": "v1", "critic": "v7"}  # type: ignore[attr-defined]
    assert client.models.retrieve("critic").id == "critic"


def test_metrics_are_prometheus_text(start):
    running = start(FakeEngine())
    post(running, "/v1/chat/completions", {"messages": CHAT})
    post(running, "/v1/chat/completions", {"messages": []})
    families = list(text_string_to_metric_families(httpx.get(f"{running.url}/metrics").text))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples
    }
    kinds = {family.name: family.type for family in families}
    assert kinds["nlrl_engine_generated_tokens"] == kinds["nlrl_server_requests"] == "counter"
    assert kinds["nlrl_engine_requests_running"] == "gauge"
    route = ("route", "/v1/chat/completions")
    assert samples["nlrl_server_requests_total", route, ("status", "200")] == 1
    assert samples["nlrl_server_requests_total", route, ("status", "400")] == 1
    assert samples["nlrl_server_request_seconds_count", route] == 2
    assert samples["nlrl_engine_generated_tokens_total",] == 12
    assert samples["nlrl_engine_requests_running",] == 0
    assert samples["nlrl_engine_weights_info", ("version", "v7"), ("weights", "critic")] == 1
