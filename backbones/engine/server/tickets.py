"""Answers from the engine's thread to the event loop; whoever stops waiting cancels."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

from nlrl.backbones.engine import QueueFull
from nlrl.backbones.engine.server.asks import Ask
from nlrl.backbones.engine.server.errors import ApiError, queue_full
from nlrl.backbones.engine.server.surface import Delta, ServedEngine, TokenScore
from nlrl.backbones.language_model import Completion, LanguageModelError
from nlrl.errors import NLRLError

T = TypeVar("T")


class ClientGone(Exception):
    """Nobody is left to answer."""


async def while_connected(receive: Any, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client hangs up.

    Args:
        receive: ASGI's, after the body was read.
    Raises:
        ClientGone: it hung up.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_hung_up(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for running in (task, gone):
            running.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hung_up(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def all_answers(engine: ServedEngine, ask: Ask) -> list[Completion]:
    """One completion for each of the ask's requests, in order.

    Raises:
        ApiError: the queue is full, or a request cannot be answered; none is left in the engine.
    """
    if ask.silent:
        return _nothing_said(engine, ask)
    async with _submitted(engine, ask) as tickets:
        answers = await asyncio.gather(*map(asyncio.wrap_future, tickets), return_exceptions=True)
        return [_checked(answer, ask) for answer in answers]


async def pieces(engine: ServedEngine, ask: Ask) -> AsyncGenerator[tuple[int, Delta | Completion]]:
    """(index of the answer, what came): deltas as they are drawn, at last each answer's completion.

    Close it (`contextlib.aclosing`) to cancel what is under way. Raises as `all_answers`.
    """
    if ask.silent:
        for index, answer in enumerate(_nothing_said(engine, ask)):
            yield index, answer
        return
    loop, arrived = asyncio.get_running_loop(), asyncio.Queue()

    def put(index: int, delta: Delta) -> None:  # on the engine's thread
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, (index, delta))

    async with _submitted(engine, ask, put) as tickets:
        for index, ticket in enumerate(tickets):
            asyncio.wrap_future(ticket).add_done_callback(lambda done, i=index: arrived.put_nowait((i, done)))
        running = len(tickets)
        while running:
            index, came = await arrived.get()
            if isinstance(came, asyncio.Future):
                came = _checked(_outcome(came), ask)
                running -= 1
            yield index, came


@asynccontextmanager
async def _submitted(engine: ServedEngine, ask: Ask, put: Any = None) -> AsyncGenerator[Sequence[Future[Completion]]]:
    """All of an ask's requests or none in the engine; none after the block."""
    tickets: list[Future[Completion]] = []
    over = threading.Event()

    def submit() -> None:
        for index, request in enumerate(ask.requests):
            on_tokens = partial(put, index) if put else None
            tickets.append(engine.submit(request, weights=ask.weights, client=ask.client, on_tokens=on_tokens))
            if over.is_set():  # the client left while this ran on its thread
                _cancel(tickets)
                return

    try:
        with _told(ask):
            if ask.samplings[0].constraint is None:
                submit()
            else:  # a grammar takes its time to compile
                await asyncio.to_thread(submit)
            yield tickets
    finally:
        over.set()
        _cancel(tickets)


def _cancel(tickets: Sequence[Future[Completion]]) -> None:
    for ticket in list(tickets):
        if not ticket.done():
            ticket.cancel()


@contextmanager
def _told(ask: Ask) -> Iterator[None]:
    """The engine's errors as the client is to read them."""
    try:
        yield
    except QueueFull as error:
        raise queue_full(str(error)) from error
    except LanguageModelError as error:
        raise ApiError(503, str(error)) from error
    except NLRLError as error:
        raise ApiError(400, str(error), param=ask.field_of(str(error))) from error


def _nothing_said(engine: ServedEngine, ask: Ask) -> list[Completion]:
    version = engine.weight_versions()[ask.weights]
    return [Completion("", finish_reason="length", weight_version=version) for _ in ask.requests]


def _outcome(done: asyncio.Future[Completion]) -> Completion | BaseException:
    if done.cancelled():
        return asyncio.CancelledError()
    return done.exception() or done.result()


def _checked(answer: Completion | BaseException, ask: Ask) -> Completion:
    if isinstance(answer, asyncio.CancelledError) or getattr(answer, "finish_reason", "") == "cancelled":
        raise ApiError(503, "the engine is being shut down")
    if isinstance(answer, BaseException):
        raise answer
    if answer.finish_reason == "error":
        raise ApiError(400, answer.error)
    return answer


async def prompt_scores(engine: ServedEngine, ask: Ask) -> list[Sequence[TokenScore]]:
    """For each prompt: the scores of all its tokens but the first, which nothing comes before.

    Raises:
        ApiError: these prompts cannot be scored.
    """
    longer = [prompt for prompt in ask.prompts if len(prompt) > 1]
    starts, rests = [prompt[:1] for prompt in longer], [prompt[1:] for prompt in longer]
    score = partial(engine.score_tokens, top_logprobs=ask.top or 0, weights=ask.weights)
    with _told(ask):
        scored = iter(await asyncio.to_thread(score, starts, rests) if longer else ())
    return [next(scored) if len(prompt) > 1 else () for prompt in ask.prompts]
