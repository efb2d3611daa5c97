"""Bodies of requests: which fields there are, what they may hold, and what the engine is asked for them.

Fields that this server does not know are ignored, as clients send many that change nothing (`metadata`, `store`, ...).
Those that would change the answer are refused by name (`REFUSED`), unless they hold a value that asks for nothing.
A null is a field left out.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nlrl.backbones.engine.server.errors import bad_field
from nlrl.backbones.language_model import Constraint, Sampling

MOST_CHOICES = 1024
"""Answers to one prompt at most."""
MOST_TOP = 20
"""Alternatives of a token that are reported at most, as in OpenAI's interface."""
REFUSED: dict[str, tuple[Any, ...]] = {
    "allowed_token_ids": ([],),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "documents": ([],),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "guided_grammar": (),
    "include_stop_str_in_output": (False,),
    "logit_bias": ({},),
    "min_tokens": (0,),
    "modalities": (["text"], []),
    "presence_penalty": (0,),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "repetition_penalty": (1,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (-1,),
    "use_beam_search": (False,),
    "web_search_options": (),
}
"""Fields that change an answer in ways that are not built, and the values with which they do not."""

_ANY_OBJECT = '{"type": "object"}'
_CONSTRAINTS = {"choice": "choice", "regex": "regex", "json": "json_schema"}


class Body(BaseModel):
    """Unknown fields are kept, to be looked at by `check`."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def _texts(value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) and text for text in texts):
        raise ValueError("a text or a list of texts is expected, none of them empty")
    return tuple(texts)


def _content(value: Any) -> str:
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise ValueError("a text or a list of parts of type 'text' is expected")
    return "\n".join(part["text"] for part in parts)


def _prompts(value: Any) -> list[Any]:
    several = isinstance(value, list) and bool(value) and isinstance(value[0], str | list)
    prompts = value if several else [value]
    if all(isinstance(prompt, str) for prompt in prompts):
        return prompts
    if not all(isinstance(prompt, list) and all(type(token) is int for token in prompt) for prompt in prompts):
        raise ValueError("a text, a list of texts, a list of token ids or a list of lists of token ids is expected")
    return [tuple(prompt) for prompt in prompts]


def _schema_text(value: Any) -> str:
    if not isinstance(value, str | dict):
        raise ValueError("a JSON schema is expected, as an object or as text")
    return value if isinstance(value, str) else json.dumps(value)


SchemaText = Annotated[str, BeforeValidator(_schema_text)]


class StreamOptions(Body):
    include_usage: bool = False


class StructuredOutputs(Body):
    choice: list[str] | None = None
    regex: str | None = None
    json_: Annotated[SchemaText | None, Field(alias="json")] = None


class JsonSchema(Body):
    schema_: Annotated[SchemaText | None, Field(alias="schema")] = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class SamplingBody(Body):
    """What both kinds of requests may say."""

    model: str = ""
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1)
    """0 and -1 keep every token."""
    min_p: float = Field(0.0, ge=0, le=1)
    n: int = Field(1, ge=1, le=MOST_CHOICES)
    seed: int | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    user: str = ""
    ignore_eos: bool = False
    return_token_ids: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_choice: list[str] | None = None
    guided_regex: str | None = None
    guided_json: SchemaText | None = None

    def check(self) -> None:
        """Raises ApiError for the first field that cannot be obeyed."""
        for name, value in (self.model_extra or {}).items():
            if name in REFUSED and value not in REFUSED[name] and not (name == "best_of" and value == self.n):
                raise bad_field(name, f"{name} is {_short(value)}, and this server has no such thing", "unsupported")

    @property
    def first_seed(self) -> int:
        """The seed that was given; otherwise one that nobody can guess."""
        return secrets.randbits(63) if self.seed is None else self.seed

    def sampling(self, max_tokens: int, top_logprobs: int) -> Sampling:
        """The same for every answer.

        Raises:
            ApiError: constraints that cannot be obeyed.
        """
        return Sampling(
            temperature=self.temperature,
            top_k=max(self.top_k, 0),
            top_p=self.top_p,
            min_p=self.min_p,
            max_tokens=max_tokens,
            stop=self.stop,
            ignore_end=self.ignore_eos,
            top_logprobs=top_logprobs,
            constraint=self._constraints()[1],
        )

    @property
    def constraint_field(self) -> str | None:
        """The field that says what an answer may be."""
        return self._constraints()[0]

    def _constraints(self) -> tuple[str | None, Constraint | None]:
        given = [(f"guided_{kind}", kind, getattr(self, f"guided_{kind}")) for kind in _CONSTRAINTS]
        if self.structured_outputs is not None:
            given += self._structured(self.structured_outputs)
        if self.response_format is not None and self.response_format.type != "text":
            given.append(("response_format", "json", _schema(self.response_format)))
        given = [(name, kind, value) for name, kind, value in given if value is not None]
        if not given:
            return None, None
        if len(given) > 1:
            raise bad_field(given[1][0], f"{given[0][0]} and {given[1][0]} are given; an answer can obey one of them")
        name, kind, value = given[0]
        return name, Constraint(_CONSTRAINTS[kind], _value(name, value))  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _structured(outputs: StructuredOutputs) -> list[tuple[str, str, Any]]:
        for name in ("grammar", "json_object", "structural_tag"):
            if (outputs.model_extra or {}).get(name):
                raise bad_field(
                    f"structured_outputs.{name}", f"structured_outputs knows {', '.join(_CONSTRAINTS)} only"
                )
        values = {"choice": outputs.choice, "regex": outputs.regex, "json": outputs.json_}
        return [(f"structured_outputs.{kind}", kind, value) for kind, value in values.items()]


class ChatMessage(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_content)]


class ChatBody(SamplingBody):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP)

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise bad_field("top_logprobs", f"top_logprobs is {self.top_logprobs}, which needs logprobs = true")
        if (self.model_extra or {}).get("echo"):
            raise bad_field("echo", "echo is for /v1/completions", "unsupported")


class CompletionBody(SamplingBody):
    """The body of /v1/completions."""

    prompt: Annotated[list[str] | list[tuple[int, ...]], BeforeValidator(_prompts)]
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP)
    echo: bool = False
    add_special_tokens: bool = True
    """Whether a prompt that comes as text gets what the tokenizer puts around a text."""


def seeds(first: int, n: int) -> list[int]:
    """A seed for each of n answers to one prompt: the given one for the first, derived ones for the others."""
    digests = [hashlib.blake2b(f"{first}/{i}".encode(), digest_size=7) for i in range(1, n)]
    return [first, *(int.from_bytes(digest.digest()) for digest in digests)]


def _schema(format: ResponseFormat) -> str:
    if format.type == "json_object":
        return _ANY_OBJECT
    if format.json_schema is None or format.json_schema.schema_ is None:
        raise bad_field("response_format.json_schema.schema", "response_format.json_schema.schema is missing")
    return format.json_schema.schema_


def _value(name: str, value: Any) -> str | tuple[str, ...]:
    if value in ("", []):
        raise bad_field(name, f"{name} is empty")
    return tuple(value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
