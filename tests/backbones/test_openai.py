"""The endpoint client, against a scripted endpoint on this machine."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nlrl.backbones.language_model import (
    Completion,
    Constraint,
    LanguageModel,
    LanguageModelError,
    Message,
    Request,
    Sampling,
)
from nlrl.backbones.metering import Meter
from nlrl.backbones.openai_failures import asked_wait
from nlrl.backbones.openai_model import OpenAIModel, OpenAISettings
from nlrl.backbones.openai_wire import short_seed
from nlrl.backbones.vllm_model import VLLMSettings
from nlrl.errors import NLRLError
from nlrl.orchestration.config import RunConfig, validated

pytest.importorskip("openai")

KEY = "sk-very-secret"


def ask(text: str, **sampling: Any) -> Request:
    return Request(messages=(Message("user", text),), sampling=Sampling(**{"max_tokens": 8, **sampling}), seed=7)


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"]


def answer(text: str, finish: str = "stop", **choice: Any) -> dict[str, Any]:
    """A chat answer that used 5 prompt and 3 completion tokens."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "message": message, "finish_reason": finish, **choice}]
    return {"body": {"model": "tiny-1", "choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": 3}}}


def refusal(
    status: int, message: str = "no", param: str | None = None, code: Any = None, **reply: Any
) -> dict[str, Any]:
    return {"status": status, "body": {"error": {"message": message, "param": param, "code": code}}, **reply}


def echo(body: dict[str, Any], attempt: int) -> dict[str, Any]:
    return answer(f"echo {prompt_of(body)}")


@pytest.fixture
def connect(monkeypatch):
    """connect(base_url, **settings) makes a model with the key in $TEST_KEY, closed at the test's end."""
    monkeypatch.setenv("TEST_KEY", KEY)
    models: list[OpenAIModel] = []

    def make(base_url: str, **settings: Any) -> OpenAIModel:
        usual = {"model": "tiny", "api_key_env": "TEST_KEY", "retry_delay": 0.01, "max_retries": 2, "timeout": 5.0}
        models.append(OpenAIModel(OpenAISettings(base_url=base_url, **{**usual, **settings})))
        return models[-1]

    yield make
    for model in models:
        model.close()


def texts(completions: Sequence[Completion]) -> list[str]:
    return [completion.text for completion in completions]


# --- answers


def test_answers_come_in_order_with_usage_and_cost(serve, connect):
    endpoint = serve(echo)
    model = connect(endpoint.base_url, prompt_price=1.0, completion_price=10.0)
    completions = model.generate([ask(str(i)) for i in range(20)])
    assert texts(completions) == [f"echo {i}" for i in range(20)]
    assert {(c.finish_reason, c.weight_version, c.prompt_tokens, c.error) for c in completions} == {
        ("stop", "tiny-1", 5, "")
    }
    usage = model.meter.usage
    assert (usage.requests, usage.retries, usage.errors) == (20, 0, 0)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.unreported_tokens) == (100, 60, 0)
    assert usage.cost == pytest.approx((100 * 1.0 + 60 * 10.0) / 1e6)
    assert isinstance(model, LanguageModel)
    assert not model.reads_expectations


