"""The engine: many requests, a few weight sets, one thread.

Callers put requests into a bounded queue and get tickets; the engine's thread gives every weight set (`lane`) one step
after the other. Weights are swapped while nothing of their lane is being written: what runs is finished with the old
ones, what waits gets the new ones, and every completion says which wrote it.
"""

from __future__ import annotations

import atexit
import copy
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nlrl.backbones.answers import text_decoder
from nlrl.backbones.engine import cpu
from nlrl.backbones.engine.constraints import Grammars
from nlrl.backbones.engine.lane import Lane
from nlrl.backbones.engine.runner import Runner
from nlrl.backbones.engine.sequence import OnTokens, Ticket
from nlrl.backbones.engine.sequence import Sequence as Running
from nlrl.backbones.engine.store import Store
from nlrl.backbones.engine.weights import checked, read
from nlrl.backbones.language_model import Completion, LanguageModelError, Request, Sampling, check_sampling
from nlrl.backbones.prompts import Prompt, PromptEncoder
from nlrl.backbones.sampler import NumberTokens
from nlrl.backbones.scoring import TokenScore, end_tokens, score
from nlrl.errors import NLRLError

DEFAULT = "default"
IDLE_SECONDS = 2.0
"""The thread ends after that and starts again with the next request, so an engine that nobody holds can go."""
LONGEST = 8_192
"""Tokens of a sequence, for models that set no limit."""
ROWS = {"cpu": 128, "cuda": 1024}
BURST = 8
CHUNK_TOKENS = {"cpu": 512, "cuda": 4_096}
"""Tokens of one prompt read at once, so that a long prompt keeps nobody waiting."""


