"""The training actor of a Hugging Face model: critic and actor, each an adapter over one base or a model of its own.

1. It holds no model. The weights of a network are a folder; a round of fine-tuning (`nlrl.backbones.tuning.sft`) reads
   them, trains in processes of its own, and leaves the next folder. Between rounds nothing is on a GPU.
2. On a Ray cluster the round is a Ray Train job of `tuning.workers` processes; inline it runs here.
3. Prompts are rendered once, by the chat template that the model is served with, and tokenised as they are served; an
   answer is its text and the tokenizer's end token. Examples longer than `tuning.max_length` are left out and counted.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nlrl.backbones.language_model import Message, Request
from nlrl.backbones.packing import TokenExample
from nlrl.backbones.sent_tensors import SentTensors
from nlrl.backbones.tuning.settings import Round, Tuning, require
from nlrl.backbones.tuning.weights import TunedWeights, base_dtype, export
from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Kind
from nlrl.orchestration.fits import FitSettings, TextExample
from nlrl.orchestration.trainer import Network

SCRATCH = ".tuning"
"""In the run's folder: the networks as they are now. What a run keeps is in the folders of its stages."""
STORAGE = "nlrl-tuning"
"""In `tuning.storage`: a folder for each run."""
RAY_FOLDER = "ray"
"""In there: what Ray Train notes about a round."""


def scratch_folder(tuning: Tuning, run: Path) -> Path:
    """Where the networks of a run lie between rounds: a folder that is nobody else's."""
    if tuning.storage is None:
        return run / SCRATCH
    return tuning.storage / STORAGE / hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]


