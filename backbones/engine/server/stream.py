"""Server-sent events: `data: {...}` for every chunk, `data: [DONE]` at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from typing import Any

import orjson
from fastapi import Response

from nlrl.backbones.engine.server.answers import Piece, Writer
from nlrl.backbones.engine.server.errors import ApiError
from nlrl.backbones.engine.server.surface import Delta
from nlrl.backbones.engine.server.tickets import ClientGone, while_connected
from nlrl.backbones.language_model import Completion

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # tells nginx to pass events on as they come
]


def event(data: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(data) + b"\n\n"


async def events(
    writer: Writer, arriving: AsyncGenerator[tuple[int, Delta | Completion]], echoes: Sequence[Piece]
) -> AsyncGenerator[bytes]:
    """The events of one ask; each answer's chunks joined are its whole answer. With alternatives asked for, tokens and
    their log-probabilities come with an answer's last chunk.

    Args:
        arriving: as `tickets.pieces` yields them.
        echoes: the prompt before each answer, or none.
    """
    late = bool(writer.ask.top)  # the engine tells the alternatives of a token with the whole answer only
    sent: dict[int, tuple[int, int]] = {}
    spoken = 0
    async with aclosing(arriving):
        async for index, came in arriving:
            first = index not in sent
            if first and echoes:
                yield event(writer.chunk(index, echoes[index]))
            text, tokens = sent.get(index, (0, 0))
            if isinstance(came, Completion):
                rest = Piece.of(came).after(text, tokens)
                yield event(writer.chunk(index, rest, came.finish_reason, first))
                spoken += len(came.tokens)
            else:
                piece = Piece(came.text) if late else Piece.of(came)
                yield event(writer.chunk(index, piece, None, first))
                sent[index] = text + len(piece.text), tokens + len(piece.tokens)
    if writer.ask.body.stream_options.include_usage:
        yield event(writer.last(spoken))
    yield DONE


class EventStream(Response):
    """An ASGI response whose first event is there already. What goes wrong from then on is an event of its own; a
    client that hangs up closes `rest`."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes]) -> None:
        super().__init__()
        self._first, self._rest = first, rest

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with suppress(ClientGone):
            await while_connected(receive, self._send(send))

    async def _send(self, send: Any) -> None:
        async with aclosing(self._rest):
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await _send_part(send, self._first)
            try:
                async for data in self._rest:
                    await _send_part(send, data)
            except ApiError as error:
                await _send_part(send, event(error.body()))
        await _send_part(send, b"", more=False)


async def _send_part(send: Any, data: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})
