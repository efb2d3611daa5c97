"""vLLM as a `LanguageModel`: its asynchronous engine, held by this process.

1. The engine lives on a loop thread; `generate` is synchronous and submits its requests together, for vLLM to batch.
2. Tokens in, tokens out: prompts are rendered here by the checkpoint's chat template, never by vLLM.
3. Log-probabilities are vLLM's raw ones: of the sampled token, before temperature, top-k and top-p. Where a constraint
   masked the others, vLLM's would be those of the allowed tokens alone: such an answer is scored once more without it.
4. It holds several weight sets by name (`vllm_weights`): adapters over its checkpoint, side by side, or checkpoints
   that take turns. A set is exchanged while nothing is answered, so that every completion comes from the one version
   that it names.

vLLM starts child processes: a script that makes a `VLLMModel` needs the `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from nlrl.backbones import vllm_engine
from nlrl.backbones.event_loop import EventLoopThread
from nlrl.backbones.language_model import (
    Completion,
    FinishReason,
    LanguageModelError,
    Request,
    Timing,
    check_sampling,
    stamp,
)
from nlrl.backbones.prompts import PromptEncoder
from nlrl.backbones.vllm_weights import DEFAULT, VLLMWeights, WeightSet, checkpoint_folder, require_same_shape
from nlrl.errors import NLRLError

if TYPE_CHECKING:
    from nlrl.backbones.tuning.weights import TunedWeights

T = TypeVar("T")
_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


class VLLMSettings(BaseModel):
    """One checkpoint and how vLLM is to hold it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["vllm"] = "vllm"
    model: str = Field(min_length=1)
    """Folder of a Hugging Face checkpoint: config.json, weights, tokenizer with a chat template."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; "auto" leaves it to vLLM, which goes by the checkpoint."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt and answer together, in tokens; by default the model's own."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of the GPU's memory for weights and key-value cache."""
    enforce_eager: bool = False
    """Neither compile nor capture CUDA graphs: starts sooner, answers slower."""
    cpu_kvcache_gib: float = Field(4.0, gt=0)
    """Key-value cache on a CPU, in GiB. The environment variable VLLM_CPU_KVCACHE_SPACE, if set, wins."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs of one machine that the weights are spread over."""
    quantization: str | None = None
    """Round the weights while they are loaded, e.g. "fp8"; None keeps them as the checkpoint has them."""
    max_lora_rank: int = Field(0, ge=0, le=512)
    """Highest rank of adapters that `load_weights` may bring; 0 reserves no room for any."""
    max_loras: int = Field(2, ge=1)
    """Adapters that answer side by side."""


