"""HTTP bodies: what clients send to our server, and what endpoints answer our client."""

from __future__ import annotations

from functools import cache
from typing import Any

import orjson
from pydantic import ValidationError

from nlrl.backbones import openai_failures, openai_wire
from nlrl.backbones.engine.constraints import Grammars
from nlrl.backbones.language_model import Constraint
from nlrl.backbones.registry import BUNDLED
from nlrl.errors import NLRLError
from nlrl.testing.fuzz import holds, target
from nlrl.testing.fuzz.texts import text_of

_CHATS: tuple[dict[str, Any], ...] = (
    {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "n": 2, "stop": ["a"], "seed": 1},
    {"messages": [{"role": "system", "content": [{"type": "text", "text": "a"}]}], "logprobs": True, "top_logprobs": 3},
    {"messages": [{"role": "user", "content": ""}], "response_format": {"type": "json_object"}, "temperature": 0.5},
    {"messages": [{"role": "user", "content": "a"}], "structured_outputs": {"regex": "a+"}, "tools": [], "best_of": 1},
)
_COMPLETIONS: tuple[dict[str, Any], ...] = (
    {"prompt": "hi", "max_tokens": 0, "echo": True, "logprobs": 2},
    {"prompt": [[1, 2, 3], [4]], "stream": True, "stream_options": {"include_usage": True}, "guided_choice": ["a"]},
)
_ANSWERS: tuple[dict[str, Any], ...] = (
    {
        "model": "m",
        "system_fingerprint": "f",
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "choices": [
            {"message": {"content": "a"}, "logprobs": {"content": [{"logprob": -1.5}]}, "finish_reason": "stop"}
        ],
    },
    {"choices": [{"text": "a\ud83d", "token_ids": [1, 2], "logprobs": {"token_logprobs": [None, -1]}}]},
)


@cache
def _asker():
    from nlrl.backbones.engine.server.asks import Asker

    return Asker(tokenizer(), 64)


@cache
def tokenizer():
    from nlrl.backbones.plain_tokenizer import read_plain_tokenizer

    return read_plain_tokenizer(BUNDLED / "transformer-base")


def _bodies(given: tuple[dict[str, Any], ...]) -> list[bytes]:
    return [orjson.dumps(body) for body in given]


@target("chat requests", lambda: _bodies(_CHATS), ValidationError)
def chat_requests(data: bytes) -> None:
    from nlrl.backbones.engine.server.wire import ChatBody

    _ask(lambda: _asker().chat(ChatBody.model_validate_json(data), "default", "client"))


@target("completion requests", lambda: _bodies(_COMPLETIONS), ValidationError)
def completion_requests(data: bytes) -> None:
    from nlrl.backbones.engine.server.wire import CompletionBody

    _ask(lambda: _asker().completions(CompletionBody.model_validate_json(data), "default", "client"))


def _ask(understand: Any) -> None:
    from nlrl.backbones.engine.server.errors import ApiError

    try:
        ask = understand()
    except ApiError as error:
        holds(400 <= error.status < 500, f"status {error.status}")
        orjson.dumps(error.body())
        return
    for prompt, sampling in zip(ask.prompts, ask.samplings, strict=True):
        holds(0 < len(prompt) <= 64 and sampling.max_tokens <= 64, "a prompt or an answer beyond the context")


@target("endpoints' answers", lambda: [*_bodies(_ANSWERS[:1]), b'{"choices": [{"text": "a\\ud83d"}]}'])
def endpoints_answers(data: bytes) -> None:
    """An answer becomes a completion that a record can hold, or is unreadable."""
    import json

    try:
        value = json.loads(data)  # as the client of the endpoint does
    except (ValueError, RecursionError):
        return
    openai_wire.usage(value)
    try:
        answer = openai_wire.completion(value, "m")
    except openai_wire.UnreadableAnswer:
        return
    orjson.dumps({"text": answer.text, "version": answer.weight_version, "error": answer.error})
    for kind, wanted in (("choice", ("a",)), ("json_schema", "{}")):
        openai_wire.obeyed(answer, Constraint(kind, wanted))  # pyright: ignore[reportArgumentType]


@target("headers", lambda: [b"3", b"Wed, 21 Oct 2026 07:28:00 GMT", b"-1e9", b"inf"])
def headers(data: bytes) -> None:
    text = data.decode("latin-1")
    for given in ({"retry-after": text}, {"retry-after-ms": text}):
        wait = openai_failures.asked_wait(given)
        holds(wait is None or wait >= 0, f"a wait of {wait} s")


@cache
def _grammars() -> Grammars:
    known = tokenizer()
    assert known is not None
    assert known.eos_token_id is not None
    return Grammars(known, len(known), [known.eos_token_id])


def _constraints() -> list[bytes]:
    texts = ('{"type": "object", "properties": {"a": {"type": "integer"}}}', '{"$ref": "http://evil.test/x"}')
    return [b"c5\06\0seven", b"r(a|b){2,5}[0-9]*/\nstart: x", *(b"j" + text.encode() for text in texts)]


@target("constraints", _constraints, NLRLError, slow=True)
def constraints(data: bytes) -> None:
    kinds = {"c": "choice", "r": "regex", "j": "json_schema"}
    text = text_of(data)
    kind, value = kinds.get(text[:1], "regex"), text[1:]
    constraint = Constraint(kind, tuple(value.split("\0")) if kind == "choice" else value)  # pyright: ignore[reportArgumentType]
    _grammars().compile(constraint).start()
