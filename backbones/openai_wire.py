"""The JSON of OpenAI-compatible endpoints: requests to bodies, answers to completions. Nothing here knows HTTP.

Chat messages go to /chat/completions, `Request.tokens` to /completions, which vLLM takes as token ids.
Four fields are *extras*: an endpoint that refuses one by name is asked again without it (`EXTRAS`). What changes the
answer is never left out. A JSON schema goes as `response_format`; a choice and a regular expression as
`structured_outputs`, which vLLM and `nlrl serve` know. Other servers may ignore that, so answers are checked.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from nlrl.backbones.language_model import Completion, Constraint, FinishReason, Request, Sampling, check_sampling
from nlrl.errors import NLRLError

EXTRAS = ("logprobs", "return_token_ids", "seed", "top_k")
SAMPLING_FIELDS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "stop", "ignore_eos",
    "response_format", "structured_outputs",
)  # fmt: skip
OPENAI = "https://api.openai.com"
_OTHERS = ("min_p", "ignore_end")
"""Settings that servers of open models have and OpenAI's own endpoint has not."""

_PATTERN_SECONDS = 1.0
"""What checking an answer against a pattern may take."""
_FINISH: dict[str, FinishReason] = {"length": "length", "content_filter": "error", "abort": "error", "error": "error"}
_TEMPLATE, _PER_MESSAGE = (
    64,
    16,
)  # tokens that a chat template adds to a prompt and to a message: guesses, on the safe side


def check(sampling: Sampling, base_url: str) -> None:
    """Raises NLRLError naming what this endpoint cannot be asked for."""
    check_sampling(sampling)
    if sampling.top_logprobs:
        raise NLRLError(
            "Sampling.top_logprobs: endpoints name the likeliest tokens by texts, not by ids; leave it at 0"
        )
    constraint = sampling.constraint
    if constraint is not None:
        _check_constraint(constraint)
    if not base_url.startswith(OPENAI):
        return
    for name in _OTHERS:
        if getattr(sampling, name):
            raise NLRLError(f"Sampling.{name}: {OPENAI} has no such setting")
    if constraint is not None and constraint.kind != "json_schema":
        raise NLRLError(
            f"Sampling.constraint: {OPENAI} takes a json_schema, no {constraint.kind}; a vLLM server and `nlrl serve` "
            "take all kinds"
        )


def _check_constraint(constraint: Constraint) -> None:
    value = constraint.value
    if constraint.kind == "choice":
        right, wanted = isinstance(value, tuple) and bool(value), "a tuple of texts, one at least"
    elif constraint.kind == "json_schema":
        right, wanted = _parsed(value) is not None, "a JSON schema as text"
    else:
        right, wanted = constraint.kind == "regex" and isinstance(value, str), "the text of a regular expression"
    if not right:
        raise NLRLError(f"constraint {constraint.kind} {value!r}: the value must be {wanted}")


def obeyed(answer: Completion, constraint: Constraint | None) -> Completion:
    """The answer, or an error where it ended and does not obey: a server may ignore fields that it does not know."""
    if constraint is None or answer.finish_reason != "stop" or _obeys(answer.text, constraint):
        return answer
    error = f"the answer does not obey its constraint ({constraint.kind}): the endpoint ignores it"
    return replace(answer, finish_reason="error", error=error)


def _obeys(text: str, constraint: Constraint) -> bool:
    if constraint.kind == "choice":
        return text in constraint.value
    if constraint.kind == "json_schema":
        return _parsed(text) is not None
    import regex  # `re` has no limit, and some patterns take for ever on texts made for them

    try:
        return regex.fullmatch(str(constraint.value), text, timeout=_PATTERN_SECONDS) is not None
    except TimeoutError:
        return False
    except Exception:  # another dialect than Python's, on which the library fails in several ways
        return True


def _parsed(text: Any) -> Any:
    """The JSON value in a list, for `null` is one, too; None if it is no JSON."""
    try:
        return [json.loads(text)]
    except (TypeError, ValueError, RecursionError):
        return None


class UnreadableAnswer(ValueError):
    """The endpoint answered something that is no completion."""


def path(request: Request) -> str:
    """The route, below `base_url`."""
    return "/chat/completions" if request.messages else "/completions"


