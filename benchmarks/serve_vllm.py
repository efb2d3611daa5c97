"""vLLM in a process of its own, under an interpreter that has it; the other half of `nlrl bench serve`.

The process is this very file, run by that interpreter: it needs vLLM and nothing of this project. It answers lines of
JSON on its standard input with lines of JSON; what vLLM prints goes into a log. Prompts and answers are token ids, so
vLLM is spared its tokenizer and its detokenizer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

CPU_CACHE_GIB = 4


class VLLMFailed(Exception):
    """The process ended, or said so."""


class VLLM:
    """vLLM on one checkpoint; close it."""

    def __init__(self, python: str, libraries: str, device: str, threads: int, **settings: Any):
        """Starts the process; it answers once the engine is up.

        Args:
            python: an interpreter.
            libraries: a folder for PYTHONPATH, where the interpreter does not have vLLM itself; or "".
            device: cpu or cuda.
            threads: on a CPU.
            settings: of `vllm.LLM`.
        """
        self._log = tempfile.NamedTemporaryFile("w+", prefix="vllm-", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-P", str(Path(__file__).absolute()), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment(libraries, device, threads),
            # vLLM starts helpers with `python -m`, which look into the working directory first, and transformers asks
            # for a package `kernels`: in a checkout of this project they would find ours.
            cwd=tempfile.gettempdir(),
        )

    def version(self) -> str:
        """Waits until the engine is up."""
        return self._answer()["version"]

    def generate(self, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[int, float]:
        """Answers every prompt greedily with so many tokens, whatever they are; tokens that came out, seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["tokens"], answer["seconds"]

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> VLLM:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            log = Path(self._log.name).read_text()[-2000:]
            raise VLLMFailed(f"vLLM ended with code {self._process.returncode}:\n{log}")
        return json.loads(line)


def environment(libraries: str, device: str, threads: int) -> dict[str, str]:
    """No network, no reports; on a CPU all threads that ours has, on the same cores."""
    wanted = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if libraries:
        wanted["PYTHONPATH"] = str(Path(libraries).absolute())
    if device == "cpu":
        cores = sorted(os.sched_getaffinity(0))[:threads]
        wanted |= {"VLLM_CPU_KVCACHE_SPACE": str(CPU_CACHE_GIB), "OMP_NUM_THREADS": str(threads)}
        wanted["VLLM_CPU_OMP_THREADS_BIND"] = os.environ.get("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    return os.environ | wanted


def interpreter(given: str) -> str | None:
    """The one given, or that of `.venv-vllm` here; None if there is none."""
    python = given or str(Path(".venv-vllm/bin/python").absolute())
    return python if Path(python).is_file() else None


# -- inside the process ------------------------------------------------------------------------------------------------
def serve(settings: dict[str, Any], orders: IO[str], answers: IO[str]) -> None:
    """Answers orders until there are no more."""
    import vllm  # pyright: ignore[reportMissingImports]

    llm = vllm.LLM(**settings)

    def answer(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    answer(version=vllm.__version__)
    for line in orders:
        order = json.loads(line)
        sampling = vllm.SamplingParams(temperature=0, max_tokens=order["tokens"], ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": prompt} for prompt in order["prompts"]]
        start = time.perf_counter()
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - start
        answer(tokens=sum(len(output.outputs[0].token_ids) for output in outputs), seconds=seconds)


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints to standard output, too
    serve(json.loads(sys.argv[1]), sys.stdin, channel)