def test_the_body_says_what_the_request_says(serve, connect):
    endpoint = serve(echo)
    request = Request(
        messages=(Message("system", "be brief"), Message("user", "hi")),
        sampling=Sampling(temperature=0.3, top_p=0.9, top_k=11, max_tokens=17, stop=("\n\n",)),
        seed=5,
    )
    connect(endpoint.base_url, extra_body={"guided": {"x": 1}}).generate([request])
    assert endpoint.bodies[0] == {
        "model": "tiny",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "temperature": 0.3,
        "top_p": 0.9,
        "top_k": 11,
        "max_tokens": 17,
        "stop": ["\n\n"],
        "seed": 5,
        "logprobs": True,
        "return_token_ids": True,
        "guided": {"x": 1},
    }
    assert endpoint.paths == ["/v1/chat/completions"]
    assert endpoint.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize(
    ("constraint", "field", "value"),
    [
        (Constraint("choice", ("a", "b")), "structured_outputs", {"choice": ["a", "b"]}),
        (Constraint("regex", "[ab]+"), "structured_outputs", {"regex": "[ab]+"}),
        (
            Constraint("json_schema", '{"type": "object"}'),
            "response_format",
            {
                "type": "json_schema",
                "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
            },
        ),
    ],
    ids=["choice", "regex", "json_schema"],
)
def test_constraints_are_passed_on_and_answers_held_to_them(serve, connect, constraint, field, value):
    endpoint = serve(
        lambda body, attempt: answer({"good": "{}" if "response_format" in body else "a"}.get(prompt_of(body), "no"))
    )
    sampling = Sampling(constraint=constraint, min_p=0.1, ignore_end=True)
    requests = [Request(messages=(Message("user", words),), sampling=sampling) for words in ("good", "bad")]
    good, bad = connect(endpoint.base_url).generate(requests)
    assert all(body[field] == value and body["min_p"] == 0.1 and body["ignore_eos"] is True for body in endpoint.bodies)
    assert (good.finish_reason, bad.finish_reason) == ("stop", "error")
    assert f"constraint ({constraint.kind})" in bad.error


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(top_logprobs=3), "top_logprobs"),
        (Sampling(temperature=-1.0), "temperature"),
        (Sampling(constraint=Constraint("choice", ())), "constraint choice"),
        (Sampling(constraint=Constraint("json_schema", "{")), "constraint json_schema"),
        (Sampling(constraint=Constraint("lark", "a")), "constraint lark"),  # type: ignore[arg-type]
    ],
)
def test_what_no_endpoint_can_do_is_refused_before_anything_is_sent(serve, connect, sampling, named):
    endpoint = serve(echo)
    with pytest.raises(NLRLError, match=named):
        connect(endpoint.base_url).generate([ask("1"), Request(messages=(Message("user", "2"),), sampling=sampling)])
    assert not endpoint.bodies


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(min_p=0.1), "min_p"),
        (Sampling(ignore_end=True), "ignore_end"),
        (Sampling(constraint=Constraint("choice", ("a", "b"))), "no choice"),
    ],
)
def test_what_openai_cannot_do_is_refused_before_anything_is_sent(connect, sampling, named):
    with pytest.raises(NLRLError, match=named):
        connect("https://api.openai.com/v1").generate([Request(messages=(Message("user", "1"),), sampling=sampling)])


def test_token_ids_and_logprobs_are_taken_where_given(serve, connect):
    logprobs = {"content": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]}
    script = {
        "both": answer("ab", token_ids=[3, 4], logprobs=logprobs),
        "logprobs only": answer("ab", logprobs=logprobs),
        "unequal": answer("ab", token_ids=[3, 4, 5], logprobs=logprobs),
        "neither": answer("ab", logprobs=None),
    }
    endpoint = serve(lambda body, attempt: script[prompt_of(body)])
    completions = connect(endpoint.base_url).generate([ask(name) for name in script])
    assert [c.tokens for c in completions] == [(3, 4), (), (3, 4, 5), ()]
    assert [c.logprobs for c in completions] == [(-0.5, -1.5), (-0.5, -1.5), (), ()]


def test_prompts_of_tokens_go_to_the_completions_route(serve, connect):
    choice = {"text": "yes", "finish_reason": "length", "token_ids": [9], "logprobs": {"token_logprobs": [-0.25]}}
    endpoint = serve(lambda body, attempt: {"body": {"choices": [choice], "usage": None}})
    model = connect(endpoint.base_url)
    (completion,) = model.generate([Request(tokens=(1, 2, 3))])
    assert endpoint.paths == ["/v1/completions"]
    assert endpoint.bodies[0]["prompt"] == [1, 2, 3]
    assert (completion.text, completion.tokens, completion.logprobs) == ("yes", (9,), (-0.25,))
    assert completion.finish_reason == "length"
    assert model.meter.usage.unreported_tokens == 3 + 128  # no usage in the answer: the worst case stands


def test_a_request_needs_exactly_one_kind_of_prompt(serve, connect):
    model = connect(serve(echo).base_url)
    with pytest.raises(NLRLError, match=r"messages.*tokens"):
        model.generate([Request()])


def test_seeds_of_any_size_fit_into_31_bits_and_stay_apart():
    seeds = [0, 1, 2**31, 2**63 + 5, 2**64 - 1, *(i << 40 for i in range(1, 50))]
    short = [short_seed(seed) for seed in seeds]
    assert all(0 <= seed < 2**31 for seed in short)
    assert len(set(short[5:])) == 49


