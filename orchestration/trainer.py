"""The training actor: two networks grown from one base, each continued by supervised fine-tuning on texts.

Every `fit` starts a fresh optimizer, so a network is its weights and nothing else: what a killed run has to read back
is one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from nlrl.backbones.language_model import Message, Request
from nlrl.errors import NLRLError

Network = Literal["critic", "actor"]
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True, slots=True)
class TextExample:
    """A prompt, the answer to learn, and how much it counts."""

    messages: tuple[Message, ...]
    completion: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class FitSettings:
    """One round of fine-tuning."""

    learning_rate: float
    batch_size: int
    epochs: int
    seed: int


class TrainerActor:
    """Holds the networks; made inside its actor."""

    def __init__(self, base: str, device: str, threads: int = 0):
        import copy

        import torch

        from nlrl.backbones.loading import load_trainable
        from nlrl.backbones.prompts import PromptEncoder
        from nlrl.orchestration.models import resolve_device, set_threads

        set_threads(threads)
        self._base = base
        self._device = resolve_device(device)
        model, self._tokenizer = load_trainable(base, device=self._device, dtype=torch.float32)
        self._networks = {"critic": model, "actor": copy.deepcopy(model)}
        self._prompts = PromptEncoder(self._tokenizer)

    def fit(self, network: Network, examples: Sequence[TextExample], settings: FitSettings) -> dict[str, Any]:
        """Trains one network and returns its metrics (loss, tokens, steps, examples, seconds)."""
        from nlrl.backbones.training import Trainer

        trainer = Trainer(self._networks[network], learning_rate=settings.learning_rate, device=self._device)
        tokens = self._tokenised(examples)
        metrics = trainer.fit(tokens, epochs=settings.epochs, batch_size=settings.batch_size, seed=settings.seed)
        return asdict(metrics)

    def weights(self, network: Network) -> dict[str, Any]:
        """A network's weights, on the CPU."""
        return {key: tensor.detach().cpu().clone() for key, tensor in self._networks[network].state_dict().items()}

    def save(self, network: Network, path: str) -> None:
        """Writes a network's weights to one file, atomically."""
        from safetensors.torch import save

        from nlrl.orchestration.atomic import write_atomic

        tensors = {key: tensor.contiguous() for key, tensor in self.weights(network).items()}
        write_atomic(Path(path), save(tensors))

    def load(self, network: Network, path: str) -> None:
        """Reads weights that `save` wrote.

        Raises:
            NLRLError: the file is missing or torn, or holds the weights of another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            self._networks[network].load_state_dict(load_file(path))
        except (OSError, RuntimeError, SafetensorError) as error:
            first = str(error).split("\n\t")[:2][-1].rstrip(".")
            raise NLRLError(
                f"{path} does not hold weights of '{self._base}': {first}. Give the run the model it began with "
                "(model.name), or delete the folder of this stage and rerun: it is trained again"
            ) from None

    def export(self, network: Network, folder: str) -> None:
        """Saves a network as a model folder that `nlrl.backbones.load` reads.

        Raises:
            NLRLError: the disk refused; an older folder of that name is as it was.
        """
        import torch
        from safetensors import SafetensorError

        from nlrl.backbones.loading import save

        try:
            save(self._networks[network], self._tokenizer, folder, dtype=torch.float32)
        except (OSError, SafetensorError) as error:
            raise NLRLError(f"{folder}: cannot be written: {error}. Make room and rerun the same command") from None

    def _tokenised(self, examples: Sequence[TextExample]) -> list[Any]:
        from nlrl.backbones.packing import TokenExample
        from nlrl.backbones.prompts import encode_texts

        prompts = self._prompts.encode([Request(messages=example.messages) for example in examples])
        eos = str(self._tokenizer.eos_token)
        answers = encode_texts(self._tokenizer, [example.completion + eos for example in examples])
        return [
            TokenExample(tuple(prompt), tuple(answer), example.weight)
            for prompt, answer, example in zip(prompts, answers, examples, strict=True)
        ]