class VLLMModel:
    """A `LanguageModel` in vLLM. Construct it where it is to run; any thread may call `generate`."""

    reads_expectations = False

    def __init__(self, settings: VLLMSettings, weight_version: str = "") -> None:
        """Starts the engine, which takes tens of seconds.

        Args:
            weight_version: version of the weights in the folder; by default the folder's name.
        Raises:
            NLRLError: vllm is not installed, or the folder holds no checkpoint.
            LanguageModelError: vLLM did not start on it.
        """
        self._folder = checkpoint_folder(settings.model)
        vllm_engine.require()
        self.name = self._folder.name
        self.settings = settings
        self._tokenizer = _tokenizer(self._folder)
        self._prompts = PromptEncoder(self._tokenizer)
        self._ids = itertools.count()
        self._loop = EventLoopThread(f"vLLM {self.name}")
        try:
            self._engine = self._loop.run(
                vllm_engine.start(self._folder, **settings.model_dump(exclude={"kind", "model"}))
            )
        except Exception as error:
            self._loop.close()
            raise LanguageModelError(f"model: vLLM did not start on {self._folder} (see its log): {error}") from error
        self._weights = VLLMWeights(self._engine, self._folder, weight_version or self.name)

    @property
    def weight_version(self) -> str:
        """Of the default weight set."""
        return self._weights.versions()[DEFAULT]

    def weight_versions(self) -> dict[str, str]:
        return self._weights.versions()

    @property
    def failed(self) -> bool:
        """Whether its engine died or lost its weights: it answers nothing any more."""
        return bool(self._weights.broken)

    def generate(self, requests: Sequence[Request], weights: str = DEFAULT) -> list[Completion]:
        """Answers every request, in order; one that vLLM refuses (prompt too long, say) gets finish_reason "error".

        Args:
            weights: name of the weight set that is to answer.
        Raises:
            NLRLError: a request has both messages and tokens, or neither; the tokenizer has no chat template; a
                sampling setting or a constraint cannot be obeyed; or there is no such weight set.
            LanguageModelError: the engine died, lost its weights, or was closed.
        """
        self._weights.require(weights)
        for sampling in {request.sampling for request in requests}:
            check_sampling(sampling)
            if sampling.constraint is not None:
                self._grammars.compile(sampling.constraint)
        pairs = list(zip(requests, self._prompts.encode(requests), strict=True))
        return self._loop.run(self._all(weights, self._timed, pairs))

    def score(
        self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], weights: str = DEFAULT
    ) -> list[list[float]]:
        """Natural log-probability of every token of each continuation, given its prompt and the continuation so far.

        Args: token ids; no prompt may be empty.
        Raises:
            NLRLError: a prompt is empty, vLLM refuses one, or there is no such weight set.
            LanguageModelError: as `generate`.
        """
        self._weights.require(weights)
        if not all(map(len, prompts)):
            raise NLRLError("score: a prompt is empty; it needs a token at least, such as the tokenizer's first")
        pairs = list(zip(prompts, continuations, strict=True))
        return self._loop.run(self._all(weights, self._scores, pairs))

    def load_checkpoint(self, folder: str | Path, version: str) -> None:
        """Replaces the default weights in place by those of a checkpoint of the same shape; waits for answers under
        way.

        Raises:
            NLRLError: no checkpoint, or one of another shape; nothing was changed.
            LanguageModelError: vLLM failed while loading; this model answers no more.
        """
        new = checkpoint_folder(folder)
        require_same_shape(self._folder, new)
        self._loop.run(self._weights.load_checkpoint(new, version))

    def load_weights(self, weights: TunedWeights, version: str, name: str = DEFAULT) -> None:
        """Adds a weight set, or replaces it; waits for answers under way.

        Args:
            weights: an adapter of this model's checkpoint, or all weights of one of its shape.
        Raises:
            NLRLError: they do not fit, or it was started without room for adapters; nothing was changed.
        """
        if weights.adapter and not self.settings.max_lora_rank:
            raise NLRLError("this vLLM was started without room for adapters: set max_lora_rank in its options")
        self._loop.run(self._weights.put(name, version, weights))

    def close(self) -> None:
        """Ends the engine's processes. Closing twice is allowed."""
        if not self._loop.closed:
            self._loop.run(vllm_engine.stop(self._engine))
            self._loop.close()
            self._weights.close()

    @cached_property
    def _grammars(self) -> Any:
        """Refuses what the native engine refuses, in its words."""
        from nlrl.backbones.engine.constraints import Grammars

        vocabulary = json.loads((self._folder / "config.json").read_text())["vocab_size"]
        ends = {self._tokenizer.eos_token_id} - {None}  # those that vLLM's llguidance lets an answer end with
        return Grammars(self._tokenizer, vocabulary, ends)

    async def _all(
        self, weights: str, job: Callable[..., Coroutine[Any, Any, T]], asked: Iterable[tuple[Any, Any]]
    ) -> list[T]:
        """The results of jobs that run side by side, with the weights of one version."""
        async with self._weights.using(weights) as speaker:
            try:
                async with asyncio.TaskGroup() as running:
                    tasks = [running.create_task(job(speaker, *one)) for one in asked]
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            return [task.result() for task in tasks]

    async def _timed(self, speaker: WeightSet, request: Request, prompt: Sequence[int]) -> Completion:
        asked, began = time.time(), time.perf_counter()
        answer = await self._answer(speaker, request, prompt)
        stamp([answer], Timing(asked, time.perf_counter() - began))
        return answer

    async def _answer(self, speaker: WeightSet, request: Request, prompt: Sequence[int]) -> Completion:
        sampling, known = request.sampling, {"weight_version": speaker.version, "prompt_tokens": len(prompt)}
        if not sampling.max_tokens:
            return Completion("", finish_reason="length", **known)
        try:
            output = await self._ask(vllm_engine.answer, speaker, prompt, request)
            tokens, steps = tuple(output.token_ids), output.logprobs
            if sampling.constraint is not None and tokens:
                steps = await self._ask(vllm_engine.score, speaker, prompt, tokens, sampling.top_logprobs)
        except vllm_engine.Refused as refusal:
            return Completion("", finish_reason="error", error=f"vLLM: {refusal}", **known)
        finish = _FINISH.get(output.finish_reason, "error")
        return Completion(
            text=output.text,
            tokens=tokens,
            logprobs=_logprobs(steps, tokens),
            finish_reason=finish,
            top_logprobs=tuple(_likeliest(step, sampling.top_logprobs) for step in steps if sampling.top_logprobs),
            error=f"vLLM ended the answer: {output.finish_reason}" if finish == "error" else "",
            **known,
        )

    async def _scores(self, speaker: WeightSet, prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
        if not continuation:
            return []
        try:
            return list(_logprobs(await self._ask(vllm_engine.score, speaker, prompt, continuation, 0), continuation))
        except vllm_engine.Refused as refusal:
            raise NLRLError(f"score: vLLM: {refusal}") from None

    async def _ask(self, what: Callable[..., Coroutine[Any, Any, T]], speaker: WeightSet, *asked: Any) -> T:
        if self._weights.broken:
            raise LanguageModelError(self._weights.broken)
        try:
            return await what(self._engine, speaker.adapter, str(next(self._ids)), *asked)
        except vllm_engine.Dead as error:
            self._weights.broken = f"model: vLLM's engine for {self._folder} died (see its log): {error}"
            raise LanguageModelError(self._weights.broken) from error


def ray_actor(
    settings: VLLMSettings, weight_version: str = "", num_gpus: float = 0, num_cpus: float = 1, **options
) -> Any:
    """A Ray actor that holds a `VLLMModel`: `ray.get(actor.generate.remote(requests))`, `actor.close.remote()`.

    Args:
        num_gpus, num_cpus: what Ray sets aside for it; vLLM sees no GPU unless num_gpus says so.
        options: more of Ray's actor options.
    """
    import ray

    return (
        ray.remote(VLLMModel).options(num_gpus=num_gpus, num_cpus=num_cpus, **options).remote(settings, weight_version)
    )


def _logprobs(steps: Sequence[Any], tokens: Sequence[int]) -> tuple[float, ...]:
    return tuple(step[token].logprob for step, token in zip(steps, tokens, strict=True))


def _likeliest(step: Any, count: int) -> tuple[tuple[int, float], ...]:
    """vLLM puts the token itself among the likeliest, whatever its rank."""
    ranked = sorted((entry.rank, token, entry.logprob) for token, entry in step.items())
    return tuple((token, logprob) for rank, token, logprob in ranked if rank <= count)


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