_open: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that is inside native code when the interpreter goes would take the process with it."""
    for engine in list(_open):
        engine.close()


class QueueFull(NLRLError):
    """As many requests wait as may wait; try again later."""


class Engine:
    """Serves a `Network` in this process. Thread-safe; `close` ends its thread."""

    def __init__(
        self,
        model,
        tokenizer,
        *,
        name: str = "native",
        max_rows: int | None = None,
        memory_bytes: int | None = None,
        max_queue: int = 65_536,
        dtype: torch.dtype | None = None,
        number_grid: float = 0.02,
        weight_version: str = "initial",
        cuda_graphs: bool = True,
        compiled_cpu: bool = True,
        chunk_tokens: int | None = None,
        burst: int | None = None,
        overlap: bool | None = None,
    ):
        """
        Args:
            model: a `Network` (any `Backbone` is one) on the device it is to run on. Used as it is, not copied, unless
                `dtype` differs.
            tokenizer: a `PreTrainedTokenizerFast` or a `PlainTokenizer`.
            name: who is speaking, in records.
            max_rows: sequences written at once.
            memory_bytes: for keys, values and states of one weight set; by default 512 MiB on a CPU, half of what is
                free on CUDA, and never more than `max_rows` sequences could use twice over.
            max_queue: requests that may wait.
            dtype: serve a private copy of the weights in this type.
            number_grid: `Sampling.expected_number` writes multiples of this only; 0 for every number of the vocabulary.
            weight_version: version of the weights that `model` holds now.
            cuda_graphs, compiled_cpu: False decodes with plain PyTorch.
            chunk_tokens: prompt tokens of one request read at once.
            burst: tokens drawn between two looks of the host; four times as many while nobody waits or watches, unless
                it is 1 or bursts overlap.
            overlap: launch a burst before the last one's tokens are looked at; by default where there is a device
                beside the host.
        """
        if dtype is not None and dtype != model.dtype:
            model = copy.deepcopy(model).to(dtype)
        self.name, self.tokenizer, self.device = name, tokenizer, model.device
        kind = self.device.type if self.device.type in ROWS else "cuda"
        self._settings = {
            "rows": max_rows or ROWS[kind], "memory": memory_bytes, "cuda_graphs": cuda_graphs,
            "compiled_cpu": compiled_cpu, "chunk": chunk_tokens or CHUNK_TOKENS[kind], "burst": burst or BURST,
            "overlap": self.device.type != "cpu" if overlap is None else overlap,
        }  # fmt: skip
        self.context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.max_queue = max_queue
        self._ends = end_tokens(model, tokenizer)
        self._prompts, self._decode = PromptEncoder(tokenizer), text_decoder(tokenizer)
        self._prompt_lock = threading.Lock()
        self._numbers = NumberTokens.of(tokenizer, model.config.vocab_size, number_grid, self.device)
        self._grammars = Grammars(tokenizer, model.config.vocab_size, self._ends)
        self._lanes: dict[str, Lane] = {}
        self._changed = threading.Condition()
        self._inbox: deque[tuple[str, Running]] = deque()
        self._withdrawn: set[Ticket] = set()
        self._orders: deque[tuple[str, Callable[[], Any], Future, bool]] = deque()
        self._running: dict[Ticket, tuple[str, Running]] = {}
        self._busy = 0.0
        self._broken: BaseException | None = None
        self._closing = False
        self._thread: threading.Thread | None = None
        self._lanes[DEFAULT] = self._new_lane(model.eval(), weight_version)

    @property
    def reads_expectations(self) -> bool:
        """Whether the vocabulary has number tokens, so that `Sampling.expected_number` works."""
        return self._numbers is not None

    @property
    def weight_version(self) -> str:
        """Of the default weight set."""
        return self._lanes[DEFAULT].version

    @property
    def model(self):
        """The default weight set's."""
        return self._lanes[DEFAULT].runner.model

    @property
    def failed(self) -> bool:
        """Whether an error has ended its thread: it answers nothing any more."""
        return self._broken is not None

    def submit(
        self, request: Request, *, weights: str = DEFAULT, client: str = "", on_tokens: OnTokens | None = None
    ) -> Ticket:
        """Puts a request into the queue.

        Args:
            weights: name of the weight set that is to answer.
            client: clients are served in turn.
            on_tokens: called on the engine's thread with every piece of new text.
        Raises:
            QueueFull: `max_queue` requests wait.
            NLRLError: the request cannot be obeyed; it is named why.
        """
        [prompt] = self._encode([request])
        return self._submit([(request, prompt)], weights, client, on_tokens, waits=False)[0]

    def generate(self, requests: Sequence[Request], weights: str = DEFAULT) -> list[Completion]:
        """Answers every request, in order; equal ones are answered once. A prompt longer than the model's context gets
        a completion that says so.

        Raises:
            NLRLError: a request is not answerable as asked; none was answered.
        """
        prompts = self._encode(requests)
        keys = [_identity(request, prompt.tokens) for request, prompt in zip(requests, prompts, strict=True)]
        distinct = dict(zip(keys, zip(requests, prompts, strict=True), strict=True))
        tickets = self._submit(list(distinct.values()), weights, "", None, waits=True)
        for ticket in reversed(tickets):  # the last one first: waiting wakes this thread, and the other has work to do
            ticket.result()
        answers = dict(zip(distinct, (ticket.result() for ticket in tickets), strict=True))
        return [answers[key] for key in keys]

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], weights: str = DEFAULT
    ) -> list[list[float]]:
        """Natural log-probability of every token of each continuation, given its prompt and the continuation so far.

        Args: token ids; no prompt may be empty.
        """
        return [[one.logprob for one in row] for row in self.score_tokens(prompts, continuations, weights=weights)]

    def score_tokens(
        self,
        prompts: Sequence[Sequence[int]],
        continuations: Sequence[Sequence[int]],
        *,
        top_logprobs: int = 0,
        weights: str = DEFAULT,
    ) -> list[list[TokenScore]]:
        """As `score`, with the likeliest tokens at each place, `top_logprobs` many."""
        lane = self._lane(weights)
        return self._order(
            weights, lambda: score(lane.runner.model, prompts, continuations, top_logprobs), exclusive=False
        )

    def load_weights(self, weights: Mapping[str, Tensor] | str | Path, version: str, name: str = DEFAULT) -> None:
        """Swaps a weight set in place, or adds one; returns when it is in use. Requests wait meanwhile, none is lost.

        Args:
            weights: every tensor of the model's own state dict (device and dtype may differ; a tied tensor under one of
                its names), or a safetensors file of them.
            name: of the weight set; a new name adds one.
        Raises:
            NLRLError: a tensor is missing, unknown or of another shape; nothing was changed.
        """
        model = self._lanes[DEFAULT].runner.model
        tensors = checked(model, read(weights) if isinstance(weights, str | Path) else weights)
        if name in self._lanes:
            lane = self._lanes[name]
            self._order(name, lambda: lane.swap(tensors, version), exclusive=True)
            return

        def add() -> None:
            with torch.no_grad():
                twin = copy.deepcopy(model)
                lane = self._new_lane(twin, version)
                lane.swap(tensors, version)
            self._lanes[name] = lane

        self._order(DEFAULT, add, exclusive=False)

    def weight_versions(self) -> dict[str, str]:
        return {name: lane.version for name, lane in self._lanes.items()}

    def metrics(self) -> dict[str, float]:
        """Counters (`..._total`) since the start and gauges, over all weight sets. `busy_seconds_total`: in which the
        engine's thread had something to compute."""
        from nlrl.backbones.engine.metrics import collect

        with self._changed:
            return collect(list(self._lanes.values()), len(self._inbox)) | {"busy_seconds_total": self._busy}

    def close(self) -> None:
        """Ends the thread; what has not been answered fails. The engine cannot be used any more."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _encode(self, requests: Sequence[Request]) -> list[Prompt]:
        for sampling in {request.sampling for request in requests}:
            check_sampling(sampling)
        with self._prompt_lock:
            return self._prompts.prompts(requests)

    def _submit(self, requests: Sequence[tuple[Request, Prompt]], weights, client, on_tokens, waits: bool):
        """Tickets of requests with their prompts."""
        self._lane(weights)
        constraints = {request.sampling.constraint for request, _ in requests}
        grammars = {c: self._grammars.compile(c) for c in constraints if c is not None}
        sequences = []
        for request, (prompt, marks) in requests:
            sampling, ticket = self._within(request.sampling, prompt), Ticket(self._withdraw)
            sequence = Running(prompt, sampling, request.seed, ticket, client, on_tokens=on_tokens)
            sequence.marks = tuple(sorted({mark for mark in (*marks, *request.marks) if 0 < mark <= len(prompt)}))
            if sampling.constraint is not None:
                sequence.matcher = grammars[sampling.constraint].start()
            sequences.append(sequence)
        self._enqueue(weights, [s for s in sequences if not self._refused(s, weights)], waits)
        return [sequence.ticket for sequence in sequences]

    def _refused(self, sequence: Running, weights: str) -> bool:
        """Ends what cannot run: no room for a token in the context or in memory."""
        lane, length = self._lanes[weights], len(sequence.prompt)
        error = ""
        if self.context is not None and length >= self.context:
            error = f"the prompt has {length} tokens and leaves no room in a context of {self.context}"
        elif not lane.scheduler.fits(sequence) or sequence.slots > lane.store.length:
            error = f"the prompt of {length} tokens and its answer do not fit into the engine's memory"
        if error:
            sequence.ticket.finish(lane.refusal(sequence, error))
        elif sequence.sampling.max_tokens == 0:
            sequence.ticket.finish(replace(lane.refusal(sequence, ""), finish_reason="length"))
        return sequence.ticket.done()

    def _enqueue(self, weights: str, sequences: Sequence[Running], waits: bool) -> None:
        most = self.max_queue + self._lanes[weights].store.rows
        with self._changed:
            for sequence in sequences:
                while len(self._running) >= most:
                    if not waits:
                        raise QueueFull(f"{self.max_queue} requests wait already")
                    self._start()
                    self._changed.notify_all()
                    self._changed.wait()
                    self._check_open()
                self._running[sequence.ticket] = (weights, sequence)
                sequence.ticket.add_done_callback(self._forget)
                self._inbox.append((weights, sequence))
            self._start()
            self._changed.notify_all()

    def _forget(self, ticket) -> None:
        with self._changed:
            if not ticket.cancelled():  # the thread still has to free a cancelled one's row
                self._running.pop(ticket, None)
                self._changed.notify_all()

    def _withdraw(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._running:
                self._withdrawn.add(ticket)
                self._changed.notify_all()

    def _order(self, name: str, work: Callable[[], Any], exclusive: bool) -> Any:
        """Has the engine's thread do something between two steps; exclusive: when nothing of that lane is running."""
        done: Future = Future()
        with self._changed:
            self._start()
            self._orders.append((name, work, done, exclusive))
            self._changed.notify_all()
        return done.result()

    def _start(self) -> None:
        self._check_open()
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name=f"engine {self.name}", daemon=True)
            self._thread.start()
            _open.add(self)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise LanguageModelError(f"the engine has failed: {self._broken}") from self._broken
        if self._closing:
            raise LanguageModelError("the engine is closed")

    def _serve(self) -> None:
        try:
            with torch.inference_mode(False), torch.no_grad():
                while self._turn():
                    pass
        except BaseException as error:
            self._broken = error
            self._fail(error)
        if self._closing:
            self._fail(LanguageModelError("the engine was closed before it had answered"))

    def _turn(self) -> bool:
        """Takes in what callers have left, gives every lane a step, and sleeps if there was nothing to do. False ends
        the thread."""
        with self._changed:
            if self._closing:
                return False
            self._take_in()
        began = time.perf_counter()
        barred = self._obey()
        worked = [lane.step(admits=name not in barred) for name, lane in list(self._lanes.items())]
        self._busy += time.perf_counter() - began if any(worked) else 0.0
        with self._changed:
            if any(worked) or self._left() or self._changed.wait(IDLE_SECONDS) or self._left():
                return True
            self._thread = None
            return False

    def _left(self) -> bool:
        """Whether callers have left something to do."""
        return bool(self._inbox or self._withdrawn or self._orders or self._closing)

    def _take_in(self) -> None:
        while self._inbox:
            name, sequence = self._inbox.popleft()
            self._lanes[name].scheduler.waiting.add(sequence)
        for ticket in self._withdrawn:
            name, sequence = self._running.pop(ticket, (None, None))
            if name is not None and sequence is not None:
                self._lanes[name].withdraw(sequence)
        if self._withdrawn:
            self._withdrawn.clear()
            self._changed.notify_all()

    def _obey(self) -> set[str]:
        """Does what was ordered, in order for each lane; returns the lanes that must come to rest first."""
        barred: set[str] = set()
        for _ in range(len(self._orders)):
            name, work, done, exclusive = order = self._orders.popleft()
            if name in barred or (exclusive and self._lanes[name].scheduler.busy):
                barred.add(name)
                self._orders.append(order)
                continue
            try:
                done.set_result(work())
            except Exception as error:
                done.set_exception(error)
        return barred

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            waiting, self._running = list(self._running), {}
            orders, self._orders = list(self._orders), deque()
            self._changed.notify_all()
        failure = error if isinstance(error, NLRLError) else LanguageModelError(f"the engine has failed: {error!r}")
        for ticket in waiting:
            ticket.fail(failure)
        for _, _, done, _ in orders:
            done.set_exception(failure)

    def _new_lane(self, model, version: str) -> Lane:
        s = self._settings
        length = self.context or LONGEST
        memory = s["memory"] or _default_memory(self.device)
        store = Store(model, s["rows"], length, memory, self.device)
        compiled = cpu.compile_model(model) if self.device.type == "cpu" and s["compiled_cpu"] else None
        runner = Runner(model, store, self._ends, self._numbers, s["burst"], s["cuda_graphs"], compiled)
        return Lane(store, runner, self._ends, self._decode, version, s["chunk"], s["overlap"])

    def _lane(self, name: str) -> Lane:
        if name not in self._lanes:
            raise NLRLError(f"there is no weight set {name!r}; there are {sorted(self._lanes)}")
        return self._lanes[name]

    def _within(self, sampling: Sampling, prompt: tuple[int, ...]) -> Sampling:
        """Cuts an answer short where the context ends."""
        room = (self.context or LONGEST) - len(prompt)
        return sampling if sampling.max_tokens <= room else replace(sampling, max_tokens=max(0, room))


def _identity(request: Request, prompt: tuple[int, ...]) -> tuple:
    """Equal for requests that must get the same answer: a greedy one's seed does not matter."""
    return prompt, request.sampling, request.seed if request.sampling.temperature > 0 else 0


def _default_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return 1 << 29
