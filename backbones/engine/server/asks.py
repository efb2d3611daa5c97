"""From a request's body to what the engine is asked: prompts in tokens, checked against vocabulary and context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nlrl.backbones.engine.server.errors import bad_field
from nlrl.backbones.engine.server.wire import ChatBody, CompletionBody, SamplingBody, seeds
from nlrl.backbones.language_model import ChatRole, Message, Request, Sampling
from nlrl.backbones.prompts import PromptEncoder

MOST_PROMPTS = 2048
"""Prompts of one request at most, as in OpenAI's interface."""
UNBOUNDED_ANSWER = 2048
"""Tokens of a chat answer at most, if neither the client nor the model's context sets a limit."""


@dataclass(frozen=True)
class Ask:
    """One HTTP request, understood."""

    body: SamplingBody
    prompts: tuple[tuple[int, ...], ...]
    samplings: tuple[Sampling, ...]
    """One for each prompt: how much an answer may say can depend on what the prompt leaves room for."""
    seeds: tuple[int, ...]
    """One for each of the n answers to a prompt."""
    weights: str
    client: str
    texts: tuple[str, ...] = ()
    """The prompts as they came, if they came as text."""
    marks: tuple[int, ...] = ()
    """Of a chat's prompt."""

    @property
    def requests(self) -> list[Request]:
        """One for each answer, in the order of their indices: a prompt's n answers are neighbours."""
        pairs = zip(self.prompts, self.samplings, strict=True)
        return [Request((), p, s, seed, self.marks) for p, s in pairs for seed in self.seeds]

    @property
    def top(self) -> int | None:
        """Alternatives wanted at each token; None if no log-probabilities are wanted."""
        if isinstance(self.body, ChatBody):
            return self.body.top_logprobs if self.body.logprobs else None
        return self.body.logprobs if isinstance(self.body, CompletionBody) else None

    @property
    def echo(self) -> bool:
        return isinstance(self.body, CompletionBody) and self.body.echo

    def field_of(self, refusal: str) -> str | None:
        """The field that the engine refuses. Those with a range were checked before; what may be left is a constraint
        that its library cannot read."""
        return self.body.constraint_field if refusal.startswith("constraint") else None

    @property
    def silent(self) -> bool:
        """Whether no answer may have a token: the prompt itself is what the client wants to see."""
        return not any(sampling.max_tokens for sampling in self.samplings)

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


class Asker:
    """Knows the tokenizer, the context and the names of the weights.

    Args:
        tokenizer: a `PreTrainedTokenizerFast` or a `PlainTokenizer`.
        context: tokens that a prompt and its answer may have together; None: no limit.
    """

    def __init__(self, tokenizer: Any, context: int | None) -> None:
        self._tokenizer, self._context = tokenizer, context
        self._chats = PromptEncoder(tokenizer)
        self._vocabulary = len(tokenizer)

    def chat(self, body: ChatBody, weights: str, client: str) -> Ask:
        """Raises ApiError for what cannot be obeyed."""
        body.check()
        roles: dict[str, ChatRole] = {"developer": "system", "assistant": "assistant", "user": "user"}
        chat = tuple(Message(roles.get(message.role, "system"), message.content) for message in body.messages)
        try:
            ((prompt, marks),) = self._chats.prompts([Request(messages=chat)])
        except Exception as error:  # a template may refuse a chat in any way that its language has
            raise bad_field("messages", f"messages: the chat template refuses them ({error})") from error
        limit = body.max_completion_tokens or body.max_tokens or self._room(prompt)
        ask = self._ask(body, [prompt], limit, body.top_logprobs, weights, client, "messages")
        return replace(ask, marks=marks)

    def completions(self, body: CompletionBody, weights: str, client: str) -> Ask:
        """Raises ApiError for what cannot be obeyed."""
        body.check()
        if len(body.prompt) > MOST_PROMPTS:
            raise bad_field("prompt", f"prompt has {len(body.prompt)} prompts, more than {MOST_PROMPTS}")
        prompts = [p if isinstance(p, tuple) else self._encoded(p, body.add_special_tokens) for p in body.prompt]
        ask = self._ask(body, prompts, body.max_tokens, body.logprobs or 0, weights, client, "prompt")
        return replace(ask, texts=tuple(prompt for prompt in body.prompt if isinstance(prompt, str)))

    def _encoded(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _ask(
        self,
        body: SamplingBody,
        prompts: Sequence[tuple[int, ...]],
        limit: int,
        top: int,
        weights: str,
        client: str,
        field: str,
    ) -> Ask:
        for prompt in prompts:
            self._check_prompt(prompt, limit, field)
        samplings = {room: body.sampling(min(limit, room), top) for room in set(map(self._room, prompts))}
        drawn = seeds(body.first_seed, body.n)
        by_prompt = tuple(samplings[self._room(prompt)] for prompt in prompts)
        return Ask(body, tuple(prompts), by_prompt, tuple(drawn), weights, body.user or client)

    def _room(self, prompt: Sequence[int]) -> int:
        """Tokens that an answer can have."""
        return UNBOUNDED_ANSWER if self._context is None else max(self._context - len(prompt), 0)

    def _check_prompt(self, prompt: Sequence[int], limit: int, field: str) -> None:
        if not prompt:
            raise bad_field(field, f"{field}: a prompt without a token leaves the model nothing to go on")
        if unknown := [token for token in prompt if not 0 <= token < self._vocabulary]:
            raise bad_field(field, f"{field}: token {unknown[0]} is not one of the {self._vocabulary} of this model")
        if self._context is not None and len(prompt) + min(limit, 1) > self._context:
            message = f"{field}: the prompt has {len(prompt)} tokens and leaves no room in a context of {self._context}"
            raise bad_field(field, message, "context_length_exceeded")
