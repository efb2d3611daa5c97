"""What a failed attempt means: stop the run, give this request up, or try again.

| what happened | meaning |
|---|---|
| 401, 403; unknown model or route (404); no quota left; a sampling value not taken | `LanguageModelError`, at once |
| any other 4xx: prompt too long, content filter | `Refused`: this request gets an error completion |
| 408, 409, 429, 5xx, a time-out, a lost connection, an unreadable answer | `Retry` |
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

from nlrl.backbones.language_model import LanguageModelError
from nlrl.backbones.openai_wire import EXTRAS, SAMPLING_FIELDS, UnreadableAnswer

LONGEST_WAIT = 120.0
"""Seconds; an endpoint that asks for more is not waited for."""


class Refused(Exception):
    """The endpoint works and will not answer this request."""


class Retry(Exception):
    """The endpoint did not answer this attempt."""

    def __init__(self, text: str, wait: float | None = None, unreachable: bool = False, billed: bool = False) -> None:
        super().__init__(text)
        self.wait = wait
        """Seconds that the endpoint asks to wait."""
        self.unreachable = unreachable
        """Nothing listens at the address."""
        self.billed = billed
        """Tokens may have been used without a report."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What messages need to know about the endpoint. `key` is here to be struck out of them."""

    base_url: str
    model: str
    api_key_env: str
    key: str = field(repr=False)
    timeout: float

    def scrub(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text


def classify(error: Exception, endpoint: Endpoint) -> Exception:
    """`LanguageModelError`, `Refused` or `Retry` for what the client raised; anything else comes back as it is."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _of_status(error.status_code, detail(error), error.response.headers, endpoint)
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Retry(f"no answer within {endpoint.timeout:g} s", billed=True)
    if isinstance(error, openai.APIConnectionError):
        unreachable = type(error.__cause__).__name__ == "ConnectError"
        cause = endpoint.scrub(str(error.__cause__ or error)) or "connection lost"
        return Retry(f"connection failed: {cause}", unreachable=unreachable, billed=not unreachable)
    if isinstance(error, UnreadableAnswer | json.JSONDecodeError | UnicodeDecodeError):
        return Retry(f"unreadable answer: {endpoint.scrub(str(error))[:200]}", billed=True)
    return error


@dataclass(frozen=True, slots=True)
class Detail:
    """The error object of an answer."""

    message: str
    param: str
    code: str


def detail(error: Any) -> Detail:
    """The parts of an `openai.APIStatusError` that endpoints agree on."""
    given = error.body if isinstance(error.body, Mapping) else {}
    message = given.get("message") or given.get("detail") or error.message
    return Detail(str(message), str(given.get("param") or ""), str(given.get("code") or given.get("type") or ""))


def refused_field(error: Exception, sent: Mapping[str, Any]) -> str | None:
    """The extra that the endpoint does not know and we can do without; "max_tokens" if it wants the newer name."""
    if getattr(error, "status_code", None) not in (400, 422):
        return None
    what = detail(error)
    if "max_tokens" in sent and "max_completion_tokens" in what.message:
        return "max_tokens"
    words = {what.param} if what.param else set(re.findall(r"\w+", what.message))
    named = [name for name in EXTRAS if name in sent and name in words]
    return next((name for name in named if name != "top_k" or sent[name] < 0), None)


def _of_status(status: int, what: Detail, headers: Mapping[str, str], endpoint: Endpoint) -> Exception:
    text = f"HTTP {status}: {endpoint.scrub(what.message)[:300]}"
    if status in (401, 403):
        return _bad_key(status, endpoint)
    if what.code == "insufficient_quota":
        return LanguageModelError(f"base_url: the account at {endpoint.base_url} has no quota left ({text})")
    if status in (408, 409, 429) or status >= 500:
        return _later(text, headers, endpoint)
    if status == 404 or what.param == "model" or what.code == "model_not_found":
        return _unknown(what, endpoint)
    if what.param in SAMPLING_FIELDS:
        return LanguageModelError(
            f"{what.param}: {endpoint.model} at {endpoint.base_url} does not take this value ({text})"
        )
    return Refused(text)


def _bad_key(status: int, endpoint: Endpoint) -> LanguageModelError:
    if not endpoint.api_key_env:
        right = "name the environment variable that holds its key"
    elif not endpoint.key:
        right = f"the variable {endpoint.api_key_env} is not set: put the key into it"
    else:
        right = f"put a valid key for {endpoint.model} into the variable {endpoint.api_key_env}"
    return LanguageModelError(f"api_key_env: {endpoint.base_url} refused the key (HTTP {status}); {right}")


def _unknown(what: Detail, endpoint: Endpoint) -> LanguageModelError:
    if "model" in f"{what.param} {what.code} {what.message}".lower():
        return LanguageModelError(f"model: {endpoint.base_url} has no model {endpoint.model!r}")
    return LanguageModelError(f"base_url: {endpoint.base_url} has no such route (HTTP 404); most addresses end in /v1")


def _later(text: str, headers: Mapping[str, str], endpoint: Endpoint) -> Exception:
    wait = asked_wait(headers)
    if wait is not None and wait > LONGEST_WAIT:
        return LanguageModelError(
            f"base_url: {endpoint.base_url} asks to wait {wait:.0f} s ({text}); start again later"
        )
    return Retry(text, wait=wait)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (a number or a date) or `retry-after-ms`; None if the endpoint does not say."""
    given, milliseconds = headers.get("retry-after", ""), headers.get("retry-after-ms", "")
    try:
        return max(0.0, float(milliseconds) / 1000 if milliseconds else float(given))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
