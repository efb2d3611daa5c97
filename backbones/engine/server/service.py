"""Answers a request's body with a response: asks the engine, writes what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import orjson
from fastapi import Request, Response

from nlrl.backbones.engine.server.answers import Piece, Writer
from nlrl.backbones.engine.server.asks import Ask, Asker
from nlrl.backbones.engine.server.errors import ApiError, queue_full
from nlrl.backbones.engine.server.metrics import HUNG_UP
from nlrl.backbones.engine.server.stream import EventStream, events
from nlrl.backbones.engine.server.surface import ServedEngine
from nlrl.backbones.engine.server.tickets import ClientGone, all_answers, pieces, prompt_scores, while_connected
from nlrl.backbones.engine.server.vocabulary import Vocabulary
from nlrl.backbones.engine.server.wire import ChatBody, CompletionBody, SamplingBody

DEFAULT = "default"
"""The engine's name for the weights that it was made with; clients know them by the engine's own name."""
MOST_SCORING = 64
"""Requests whose prompts are being scored, or wait for it, at a time."""


class Service:
    """What the routes share."""

    def __init__(self, engine: ServedEngine) -> None:
        self._engine = engine
        self._asker, self._words = Asker(engine.tokenizer, engine.context), Vocabulary(engine.tokenizer)
        self._started = int(time.time())
        self._scoring = 0
        self.failure = ""
        """What the engine said when it last could not answer anything; empty once it can again."""

    async def chat(self, body: ChatBody, request: Request) -> Response:
        """Raises ApiError for a request that is not answered."""
        return await self._answer(self._asker.chat, body, request)

    async def completions(self, body: CompletionBody, request: Request) -> Response:
        """Raises ApiError for a request that is not answered."""
        return await self._answer(self._asker.completions, body, request)

    def cards(self) -> list[dict[str, Any]]:
        """One model for each weight set."""
        return [self.card(name) for name in self._names()]

    def card(self, name: str) -> dict[str, Any]:
        """What /v1/models says of one model.

        Raises:
            ApiError: there is none of that name.
        """
        weights = self._weights(name)
        version = self._engine.weight_versions()[weights]
        card = {"id": name, "object": "model", "created": self._started, "owned_by": "nlrl"}
        return card | {"weights": weights, "version": version, "max_model_len": self._engine.context}

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _names(self) -> dict[str, str]:
        """Weight sets by the names that clients use."""
        return {self._engine.name if name == DEFAULT else name: name for name in self._engine.weight_versions()}

    def _weights(self, model: str) -> str:
        names = self._names()
        if model and model not in names:
            message = f"model {model!r} is not served here; these are: {', '.join(names)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return names[model] if model else DEFAULT

    async def _answer(self, understand: Callable[..., Ask], body: SamplingBody, request: Request) -> Response:
        ask = understand(body, self._weights(body.model), request.client.host if request.client else "")
        version = self._engine.weight_versions()[ask.weights]
        writer = Writer(ask, body.model or self._engine.name, version, self._words, isinstance(body, ChatBody))
        try:
            response = await self._response(ask, writer, request)
        except ClientGone:
            return Response(status_code=int(HUNG_UP))
        except ApiError as error:
            self.failure = error.message if error.status == 503 else ""
            raise
        self.failure = ""
        return response

    async def _response(self, ask: Ask, writer: Writer, request: Request) -> Response:
        if not ask.body.stream:
            return json_response(await while_connected(request.receive, self._whole(ask, writer)))
        source = events(writer, pieces(self._engine, ask), await self._echoes(ask))
        return EventStream(await while_connected(request.receive, anext(source)), source)  # a refusal has its status

    async def _whole(self, ask: Ask, writer: Writer) -> dict[str, Any]:
        echoes = await self._echoes(ask)
        return writer.whole(await all_answers(self._engine, ask), echoes)

    async def _echoes(self, ask: Ask) -> Sequence[Piece]:
        """The prompt before each answer, with its log-probabilities if they are wanted."""
        if not ask.echo:
            return ()
        texts = ask.texts or [self._words.text(prompt) for prompt in ask.prompts]
        if ask.top is None:
            echoes = [Piece(text) for text in texts]
        else:
            with self._turn():
                scores = await prompt_scores(self._engine, ask)
            echoes = [Piece.echo(*parts) for parts in zip(texts, ask.prompts, scores, strict=True)]
        return [echo for echo in echoes for _ in ask.seeds]

    @contextmanager
    def _turn(self):
        """Scoring has no queue of its own; this is its bound."""
        if self._scoring >= MOST_SCORING:
            raise queue_full(f"{self._scoring} requests to score prompts are waiting")
        self._scoring += 1
        try:
            yield
        finally:
            self._scoring -= 1


def json_response(data: Any) -> Response:
    return Response(orjson.dumps(data), media_type="application/json")