def test_no_more_requests_than_allowed_are_in_flight(serve, connect):
    endpoint = serve(lambda body, attempt: {**echo(body, attempt), "seconds": 0.02})
    connect(endpoint.base_url, max_concurrency=3).generate([ask(str(i)) for i in range(12)])
    assert endpoint.most_at_once == 3


def test_it_can_be_called_from_a_running_loop_and_from_threads(serve, connect):
    model = connect(serve(echo).base_url)

    async def notebook() -> list[Completion]:
        return model.generate([ask("cell")])

    assert texts(asyncio.run(notebook())) == ["echo cell"]
    found: dict[int, list[str]] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: texts(model.generate([ask(str(i))]))})) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [f"echo {i}"] for i in range(4)}


def test_a_closed_model_says_so_and_leaves_no_thread(serve, connect):
    model = connect(serve(echo).base_url)
    model.generate([ask("hi")])
    model.close()
    model.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "nlrl tiny"]
    with pytest.raises(LanguageModelError, match="closed"):
        model.generate([ask("hi")])


# --- failures that pass


def test_429_is_retried_after_the_time_that_the_endpoint_asks_for(serve, connect):
    def busy_once(body, attempt):
        return refusal(429, headers={"Retry-After": "0.4"}) if attempt == 1 else echo(body, attempt)

    model = connect(serve(busy_once).base_url)
    begin = time.monotonic()
    assert texts(model.generate([ask("hi")])) == ["echo hi"]
    assert 0.4 <= time.monotonic() - begin < 3
    usage = model.meter.usage
    assert (usage.requests, usage.retries, usage.errors, usage.tokens) == (1, 1, 0, 8)


def test_retry_after_may_be_seconds_milliseconds_or_a_date():
    assert asked_wait({"retry-after": "2"}) == 2
    assert asked_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 25 < asked_wait({"retry-after": formatdate(time.time() + 30, usegmt=True)}) <= 30  # type: ignore[operator]
    assert asked_wait({"retry-after": "soon"}) is None
    assert asked_wait({}) is None


@pytest.mark.parametrize(
    "body", ["{not json", '"a text"', {"choices": []}, {"choices": [{"message": {"content": 3}}]}, "null"]
)
def test_an_unreadable_answer_is_asked_for_again(serve, connect, body):
    endpoint = serve(lambda sent, attempt: {"body": body} if attempt == 1 else echo(sent, attempt))
    model = connect(endpoint.base_url)
    assert texts(model.generate([ask("hi")])) == ["echo hi"]
    usage = model.meter.usage
    assert usage.retries == 1
    assert usage.unreported_tokens > 8  # the unreadable answer may have been billed


def test_a_lost_connection_is_tried_again(serve, connect):
    endpoint = serve(lambda body, attempt: {"drop": True} if attempt == 1 else echo(body, attempt))
    model = connect(endpoint.base_url)
    assert texts(model.generate([ask("hi")])) == ["echo hi"]
    assert model.meter.usage.retries == 1


def test_waits_grow_and_stay_below_half_a_minute(serve, connect):
    model = connect(serve(echo).base_url, retry_delay=1.0)
    for attempt in range(12):
        own = min(30, 2**attempt)
        assert all(own / 2 <= model._wait(attempt, None) <= own for _ in range(20))
    assert len({model._wait(0, None) for _ in range(20)}) > 1


# --- failures of one request


def test_one_request_that_keeps_failing_is_data_and_the_others_are_answered(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(500, "poison") if prompt_of(body) == "2" else echo(body, attempt))
    model = connect(endpoint.base_url)
    completions = model.generate([ask(str(i)) for i in range(5)])
    assert [c.finish_reason for c in completions] == ["stop", "stop", "error", "stop", "stop"]
    assert "HTTP 500: poison" in completions[2].error
    assert (completions[2].text, completions[2].tokens) == ("", ())
    usage = model.meter.usage
    assert (usage.requests, usage.retries, usage.errors) == (5, 2, 1)
    assert usage.tokens == 4 * 8


def test_each_answer_has_a_time_of_its_own(serve, connect):
    endpoint = serve(lambda body, attempt: {**echo(body, attempt), "seconds": 0.3 if prompt_of(body) == "1" else 0.0})
    begin = time.time()
    quick, slow = connect(endpoint.base_url).generate([ask("0"), ask("1")])
    assert quick.timing.seconds < 0.3 <= slow.timing.seconds
    assert begin - 0.1 <= slow.timing.asked <= time.time()


