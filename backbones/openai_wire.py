"""The JSON of OpenAI-compatible endpoints: requests to bodies, answers to completions. Nothing here knows HTTP.

Chat messages go to /chat/completions, `Request.tokens` to /completions, which vLLM takes as token ids.
Four fields are *extras*: an endpoint that refuses one by name is asked again without it (`EXTRAS`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from nlrl.backbones.language_model import Completion, FinishReason, Request
from nlrl.errors import NLRLError

EXTRAS = ("logprobs", "return_token_ids", "seed", "top_k")
SAMPLING_FIELDS = ("temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens", "stop")

_FINISH: dict[str, FinishReason] = {"length": "length", "content_filter": "error", "abort": "error", "error": "error"}
_TEMPLATE, _PER_MESSAGE = (
    64,
    16,
)  # tokens that a chat template adds to a prompt and to a message: guesses, on the safe side


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
    return {**fields, "stop": list(sampling.stop)} if sampling.stop else fields


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
    except (KeyError, TypeError, ValueError):
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
        reason = choice.get("finish_reason") or "stop"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UnreadableAnswer(f"the answer is no completion ({type(error).__name__}: {error})") from error
    finish = _FINISH.get(reason, "stop")
    return Completion(
        text=text,
        tokens=tokens,
        logprobs=logprobs if not tokens or len(tokens) == len(logprobs) else (),
        finish_reason=finish,
        weight_version=_spoke(data, model),
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
    return text


def _logprobs(given: Mapping[str, Any]) -> tuple[float, ...]:
    if "token_logprobs" in given:  # /completions
        return tuple(float(logprob) for logprob in given["token_logprobs"] or ())
    return tuple(float(token["logprob"]) for token in given.get("content") or ())


def _spoke(data: Mapping[str, Any], model: str) -> str:
    """Which weights answered, as far as the endpoint says."""
    name, fingerprint = data.get("model") or model, data.get("system_fingerprint")
    return f"{name}@{fingerprint}" if fingerprint else str(name)