class TuningActor:
    """Fine-tunes; made inside its actor. The same methods as `TrainerActor`.

    Args:
        base: folder of a Hugging Face checkpoint.
        scratch: folder for the networks, which is emptied now; see `scratch_folder`.
        kind: of the cluster that rounds are to run on.
        threads: CPU threads of all training processes together.

    Raises:
        NLRLError: no such checkpoint, a tokenizer without an end token or chat template, or a package is missing.
    """

    def __init__(self, base: str, tuning: Tuning, scratch: str, kind: Kind = "inline", threads: int = 0):
        from transformers import AutoTokenizer

        from nlrl.backbones.prompts import PromptEncoder
        from nlrl.backbones.vllm_weights import checkpoint_folder

        require()
        self._base, self._tuning = checkpoint_folder(base), tuning
        self._kind, self._threads = kind, -(-threads // tuning.workers)
        self._tokenizer = AutoTokenizer.from_pretrained(self._base)
        if not self._tokenizer.eos_token:
            raise NLRLError(f"{base}: the tokenizer has no end token, so no answer could be taught to end")
        self._prompts = PromptEncoder(self._tokenizer)
        shutil.rmtree(root := Path(scratch).resolve(), ignore_errors=True)
        self._scratch = root / secrets.token_hex(4)  # what a dead run's processes still write goes into theirs
        self._scratch.mkdir(parents=True)
        self._folders: dict[str, Path] = {}

    def fit(self, network: Network, examples: Sequence[TextExample], settings: FitSettings) -> dict[str, Any]:
        """Trains one network and returns its metrics (loss, tokens, steps, examples, seconds, too_long).

        Raises:
            NLRLError: all examples are too long, or the loss stopped being a number.
        """
        if type(settings) is not FitSettings:
            raise NLRLError(
                f"{type(settings).__name__}: Hugging Face models are trained on texts only; see model.tuning"
            )
        tokens = self.tokenised(examples)
        fitting = [example for example in tokens if len(example) <= self._tuning.max_length]
        if not fitting:
            longest = min(map(len, tokens), default=0)
            raise NLRLError(
                f"model.tuning.max_length is {self._tuning.max_length}, but the shortest of {len(tokens)} examples has "
                f"{longest} tokens"
            )
        metrics = self._run(self._round(network, settings), fitting)
        self._folders[network] = self._folder(network)
        return metrics | {"too_long": len(tokens) - len(fitting)}

    def weights(self, network: Network) -> TunedWeights:
        """A network's weights, on the CPU, as vLLM is given them: a whole model in the type of its base."""
        tuned = self._tuned(network).rounded(base_dtype(self._base))
        return TunedWeights(SentTensors(tuned.tensors), tuned.adapter)

    def score(
        self, network: Network, prompts: Sequence[tuple[Message, ...]], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Natural log-probability of every token of each answer. The model is loaded for it, on Ray in a process with a
        worker's share of a GPU, and given up again.

        Raises:
            NLRLError: it cannot be loaded.
        """
        read = self._prompts.encode([Request(messages=messages) for messages in prompts])
        folder = str(self._folders[network])
        given = (str(self._base), folder, [tuple(row) for row in read], [tuple(row) for row in answers], self._threads)
        if self._kind == "ray":
            return _score_in_ray(self._tuning, given)
        from nlrl.backbones.tuning.scoring import score_folder

        return score_folder(*given)

    def average(self, network: Network, into: Network, share: float) -> None:
        """Moves the weights of `into` towards a network's, those of adapters matrix by matrix: share x its own +
        (1 - share) x what they were. Where there is no `into` yet it is a copy."""
        mean = self._tuned(network)
        if into in self._folders:
            mean = self._tuned(into).towards(mean, share)
        shutil.rmtree(folder := self._folder(into), ignore_errors=True)
        mean.write_folder(folder, self._base)
        self._folders[into] = folder

    def save(self, network: Network, path: str) -> None:
        """Writes a network's weights to one file, in the precision that they were trained in."""
        self._tuned(network).write(path)

    def load(self, network: Network, path: str) -> None:
        """Reads weights that `save` wrote.

        Raises:
            NLRLError: the file is missing or torn, or holds the weights of another model.
        """
        tuned = TunedWeights.read(path)
        if bool(tuned.adapter) != (self._tuning.kind == "lora"):
            held = "an adapter" if tuned.adapter else "a whole model"
            raise NLRLError(f"{path} holds {held}, but model.tuning.kind is '{self._tuning.kind}'")
        tuned.require_fits(self._base)
        shutil.rmtree(folder := self._folder(network), ignore_errors=True)
        tuned.write_folder(folder, self._base)
        self._folders[network] = folder

    def export(self, network: Network, folder: str) -> None:
        """Saves a network as a model folder that transformers and vLLM read, adapters merged.

        Raises:
            NLRLError: the disk refused; an older folder of that name is as it was.
        """
        tuned = self._tuned(network) if network in self._folders else None
        export(self._base, tuned, Path(folder))

    def tokenised(self, examples: Sequence[TextExample]) -> list[TokenExample]:
        """Prompts as the model will read them, answers with their end."""
        from nlrl.backbones.prompts import encode_texts

        prompts = self._prompts.encode([Request(messages=example.messages) for example in examples])
        end = str(self._tokenizer.eos_token)
        answers = encode_texts(self._tokenizer, [example.completion + end for example in examples])
        return [
            TokenExample(tuple(prompt), tuple(answer), example.weight)
            for prompt, answer, example in zip(prompts, answers, examples, strict=True)
        ]

    def _tuned(self, network: Network) -> TunedWeights:
        if network not in self._folders:
            raise NLRLError(f"the {network} has not been trained yet")
        return TunedWeights.of_folder(self._folders[network])

    def _folder(self, network: Network) -> Path:
        return self._scratch / network

    def _round(self, network: Network, settings: FitSettings) -> Round:
        start = self._folders.get(network)
        return Round(
            base=str(self._base),
            start=str(start) if start else "",
            out=str(self._folder(network)),
            settings=self._tuning,
            learning_rate=settings.learning_rate,
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
            threads=self._threads,
        )

    def _run(self, round_: Round, examples: list[TokenExample]) -> dict[str, Any]:
        if self._kind == "ray":
            return run_in_ray(round_, examples, self._scratch)
        from nlrl.backbones.tuning.sft import tune

        return tune(round_, examples)


def run_in_ray(round_: Round, examples: list[TokenExample], storage: Path) -> dict[str, Any]:
    """A round as a job of Ray Train.

    Raises:
        NLRLError: what a worker raised, or its result is not on this machine.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    settings, use_gpu = round_.settings, _has_gpus()
    resources = {"CPU": 0.01, "GPU": settings.gpu_share} if use_gpu else {"CPU": 0.01}
    trainer = TorchTrainer(
        _work,
        train_loop_config={"round": round_, "examples": examples},
        scaling_config=ScalingConfig(num_workers=settings.workers, use_gpu=use_gpu, resources_per_worker=resources),
        run_config=RunConfig(name=secrets.token_hex(8), storage_path=str(storage / RAY_FOLDER)),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _own(error) from error
    finally:
        shutil.rmtree(storage / RAY_FOLDER, ignore_errors=True)
    path = _metrics_file(round_)
    if not path.exists():
        raise NLRLError(
            f"the training workers left no {path} on this machine: set model.tuning.storage to a folder that all see"
        )
    return json.loads(path.read_text())


def _score_in_ray(settings: Tuning, given: tuple[Any, ...]) -> list[list[float]]:
    import ray
    from ray.exceptions import RayError

    task: Any = ray.remote(_score)
    share = settings.gpu_share if _has_gpus() else 0
    try:
        return ray.get(task.options(num_cpus=0, num_gpus=share, max_retries=0).remote(*given))
    except RayError as error:
        first = str(error).strip().splitlines()[-1]
        raise NLRLError(
            f"the fine-tuned model could not be read to check its transfer: {first}. If it does not fit on one GPU "
            "beside the engine, set model.max_transfer_kl to 0"
        ) from error


def _score(*given: Any) -> list[list[float]]:
    from nlrl.backbones.tuning.scoring import score_folder

    return score_folder(*given)


def _work(config: dict[str, Any]) -> None:
    """What each worker of the job does."""
    from ray.train import get_context

    from nlrl.backbones.tuning.sft import tune

    metrics = tune(config["round"], config["examples"])
    if get_context().get_world_rank() == 0:
        _metrics_file(config["round"]).write_text(json.dumps(metrics))


def _metrics_file(round_: Round) -> Path:
    return Path(round_.out + ".json")


def _has_gpus() -> bool:
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def _own(error: BaseException) -> Exception:
    """The error of ours that a worker raised, out of Ray Train's wrappings."""
    for each in (error, *getattr(error, "worker_failures", {}).values(), error.__cause__):
        cause = getattr(each, "cause", None) or getattr(each, "_train_fn_error", None)
        for found in (each, cause):
            if isinstance(found, NLRLError):
                return NLRLError(str(found))
    return NLRLError(f"fine-tuning failed: {error}")