def test_a_hanging_request_times_out_alone(serve, connect):
    endpoint = serve(lambda body, attempt: {"hang": True} if prompt_of(body) == "1" else echo(body, attempt))
    model = connect(endpoint.base_url, timeout=1.0, max_retries=0)
    begin = time.monotonic()
    completions = model.generate([ask(str(i)) for i in range(3)])
    assert time.monotonic() - begin < 4
    assert [c.finish_reason for c in completions] == ["stop", "error", "stop"]
    assert "no answer within 1 s" in completions[1].error
    usage = model.meter.usage
    assert (usage.errors, usage.prompt_tokens, usage.completion_tokens) == (1, 10, 6)
    assert usage.unreported_tokens > 8  # the attempt may have been billed


def test_an_answer_that_trickles_in_is_bounded_too(serve, connect):
    endpoint = serve(lambda body, attempt: {**echo(body, attempt), "trickle": 0.05})
    model = connect(endpoint.base_url, timeout=0.4, max_retries=0)
    begin = time.monotonic()
    with pytest.raises(LanguageModelError, match=r"no answer within 0\.4 s"):
        model.generate([ask("hi")])
    assert time.monotonic() - begin < 3


def test_a_content_filter_is_data_even_alone(serve, connect):
    endpoint = serve(
        lambda body, attempt: (
            answer("", finish="content_filter")
            if prompt_of(body) == "answer"
            else refusal(400, "the prompt was filtered", code="content_filter")
        )
    )
    model = connect(endpoint.base_url)
    for prompt, why in (("answer", "content_filter"), ("prompt", "HTTP 400: the prompt was filtered")):
        (completion,) = model.generate([ask(prompt)])
        assert completion.finish_reason == "error"
        assert why in completion.error
    assert len(endpoint.bodies) == 2  # nothing was retried
    assert model.meter.usage.errors == 2


# --- failures of the endpoint


def test_an_endpoint_that_answers_nothing_is_an_error_that_names_it(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(503, "out to lunch"))
    model = connect(endpoint.base_url)
    with pytest.raises(
        LanguageModelError, match=r"base_url: .*127.0.0.1.* none of 3 requests .* HTTP 503: out to lunch"
    ):
        model.generate([ask(str(i)) for i in range(3)])
    assert len(endpoint.bodies) == 9


def test_nothing_at_the_address_is_an_error_that_names_it(free_port, connect):
    model = connect(f"http://127.0.0.1:{free_port}/v1")
    begin = time.monotonic()
    with pytest.raises(
        LanguageModelError, match=rf"base_url: nothing answers at http://127.0.0.1:{free_port}/v1.*3 attempts"
    ):
        model.generate([ask(str(i)) for i in range(30)])
    assert time.monotonic() - begin < 5


def test_what_never_arrived_is_not_billed(free_port, connect):
    model = connect(f"http://127.0.0.1:{free_port}/v1")
    with pytest.raises(LanguageModelError, match="nothing answers"):
        model.generate([ask("hi")])
    assert (model.meter.usage.retries, model.meter.usage.tokens) == (2, 0)


@pytest.mark.parametrize("status", [401, 403])
def test_a_bad_key_fails_at_once_and_is_never_shown(serve, connect, status):
    endpoint = serve(lambda body, attempt: refusal(status, f"Incorrect API key provided: {KEY}"))
    model = connect(endpoint.base_url)
    with pytest.raises(LanguageModelError, match=f"api_key_env: .*HTTP {status}.*TEST_KEY") as caught:
        model.generate([ask("hi")])
    assert len(endpoint.bodies) == 1
    shown = f"{caught.value!r} {caught.value.__cause__!r} {model.settings!r} {vars(model)!r}"
    assert KEY not in shown


def test_a_key_echoed_by_another_failure_is_struck_out(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(400, f"bad header: Bearer {KEY}"))
    (completion,) = connect(endpoint.base_url).generate([ask("hi")])
    assert "bad header: Bearer ***" in completion.error


def test_a_missing_key_is_named(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(401))
    with pytest.raises(LanguageModelError, match=r"api_key_env: .*NO_SUCH_KEY is not set"):
        connect(endpoint.base_url, api_key_env="NO_SUCH_KEY").generate([ask("hi")])


