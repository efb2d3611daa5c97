"""Our own sampler behind the `LanguageModel` interface: batched, KV-cached, seeded by request.

1. Requests are rendered to tokens (`prompts`), equal ones merged and the rest cut into micro-batches of similar length
   (`jobs`).
2. A micro-batch is prefilled and decoded (`decoding`); on CUDA the decoding step is a graph (`decode_graphs`).
3. Drawn tokens become completions (`answers`).

It knows no game and no role, and keeps nothing between calls but the weights, the graphs and the rendered prompts.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nlrl.backbones import decode_graphs
from nlrl.backbones.answers import completions, stop_watch, text_decoder
from nlrl.backbones.decoding import Batch, Decoder, decode, padded, padded_positions, passes, start
from nlrl.backbones.jobs import Job, distinct_jobs, micro_batches
from nlrl.backbones.language_model import Completion, Request
from nlrl.backbones.prompts import PromptEncoder
from nlrl.backbones.sampler import NumberTokens
from nlrl.errors import NLRLError

log = logging.getLogger(__name__)
_MOST_LOGITS = 1 << 27


class NativeLanguageModel:
    """Samples from a `Backbone` in this process."""

    def __init__(
        self,
        model,
        tokenizer,
        *,
        name: str = "native",
        max_batch: int | None = None,
        dtype: torch.dtype | None = None,
        number_grid: float = 0.02,
        weight_version: str = "initial",
        cuda_graphs: bool = True,
        cache_bytes: int | None = None,
    ):
        """
        Args:
            model: a `Backbone` on the device it is to run on. Used as it is, not copied, unless `dtype` differs.
            tokenizer: a `PreTrainedTokenizerFast`.
            name: who is speaking, in records.
            max_batch: rows decoded together; by default 512 on a CPU, 4,096 on CUDA (fewer for a large vocabulary).
            dtype: sample from a private copy of the weights in this type.
            number_grid: `Sampling.expected_number` writes multiples of this only; 0 for every number of the vocabulary.
            weight_version: version of the weights that `model` holds now.
            cuda_graphs: False decodes eagerly on CUDA too.
            cache_bytes: decode state of one micro-batch at most; by default 1 GiB on a CPU, an eighth of the
                memory on CUDA.
        """
        if dtype is not None and dtype != model.dtype:
            model = copy.deepcopy(model).to(dtype)
        self.name = name
        self.model = model.eval()
        self.device = model.device
        on_cuda = self.device.type == "cuda"
        self.max_batch = max_batch or (max(64, min(4096, _MOST_LOGITS // model.config.vocab_size)) if on_cuda else 512)
        self._cache_bytes = cache_bytes or _default_cache_bytes(self.device)
        self._pass_tokens = 131_072 if on_cuda else 4_096
        self._version = weight_version
        self._prompts = PromptEncoder(tokenizer)
        self._decode_text = text_decoder(tokenizer)
        self._ends = _end_tokens(model, tokenizer)
        numbers = NumberTokens.of(tokenizer, model.config.vocab_size, number_grid, self.device)
        self._decoder = Decoder(model, torch.tensor(sorted(self._ends), dtype=torch.int64, device=self.device), numbers)
        self._graphs = decode_graphs.GraphDecoder(self._decoder, self._cache_bytes) if on_cuda and cuda_graphs else None
        self._state_bytes: dict[int, int] = {}
        self._lock = threading.Lock()

    @property
    def reads_expectations(self) -> bool:
        """Whether the vocabulary has number tokens, so that `Sampling.expected_number` works."""
        return self._decoder.numbers is not None

    @property
    def weight_version(self) -> str:
        return self._version

    def load_weights(self, state_dict: Mapping[str, Tensor], version: str) -> None:
        """Copies weights into the model in place (CUDA graphs stay valid) and notes their version.

        Args:
            state_dict: every tensor of the model's own state dict; device and dtype may differ.
        Raises:
            NLRLError: a tensor is missing, unknown or of another shape; nothing was changed.
        """
        own = self.model.state_dict(keep_vars=True)
        given = {
            id(own[key]) for key in state_dict if key in own
        }  # a tied tensor needs to come under one of its names only
        if missing := [key for key in own if id(own[key]) not in given]:
            raise NLRLError(f"load_weights: tensor {missing[0]!r} is missing ({len(missing)} of {len(own)} are)")
        for key, tensor in state_dict.items():
            if key not in own:
                raise NLRLError(f"load_weights: tensor {key!r} does not belong to {type(self.model).__name__}")
            if tensor.shape != own[key].shape:
                raise NLRLError(
                    f"load_weights: tensor {key!r} has shape {tuple(tensor.shape)}, not {tuple(own[key].shape)}"
                )
        with self._lock, torch.no_grad():
            for key, tensor in state_dict.items():
                own[key].copy_(tensor)
            self._version = version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers every request, in order. A prompt longer than the model's context gets a completion that says so.

        Raises:
            NLRLError: a request is not answerable as asked (both messages and tokens, a negative temperature, ...).
        """
        with self._lock, torch.no_grad():
            jobs = distinct_jobs(requests, self._prompts.encode(requests), self._context)
            out: list[Completion | None] = [None] * len(requests)
            speaking = [job for job in jobs if job.sampling.max_tokens > 0]
            for job in jobs:
                _spread(job, self._unanswered(job), out)
            for batch in micro_batches(speaking, self.max_batch, self._most_rows):
                for job, completion in zip(batch, self._answer(batch), strict=True):
                    _spread(job, completion, out)
            return out  # type: ignore[return-value]

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability of every token of each continuation, given its prompt and the continuation so far.

        Args: token ids; no prompt may be empty.
        """
        rows = [(*prompt, *continuation) for prompt, continuation in zip(prompts, continuations, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        out: list[list[float]] = [[] for _ in rows]
        with self._lock, torch.no_grad():
            for cut in passes([len(rows[i]) for i in order], self._pass_tokens):
                chosen = order[cut]
                scores = _score(self.model, [rows[i] for i in chosen], [len(prompts[i]) for i in chosen])
                for i, logprobs in zip(chosen, scores, strict=True):
                    out[i] = logprobs
        return out

    @property
    def _context(self) -> int | None:
        return getattr(self.model.config, "max_position_embeddings", None)

    def _most_rows(self, length: int) -> int:
        """Rows of `length` tokens whose states fit."""
        if length not in self._state_bytes:
            self._state_bytes[length] = decode_graphs.state_bytes(self.model, length)
        return max(1, self._cache_bytes // self._state_bytes[length])

    def _unanswered(self, job: Job) -> Completion:
        """What a job gets that has no room for a token."""
        error = ""
        if self._context is not None and len(job.prompt) >= self._context:
            error = f"the prompt has {len(job.prompt)} tokens and leaves no room in a context of {self._context}"
        reason = "error" if error else "length"
        return Completion(
            "", finish_reason=reason, error=error, weight_version=self._version, prompt_tokens=len(job.prompt)
        )

    def _answer(self, jobs: list[Job]) -> list[Completion]:
        batch = self._decode(jobs)
        return completions(jobs, batch.answers, self._ends, self._decode_text, self._version)

    def _decode(self, jobs: list[Job]) -> Batch:
        prompts, samplings, seeds = zip(*((job.prompt, job.sampling, job.seed) for job in jobs), strict=True)
        slots = max(job.length for job in jobs)
        watch = stop_watch(jobs, self._decode_text)
        if self._graphs is not None:
            try:
                batch = start(self._decoder, prompts, samplings, seeds, None, self._pass_tokens)
                self._graphs.decode(batch, slots, watch)
                return batch
            except Exception as error:  # whatever a capture trips over, eager decoding needs none of it
                log.warning(
                    "decoding without CUDA graphs from now on: %s: %s", type(error).__name__, str(error).split("\n")[0]
                )
                self._graphs = None
        batch = start(self._decoder, prompts, samplings, seeds, slots, self._pass_tokens)
        decode(self._decoder, batch, watch, check_every=1 if watch is None and self.device.type == "cpu" else 4)
        return batch


def _spread(job: Job, completion: Completion, out: list) -> None:
    for i in job.requests:
        out[i] = completion


def _score(model, rows: list[tuple[int, ...]], prompt_lengths: list[int]) -> list[list[float]]:
    device = model.device
    ids = padded(rows, device)
    hidden = model.hidden(ids, padded_positions([len(row) for row in rows], device))
    spans = [range(start - 1, len(row) - 1) for row, start in zip(rows, prompt_lengths, strict=True)]
    row_index = torch.tensor([r for r, span in enumerate(spans) for _ in span], dtype=torch.int64).to(device)
    place = torch.tensor([t for span in spans for t in span], dtype=torch.int64).to(device)
    logits = model.logits(hidden[row_index, place]).float()
    scores = (logits.gather(1, ids[row_index, place + 1][:, None])[:, 0] - logits.logsumexp(-1)).split(
        [len(s) for s in spans]
    )
    return [score.tolist() for score in scores]


def _end_tokens(model, tokenizer) -> frozenset[int]:
    ends = {tokenizer.eos_token_id}
    configured = getattr(model.config, "eos_token_id", None)
    ends.update(configured if isinstance(configured, list | tuple) else [configured])
    ends.discard(None)
    if not ends:
        raise NLRLError("neither the tokenizer nor the model's config names an end-of-text token (eos_token_id)")
    return frozenset(ends)


def _default_cache_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory // 8
    return 1 << 30
