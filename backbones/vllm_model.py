"""vLLM as a `LanguageModel`: its asynchronous engine, held by this process.

1. The engine lives on a loop thread; `generate` is synchronous and submits its requests together, for vLLM to batch.
2. Tokens in, tokens out: prompts are rendered here by the checkpoint's chat template, never by vLLM.
3. Log-probabilities are vLLM's raw ones: of the sampled token, before temperature, top-k and top-p. Where a constraint
   masked the others, vLLM's would be those of the allowed tokens alone: such an answer is scored once more without it.
4. `load_checkpoint` waits until nothing is being answered, reloads in place and forgets cached prefixes, so that every
   completion comes from the one version that it names.

vLLM starts child processes: a script that makes a `VLLMModel` needs the `if __name__ == "__main__":` guard.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from nlrl.backbones import vllm_engine
from nlrl.backbones.event_loop import EventLoopThread
from nlrl.backbones.language_model import Completion, FinishReason, LanguageModelError, Request, check_sampling
from nlrl.backbones.prompts import PromptEncoder
from nlrl.errors import NLRLError

T = TypeVar("T")
_FINISH: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}
_NOT_SHAPE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")


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
        self._version = weight_version or self.name
        self._tokenizer = _tokenizer(self._folder)
        self._prompts = PromptEncoder(self._tokenizer)
        self._ids = itertools.count()
        self._gate = _Gate()
        self._broken = ""
        self._loop = EventLoopThread(f"vLLM {self.name}")
        try:
            self._engine = self._loop.run(
                vllm_engine.start(self._folder, **settings.model_dump(exclude={"kind", "model"}))
            )
        except Exception as error:
            self._loop.close()
            raise LanguageModelError(f"model: vLLM did not start on {self._folder} (see its log): {error}") from error

    @property
    def weight_version(self) -> str:
        return self._version

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Answers every request, in order; one that vLLM refuses (prompt too long, say) gets finish_reason "error".

        Raises:
            NLRLError: a request has both messages and tokens, or neither; the tokenizer has no chat template; or a
                sampling setting or a constraint cannot be obeyed.
            LanguageModelError: the engine died, lost its weights, or was closed.
        """
        for sampling in {request.sampling for request in requests}:
            check_sampling(sampling)
            if sampling.constraint is not None:
                self._grammars.compile(sampling.constraint)
        pairs = zip(requests, self._prompts.encode(requests), strict=True)
        return self._loop.run(self._all(self._answer(request, prompt) for request, prompt in pairs))

    def score(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Natural log-probability of every token of each continuation, given its prompt and the continuation so far.

        Args: token ids; no prompt may be empty.
        Raises:
            NLRLError: a prompt is empty, or vLLM refuses one.
            LanguageModelError: as `generate`.
        """
        if not all(map(len, prompts)):
            raise NLRLError("score: a prompt is empty; it needs a token at least, such as the tokenizer's first")
        pairs = zip(prompts, continuations, strict=True)
        return self._loop.run(self._all(self._scores(prompt, tokens) for prompt, tokens in pairs))

    def load_checkpoint(self, folder: str | Path, version: str) -> None:
        """Replaces the weights in place by those of a checkpoint of the same shape; waits for answers under way.

        Raises:
            NLRLError: no checkpoint, or one of another shape; nothing was changed.
            LanguageModelError: vLLM failed while loading; this model answers no more.
        """
        new = checkpoint_folder(folder)
        _require_same_shape(self._folder, new)
        self._loop.run(self._swap(new, version))

    def close(self) -> None:
        """Ends the engine's processes. Closing twice is allowed."""
        if not self._loop.closed:
            self._loop.run(vllm_engine.stop(self._engine))
            self._loop.close()

    @cached_property
    def _grammars(self) -> Any:
        """Refuses what the native engine refuses, in its words."""
        from nlrl.backbones.engine.constraints import Grammars

        vocabulary = json.loads((self._folder / "config.json").read_text())["vocab_size"]
        ends = {self._tokenizer.eos_token_id} - {None}  # those that vLLM's llguidance lets an answer end with
        return Grammars(self._tokenizer, vocabulary, ends)

    async def _all(self, jobs: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """The results of jobs that run side by side, with the weights of one version."""
        async with self._gate.shared():
            try:
                async with asyncio.TaskGroup() as running:
                    tasks = [running.create_task(job) for job in jobs]
            except ExceptionGroup as group:
                raise group.exceptions[0] from None
            return [task.result() for task in tasks]

    async def _answer(self, request: Request, prompt: Sequence[int]) -> Completion:
        sampling = request.sampling
        if not sampling.max_tokens:
            return self._completion(finish_reason="length", prompt_tokens=len(prompt))
        try:
            output = await self._ask(vllm_engine.answer, prompt, request)
            tokens, steps = tuple(output.token_ids), output.logprobs
            if sampling.constraint is not None and tokens:
                steps = await self._ask(vllm_engine.score, prompt, tokens, sampling.top_logprobs)
        except vllm_engine.Refused as refusal:
            return self._completion(finish_reason="error", prompt_tokens=len(prompt), error=f"vLLM: {refusal}")
        finish = _FINISH.get(output.finish_reason, "error")
        return self._completion(
            text=output.text,
            tokens=tokens,
            logprobs=_logprobs(steps, tokens),
            finish_reason=finish,
            prompt_tokens=len(prompt),
            top_logprobs=tuple(_likeliest(step, sampling.top_logprobs) for step in steps if sampling.top_logprobs),
            error=f"vLLM ended the answer: {output.finish_reason}" if finish == "error" else "",
        )

    async def _scores(self, prompt: Sequence[int], continuation: Sequence[int]) -> list[float]:
        if not continuation:
            return []
        try:
            return list(_logprobs(await self._ask(vllm_engine.score, prompt, continuation, 0), continuation))
        except vllm_engine.Refused as refusal:
            raise NLRLError(f"score: vLLM: {refusal}") from None

    async def _ask(self, what: Callable[..., Coroutine[Any, Any, T]], *asked: Any) -> T:
        if self._broken:
            raise LanguageModelError(self._broken)
        try:
            return await what(self._engine, *asked, str(next(self._ids)))
        except vllm_engine.Dead as error:
            raise LanguageModelError(f"model: vLLM's engine for {self._folder} died (see its log): {error}") from error

    def _completion(self, text: str = "", **fields: Any) -> Completion:
        return Completion(text, weight_version=self._version, **fields)

    async def _swap(self, folder: Path, version: str) -> None:
        async with self._gate.exclusive():
            try:
                await vllm_engine.reload(self._engine, folder)
            except Exception as error:
                self._broken = f"model: vLLM failed to load {folder}: {error}; construct the model again"
                raise LanguageModelError(self._broken) from error
            self._folder, self._version = folder, version


class _Gate:
    """Lets in many answers, or one exchange of weights, which newcomers wait for."""

    def __init__(self) -> None:
        self._entrance = asyncio.Lock()
        self._empty = asyncio.Event()
        self._empty.set()
        self._inside = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._entrance:
            self._inside += 1
            self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        async with self._entrance:
            await self._empty.wait()
            yield


def checkpoint_folder(model: str | Path) -> Path:
    """The folder, if it holds a checkpoint.

    Raises:
        NLRLError: it does not.
    """
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        raise NLRLError(
            f"model: {str(model)!r} is no folder with a config.json; name a Hugging Face checkpoint on disk"
        )
    return folder.resolve()


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


def _require_same_shape(old: Path, new: Path) -> None:
    """Refuses what the running engine cannot hold before anything is overwritten."""
    was, will_be = _shape(old), _shape(new)
    different = sorted(name for name in was.keys() | will_be.keys() if was.get(name) != will_be.get(name))
    if different:
        name = different[0]
        raise NLRLError(
            f"load_checkpoint: config.json of {new} has {name} = {will_be.get(name)!r}, the running model "
            f"{was.get(name)!r} (all differences: {', '.join(different)}); start another VLLMModel for it"
        )


def _shape(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in config.items() if name not in _NOT_SHAPE}