def test_no_key_is_sent_where_none_is_named(serve, connect, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = serve(echo)
    connect(endpoint.base_url, api_key_env="").generate([ask("hi")])
    assert KEY not in endpoint.keys[0]


def test_openai_without_a_key_is_refused_before_anything_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(LanguageModelError, match=r"api_key_env: .*OPENAI_API_KEY"):
        OpenAIModel(OpenAISettings(model="some-model"))


def test_an_unknown_model_fails_at_once_and_names_those_there_are(serve, connect):
    endpoint = serve(
        lambda body, attempt: refusal(404, "The model `tiny` does not exist.", param="model"), models=("big", "huge")
    )
    with pytest.raises(LanguageModelError, match=r"model: .*no model 'tiny'; it serves: big, huge"):
        connect(endpoint.base_url).generate([ask("hi")])
    assert len(endpoint.bodies) == 1


def test_a_wrong_route_is_named(serve, connect):
    endpoint = serve(lambda body, attempt: {"status": 404, "body": {"detail": "Not Found"}})
    with pytest.raises(LanguageModelError, match=r"base_url: .*/v1"):
        connect(endpoint.base_url).generate([ask("hi")])


def test_an_empty_account_fails_at_once(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(429, "pay first", code="insufficient_quota"))
    with pytest.raises(LanguageModelError, match="no quota left"):
        connect(endpoint.base_url).generate([ask("hi")])
    assert len(endpoint.bodies) == 1


def test_an_hour_of_waiting_is_not_waited(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(429, headers={"Retry-After": "3600"}))
    with pytest.raises(LanguageModelError, match="asks to wait 3600 s"):
        connect(endpoint.base_url).generate([ask("hi")])


# --- endpoints that know fewer fields


def test_extras_that_an_endpoint_refuses_are_left_out_from_then_on(serve, connect):
    def strict(body, attempt):
        for name in ("return_token_ids", "top_k", "logprobs"):
            if name in body:
                return refusal(400, f"Unrecognized request argument supplied: {name}")
        return echo(body, attempt)

    endpoint = serve(strict)
    model = connect(endpoint.base_url)
    assert texts(model.generate([ask("a")])) == ["echo a"]
    sent = len(endpoint.bodies)
    assert texts(model.generate([ask("b")])) == ["echo b"]
    assert len(endpoint.bodies) == sent + 1
    assert endpoint.bodies[-1]["seed"] == 7
    assert model.meter.usage.retries == 0


def test_an_endpoint_may_want_max_completion_tokens(serve, connect):
    def newer(body, attempt):
        if "max_tokens" in body:
            return refusal(400, "Unsupported parameter: use 'max_completion_tokens' instead", param="max_tokens")
        return echo(body, attempt)

    endpoint = serve(newer)
    assert texts(connect(endpoint.base_url).generate([ask("hi")])) == ["echo hi"]
    assert endpoint.bodies[-1]["max_completion_tokens"] == 8


def test_a_sampling_field_that_matters_is_never_dropped(serve, connect, caplog):
    endpoint = serve(lambda body, attempt: refusal(400, "Unknown parameter: 'top_k'", param="top_k"))
    with pytest.raises(LanguageModelError, match=r"top_k: tiny .*does not take"):
        connect(endpoint.base_url).generate([ask("hi", top_k=5)])
    assert len(endpoint.bodies) == 1
    assert not caplog.records


def test_a_field_that_the_settings_insist_on_does_not_loop(serve, connect):
    endpoint = serve(lambda body, attempt: refusal(400, "use max_completion_tokens", param="max_tokens"))
    with pytest.raises(LanguageModelError, match="max_tokens"):
        connect(endpoint.base_url, extra_body={"max_tokens": 4}).generate([ask("hi")])


def test_logprobs_can_be_switched_off(serve, connect):
    endpoint = serve(echo)
    connect(endpoint.base_url, logprobs=False).generate([ask("hi")])
    assert "logprobs" not in endpoint.bodies[0]


# --- budgets


def test_a_token_budget_stops_before_it_is_exceeded(serve, connect):
    endpoint = serve(echo)
    model = connect(endpoint.base_url, budget_tokens=200, max_concurrency=1)
    with pytest.raises(LanguageModelError, match="budget_tokens: 200 allowed"):
        model.generate([ask("hi") for _ in range(100)])
    used = model.meter.usage.tokens
    assert 0 < used <= 200
    assert len(endpoint.bodies) == used / 8


def test_requests_in_flight_count_against_the_budget(serve, connect):
    usage = {"prompt_tokens": 80, "completion_tokens": 8}
    endpoint = serve(lambda body, attempt: {"body": {**echo(body, attempt)["body"], "usage": usage}, "seconds": 0.05})
    model = connect(endpoint.base_url, budget_tokens=400)
    with pytest.raises(LanguageModelError, match="budget_tokens"):
        model.generate([ask("hi") for _ in range(16)])
    assert model.meter.usage.tokens <= 400


def test_a_cost_budget_stops_before_it_is_exceeded(serve, connect):
    endpoint = serve(echo)
    model = connect(endpoint.base_url, prompt_price=1000.0, completion_price=1000.0, budget_cost=0.05)
    with pytest.raises(LanguageModelError, match=r"budget_cost: 0.05 allowed"):
        model.generate([ask("hi", max_tokens=100)])
    assert endpoint.bodies == []


def test_attempts_that_may_be_billed_count_against_the_budget(serve, connect):
    endpoint = serve(lambda body, attempt: {"hang": True})
    model = connect(endpoint.base_url, timeout=0.1, max_retries=9, budget_tokens=300)
    with pytest.raises(LanguageModelError, match="budget_tokens"):
        model.generate([ask("hi")])
    assert model.meter.usage.unreported_tokens <= 300
    assert len(endpoint.bodies) < 10


def test_several_models_can_share_one_meter(serve, connect):
    meter = Meter(budget_tokens=500)
    models = [OpenAIModel(connect(serve(echo).base_url).settings, meter) for _ in range(2)]
    for model in models:
        model.generate([ask("hi")])
        model.close()
    assert meter.usage.requests == 2
    assert meter.usage.tokens == 16


# --- construction


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url"),
        ({"base_url": "http://me:secret@127.0.0.1/v1"}, "base_url"),
        ({"budget_cost": 1.0}, "budget_cost"),
        ({"timeout": 0}, "timeout"),
        ({"tiemout": 1}, "tiemout"),
        ({"api_key": KEY}, "api_key"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(settings, field):
    with pytest.raises(ValidationError, match=field):
        OpenAISettings(model="tiny", **settings)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(NLRLError, match=r"pip install 'nlrl\[openai\]'"):
        OpenAIModel(OpenAISettings(model="tiny", base_url="http://127.0.0.1:1/v1"))


def test_importing_the_clients_loads_neither_torch_nor_their_packages():
    code = (
        "import sys, nlrl.backbones.openai_model, nlrl.backbones.vllm_model; "
        "print(sorted({'torch', 'openai', 'vllm', 'transformers', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


GUIDE = Path(__file__).parents[2] / "docs" / "language_models.md"


def blocks_of_the_guide(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_configs_of_the_guide_are_configs():
    blocks = blocks_of_the_guide("toml")
    assert len(blocks) == 4
    for block in blocks:
        config = validated(RunConfig, tomllib.loads(block), "the guide")
        assert config.model.trainable
        teacher = config.teacher
        assert teacher is not None
        kinds = {"openai": OpenAISettings, "vllm": VLLMSettings}
        where = {"base_url": teacher.base_url, "api_key_env": teacher.api_key_env} if teacher.kind == "openai" else {}
        kinds[teacher.kind](model=teacher.name, **where, **teacher.options)


def test_the_first_script_of_the_guide_runs(serve, capsys):
    script, *others = blocks_of_the_guide("python")
    exec(script.replace("http://127.0.0.1:8000/v1", serve(echo).base_url), {})
    assert "echo Which move? stop Usage(requests=1" in capsys.readouterr().out
    for other in others:
        compile(other, "the guide", "exec")


@pytest.mark.slow
def test_it_answers_inside_a_ray_actor(serve):
    ray = pytest.importorskip("ray")
    endpoint = serve(echo)
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        settings = OpenAISettings(model="tiny", base_url=endpoint.base_url)
        actor = ray.remote(OpenAIModel).remote(settings)
        assert texts(ray.get(actor.generate.remote([ask("hi")]), timeout=60)) == ["echo hi"]
    finally:
        ray.shutdown()
