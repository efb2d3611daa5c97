"""Any OpenAI-compatible endpoint as a `LanguageModel`: OpenAI's own, vLLM's server, and others of the same protocol.

1. `generate` sends all requests, `max_concurrency` at a time, over connections that stay open between calls.
2. A failed attempt stops the run, ends its request, or is repeated after a growing, jittered wait (`openai_failures`).
3. Every attempt is metered before it is sent (`metering`).
4. If the endpoint answers no request of a batch, that is a `LanguageModelError`; if it answers some, the rest are data.

The key is read from an environment variable, and appears in no message, record or representation.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nlrl.backbones import openai_failures as failures
from nlrl.backbones import openai_wire as wire
from nlrl.backbones.event_loop import EventLoopThread
from nlrl.backbones.language_model import Completion, LanguageModelError, Request, Timing, stamp
from nlrl.backbones.metering import Meter
from nlrl.errors import NLRLError
from nlrl.keys import plain_address, refuse_keys, variable_name

log = logging.getLogger(__name__)

LONGEST_BACKOFF = 30.0


class OpenAISettings(BaseModel):
    """One endpoint and how to treat it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True)

    kind: Literal["openai"] = "openai"
    model: str = Field(min_length=1)
    """The model's name, as the endpoint knows it."""
    base_url: str = "https://api.openai.com/v1"
    """Where the endpoint is; most addresses end in /v1."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; empty to send none."""
    max_concurrency: int = Field(16, ge=1)
    """Requests in flight at once."""
    timeout: float = Field(60.0, gt=0)
    """Seconds that one attempt may take, from sending to the last byte."""
    max_retries: int = Field(4, ge=0)
    """Attempts beyond the first."""
    retry_delay: float = Field(0.5, ge=0)
    """Seconds before the first retry; doubles each time, up to 30."""
    logprobs: bool = True
    """Ask for the log-probability of each token."""
    prompt_price: float = Field(0.0, ge=0)
    """Price of a million prompt tokens."""
    completion_price: float = Field(0.0, ge=0)
    """Price of a million completion tokens."""
    budget_tokens: int | None = Field(None, ge=1)
    """Stop before more tokens than this are used."""
    budget_cost: float | None = Field(None, gt=0)
    """Stop before more than this is spent, in the currency of the prices."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """More fields of every request's body, such as a server's own options."""

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must start with http:// or https://")
        return plain_address(value).rstrip("/")

    _key_is_named = field_validator("api_key_env")(variable_name)

    @field_validator("extra_body")
    @classmethod
    def _without_keys(cls, fields: dict[str, Any]) -> dict[str, Any]:
        refuse_keys(fields, "extra_body")
        return fields

    @model_validator(mode="after")
    def _priced(self) -> OpenAISettings:
        if self.budget_cost is not None and not (self.prompt_price or self.completion_price):
            raise ValueError("budget_cost needs prompt_price and completion_price")
        return self


class OpenAIModel:
    """A `LanguageModel` behind an endpoint. Construct it where it is used; any thread may call `generate`."""

    reads_expectations = False

    def __init__(self, settings: OpenAISettings, meter: Meter | None = None) -> None:
        """
        Args:
            meter: share one to give several models one budget; by default the settings' own.
        Raises:
            NLRLError: the `openai` package is missing.
            LanguageModelError: the endpoint is OpenAI's own and the key's variable is not set.
        """
        self.name = settings.model
        self.settings = settings
        self.meter = meter or Meter(
            settings.prompt_price, settings.completion_price, settings.budget_tokens, settings.budget_cost
        )
        self._endpoint = _endpoint(settings)
        self._client = _client(self._endpoint)
        self._loop = EventLoopThread(self.name)
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._without = set() if settings.logprobs else {"logprobs"}
        self._jitter = random.Random()

    @property
    def weight_version(self) -> str:
        """The model's name: an endpoint does not tell before it answers. Completions carry what it says then."""
        return self.settings.model

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers every request, in order; one that keeps failing alone gets finish_reason "error".

        Raises:
            NLRLError: a sampling setting that this endpoint cannot be asked for; nothing was sent.
            LanguageModelError: wrong key, unknown model, unreachable, over budget, or no request was answered.
        """
        for sampling in {request.sampling for request in requests}:
            wire.check(sampling, self.settings.base_url)
        answers = self._loop.run(self._answer_all(requests))
        gave_up = [answer for answer in answers if isinstance(answer, failures.Retry)]
        self.meter.count(errors=sum(not isinstance(a, Completion) or a.finish_reason == "error" for a in answers))
        if gave_up and len(gave_up) == len(answers):
            raise LanguageModelError(
                f"base_url: {self.settings.base_url} answered none of {len(answers)} requests in "
                f"{self._attempts} attempts each; the last failure: {gave_up[-1]}"
            )
        return [a if isinstance(a, Completion) else self._failed(f"{a}, {self._attempts} attempts") for a in answers]

    def close(self) -> None:
        """Closes the connections and the thread; the model answers no more."""
        if not self._loop.closed:
            self._loop.run(self._client.close())
            self._loop.close()

    @property
    def _attempts(self) -> int:
        return self.settings.max_retries + 1

    async def _answer_all(self, requests: Sequence[Request]) -> list[Completion | failures.Retry]:
        try:
            async with asyncio.TaskGroup() as running:
                tasks = [running.create_task(self._timed(request)) for request in requests]
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _timed(self, request: Request) -> Completion | failures.Retry:
        """The answer with its time, from here on: the wait for a slot, and attempts that failed, included."""
        asked, began = time.time(), time.perf_counter()
        answer = await self._answer(request)
        if isinstance(answer, Completion):
            stamp([answer], Timing(asked, time.perf_counter() - began))
        return answer

    async def _answer(self, request: Request) -> Completion | failures.Retry:
        async with self._slots:
            self.meter.count(requests=1)
            for attempt in range(self._attempts):
                try:
                    return await self._attempt(request)
                except failures.Refused as refusal:
                    return self._failed(str(refusal))
                except failures.Retry as failure:
                    last = failure
                if attempt < self.settings.max_retries:
                    self.meter.count(retries=1)
                    await asyncio.sleep(self._wait(attempt, last.wait))
        if last.unreachable:
            raise LanguageModelError(
                f"base_url: nothing answers at {self.settings.base_url} ({last}, {self._attempts} attempts); "
                "start the server or correct the address"
            )
        return last

    def _wait(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next attempt: what the endpoint asks for, and a jittered, exponential share of our own."""
        own = min(LONGEST_BACKOFF, self.settings.retry_delay * 2**attempt)
        return own * self._jitter.uniform(0.5, 1.0) if asked is None else asked + own * self._jitter.uniform(0.0, 0.5)

    async def _attempt(self, request: Request) -> Completion:
        """One attempt, repeated at once for each extra field that the endpoint turns out not to take."""
        import openai

        while True:
            body = self._body(request)
            try:
                return await self._send(request, body)
            except openai.APIStatusError as error:
                field = failures.refused_field(error, body)
                if field is None or not self._can_do_without(field, request):
                    raise await self._explained(error) from None
            except Exception as error:
                raise failures.classify(error, self._endpoint) from None

    def _body(self, request: Request) -> dict[str, Any]:
        return wire.body(request, self.settings.model, self.settings.extra_body, self._without)

    def _can_do_without(self, field: str, request: Request) -> bool:
        if field not in self._without:
            log.warning("%s does not take %r; asking without it from now on", self.settings.base_url, field)
            self._without.add(field)
        return field not in self._body(request)

    async def _send(self, request: Request, body: dict[str, Any]) -> Completion:
        import openai

        with self.meter.reserve(wire.prompt_bound(request), request.sampling.max_tokens) as reservation:
            try:
                async with asyncio.timeout(self.settings.timeout):
                    data = await self._client.post(wire.path(request), cast_to=object, body=body)
            except (openai.APIError, TimeoutError) as error:
                failure = failures.classify(error, self._endpoint)
                if not (isinstance(failure, failures.Retry) and failure.billed):
                    reservation.settle(0, 0)
                raise
            if (used := wire.usage(data)) is not None:
                reservation.settle(*used)
            answer = wire.obeyed(wire.completion(data, self.settings.model), request.sampling.constraint)
            return self._scrubbed(answer)

    def _scrubbed(self, answer: Completion) -> Completion:
        """Without the key, should the endpoint say it: what it says is recorded."""
        said = {name: getattr(answer, name) for name in ("text", "weight_version", "error")}
        return replace(answer, **{name: self._endpoint.scrub(text) for name, text in said.items()})

    async def _explained(self, error: Any) -> Exception:
        """The failure, with the names of the models that there are if the name was wrong."""
        failure = failures.classify(error, self._endpoint)
        if isinstance(failure, LanguageModelError) and str(failure).startswith("model:"):
            names = await self._model_names()
            return LanguageModelError(f"{failure}; it serves: {', '.join(names)}" if names else str(failure))
        return failure

    async def _model_names(self) -> list[str]:
        try:
            data: Any = await self._client.get("/models", cast_to=object, options={"timeout": 5.0})
            return sorted(self._endpoint.scrub(str(entry["id"])) for entry in data["data"])[:10]
        except Exception:  # only a courtesy: the failure itself is what matters
            return []

    def _failed(self, why: str) -> Completion:
        return Completion(text="", finish_reason="error", weight_version=self.weight_version, error=why)


def _endpoint(settings: OpenAISettings) -> failures.Endpoint:
    key = os.environ.get(settings.api_key_env, "") if settings.api_key_env else ""
    if not key and settings.base_url.startswith(wire.OPENAI):
        right = (
            f"put it into the environment variable {settings.api_key_env}"
            if settings.api_key_env
            else "name its variable"
        )
        raise LanguageModelError(f"api_key_env: {settings.base_url} needs a key: {right}")
    return failures.Endpoint(settings.base_url, settings.model, settings.api_key_env, key, settings.timeout)


def _client(endpoint: failures.Endpoint) -> Any:
    """The asynchronous client. Retries are ours: they are metered."""
    try:
        import openai
    except ImportError:
        raise NLRLError("kind = \"openai\" needs the openai package: pip install 'nlrl[openai]'") from None
    return openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.key or "none", timeout=endpoint.timeout, max_retries=0
    )