def body(request: Request, model: str, extra: Mapping[str, Any], without: Collection[str] = ()) -> dict[str, Any]:
    """The body of one request.

    Args:
        extra: fields that the settings add or replace.
        without: extras that this endpoint refused, and "max_tokens" if it wants `max_completion_tokens` instead.
    Raises:
        NLRLError: the request has both messages and tokens, or neither.
    """
    if bool(request.messages) == bool(request.tokens):
        raise NLRLError("Request: exactly one of `messages` and `tokens` must be given")
    fields = {"model": model, **_prompt(request), **_sampling(request, "max_tokens" in without), **extra}
    unasked = {name for name in EXTRAS if name in without and not (name == "top_k" and request.sampling.top_k)}
    return {name: value for name, value in fields.items() if name not in unasked}


def _prompt(request: Request) -> dict[str, Any]:
    if request.tokens:
        return {"prompt": list(request.tokens), "logprobs": 0}
    return {"messages": [{"role": m.role, "content": m.content} for m in request.messages], "logprobs": True}


def _sampling(request: Request, completion_tokens: bool) -> dict[str, Any]:
    sampling = request.sampling
    fields = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,  # said aloud: a served checkpoint may bring a default of its own
        "max_completion_tokens" if completion_tokens else "max_tokens": sampling.max_tokens,
        "seed": short_seed(request.seed),
        "return_token_ids": True,
    }
    asked = {"stop": list(sampling.stop), "min_p": sampling.min_p, "ignore_eos": sampling.ignore_end}
    return fields | {name: value for name, value in asked.items() if value} | _constraint(sampling.constraint)


def _constraint(constraint: Constraint | None) -> dict[str, Any]:
    if constraint is None:
        return {}
    if constraint.kind == "json_schema":
        schema = {"name": "answer", "schema": json.loads(str(constraint.value)), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    value = constraint.value if constraint.kind == "regex" else list(constraint.value)
    return {"structured_outputs": {constraint.kind: value}}


def short_seed(seed: int) -> int:
    """Folds a seed of any length into 31 bits, the widest that every known endpoint takes."""
    seed, folded = abs(seed), 0
    while seed:
        folded ^= seed & 0x7FFFFFFF
        seed >>= 31
    return folded


def prompt_bound(request: Request) -> int:
    """A generous estimate of the prompt's tokens: its bytes (tokens are rarely shorter) and room for a template."""
    if request.tokens:
        return len(request.tokens)
    return _TEMPLATE + sum(_PER_MESSAGE + len(message.content.encode()) for message in request.messages)


def usage(data: Any) -> tuple[int, int] | None:
    """(prompt tokens, completion tokens) as the endpoint reports them, or None."""
    try:
        return int(data["usage"]["prompt_tokens"]), int(data["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def completion(data: Any, model: str) -> Completion:
    """The first choice of an answer. Token ids and log-probabilities are empty where the endpoint gives none.

    Raises:
        UnreadableAnswer: no choice, or a field of another type than the protocol has.
    """
    try:
        choice = data["choices"][0]
        text = _text(choice)
        tokens = tuple(int(token) for token in choice.get("token_ids") or ())
        logprobs = _logprobs(choice.get("logprobs") or {})
        reason = _sendable(str(choice.get("finish_reason") or "stop"))
        spoke = _spoke(data, model)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise UnreadableAnswer(f"the answer is no completion ({type(error).__name__}: {error})") from error
    finish = _FINISH.get(reason, "stop")
    return Completion(
        text=text,
        tokens=tokens,
        logprobs=logprobs if not tokens or len(tokens) == len(logprobs) else (),
        finish_reason=finish,
        weight_version=spoke,
        prompt_tokens=(usage(data) or (0, 0))[0],
        error=f"the endpoint ended the answer: {reason}" if finish == "error" else "",
    )


def _text(choice: Mapping[str, Any]) -> str:
    if "text" in choice:
        text = choice["text"]
    else:
        text = choice["message"].get("content") or choice["message"].get("refusal") or ""
    if not isinstance(text, str):
        raise TypeError(f"the text is a {type(text).__name__}")
    return _sendable(text)


def _sendable(text: str) -> str:
    """JSON can hold halves of characters, which no file and no later request can; they become question marks."""
    return text.encode(errors="replace").decode()


def _logprobs(given: Mapping[str, Any]) -> tuple[float, ...]:
    if "token_logprobs" in given:  # /completions
        return tuple(float(logprob) for logprob in given["token_logprobs"] or ())
    return tuple(float(token["logprob"]) for token in given.get("content") or ())


def _spoke(data: Mapping[str, Any], model: str) -> str:
    """Which weights answered, as far as the endpoint says."""
    name, fingerprint = data.get("model") or model, data.get("system_fingerprint")
    return _sendable(f"{name}@{fingerprint}" if fingerprint else str(name))
