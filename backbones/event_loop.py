"""An asyncio loop on its own thread: the bridge from synchronous callers to asynchronous clients.

A script, a Ray actor and a notebook (which already runs a loop) all call `run` the same way, and connections stay open
between calls because the loop lives as long as the model that owns it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from nlrl.backbones.language_model import LanguageModelError

T = TypeVar("T")


class EventLoopThread:
    """Runs coroutines on a daemon thread. `run` may be called from several threads, never from the loop's own."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"nlrl {name}", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Waits for the coroutine; an interrupt while waiting cancels it.

        Raises:
            LanguageModelError: the loop is closed.
        """
        if self.closed:
            coroutine.close()
            raise LanguageModelError(f"{self._name}: this model is closed; construct it again to go on")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Cancels what still runs and ends the thread. Closing twice is allowed."""
        if self.closed:
            return
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
