"""The training actor: two networks grown from one base, each continued by fine-tuning.

1. A `fit` starts a fresh optimizer, unless it is to keep the network's own. What a killed run has to read back is one
   file of weights, another for a value head, if there is one, and another for an optimizer that is kept.
2. Batches are drawn from a seed in the settings, and nothing else is random: there is no generator's state to save.
3. Several actors may train as one (`trainer_group`): each holds everything here, and they stay equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nlrl.backbones.language_model import Message, Request
from nlrl.errors import NLRLError
from nlrl.orchestration.fits import (
    AnswerExample,
    FitSettings,
    PairExample,
    PolicyFit,
    PreferenceFit,
    ReturnExample,
    TextExample,
    ValueFit,
)
from nlrl.orchestration.trainer_files import read_tensors, read_weights, write_tensors

if TYPE_CHECKING:
    from nlrl.backbones.sent_tensors import SentTensors

Network = Literal["critic", "actor", "target"]
"""`target` is a running mean of another; it is not trained."""
WEIGHTS_FILE = "weights.safetensors"
HEAD_FILE = "value_head.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
PROGRESS_FILE = "progress.safetensors"
"""A round in the middle, while it is trained."""


class TrainerActor:
    """Holds the networks; made inside its actor.

    Args:
        threads: CPU threads of torch; 0 leaves torch's choice.
        sent: type that weights are sent to engines in; auto is bfloat16 from a GPU, and else float32.
        rank: of `size` actors that train as one; they must `join` before anything is trained.
    """

    def __init__(self, base: str, device: str, threads: int = 0, sent: str = "auto", rank: int = 0, size: int = 1):

        import copy

        import torch

        from nlrl.backbones.loading import load_trainable
        from nlrl.backbones.prompts import PromptEncoder
        from nlrl.backbones.ranks import ALONE
        from nlrl.orchestration.models import inference_dtype, resolve_device, set_threads

        set_threads(threads)
        self._rank, self._size, self._ranks = rank, size, ALONE
        self._meeting: Any = None
        self._moments: dict[str, Any] = {}
        self._base = base
        self._device = resolve_device(device)
        self._sent = getattr(torch, inference_dtype(sent, self._device))
        model, self._tokenizer = load_trainable(base, device=self._device, dtype=torch.float32)
        self._networks = {"critic": model, "actor": copy.deepcopy(model)}
        self._heads: dict[str, Any] = {}
        self._untrained: Any = None
        self._prompts = PromptEncoder(self._tokenizer)

    def address(self) -> str:
        """Of this machine, for the others."""
        import ray

        return ray.util.get_node_ip_address() if ray.is_initialized() else "127.0.0.1"

    def process(self) -> int:
        """Its id."""
        return os.getpid()

    def host(self, address: str) -> int:
        """Opens the place where the actors that train as one meet, on this machine; returns its port."""
        from nlrl.backbones.ranks import meeting_point

        self._meeting = meeting_point(address, self._size)
        return self._meeting.port

    def join(self, address: str, port: int) -> None:
        """Meets the others there; returns when all have come."""
        from nlrl.backbones.ranks import Ranks

        self._ranks = Ranks.join(self._rank, self._size, address, port, self._device)

    def fit(
        self, network: Network, examples: Sequence[Any], settings: FitSettings, progress: str = ""
    ) -> dict[str, Any]:
        """Trains one network and returns its metrics (loss, tokens, steps, examples, seconds, and more by kind).

        Args:
            examples: of the kind that the type of the settings asks for; see `fits`.
            progress: file that the round is saved to every `settings.save_every` steps, and goes on from if it is there
                (texts and returns only).
        """
        from nlrl.backbones.optimizer_state import KeptMoments

        kinds = {PolicyFit: self._fit_policy, PreferenceFit: self._fit_preferences, ValueFit: self._fit_values}
        kept = KeptMoments(self._moments.get(network)) if settings.keep_optimizer else None
        options = {"ranks": self._ranks, "kept": kept}
        if settings.save_every and progress:
            options["checkpoint"] = self._checkpoint(examples, settings, progress)
        metrics = kinds.get(type(settings), self._fit_texts)(network, examples, settings, **options)
        if kept is not None:
            self._moments[network] = kept.take()
        return asdict(metrics)

    def score(
        self, network: Network, prompts: Sequence[tuple[Message, ...]], answers: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Natural log-probability of every token of each answer, in the precision of training."""
        import torch

        from nlrl.backbones.scoring import score

        kind = torch.device(self._device).type
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda"):
            found = score(self._networks[network], self._encoded(prompts), answers)
        return [[token.logprob for token in row] for row in found]

    def values(self, network: Network, prompts: Sequence[tuple[Message, ...]]) -> tuple[list[float], int]:
        """What a network's value head says of each prompt, and how many tokens were read."""
        from nlrl.backbones.value_head import predict

        rows = self._encoded(prompts)
        return predict(self._with_head(network), rows), sum(map(len, rows))

    def weights(self, network: Network) -> SentTensors:
        """A network's weights, on the CPU, in the type that engines answer in."""
        from nlrl.backbones.sent_tensors import SentTensors

        return SentTensors.of(self._networks[network].state_dict(), self._sent)

    def save(self, network: Network, path: str) -> None:
        """Writes a network's weights to one file, atomically."""
        state = self._networks[network].state_dict()
        write_tensors(path, {key: tensor.detach().cpu().clone() for key, tensor in state.items()})

    def save_optimizer(self, network: Network, path: str) -> None:
        """Writes what its optimizer remembers to one file, atomically."""
        write_tensors(path, self._moments[network])

    def load_optimizer(self, network: Network, path: str) -> None:
        """Reads what `save_optimizer` wrote.

        Raises:
            NLRLError: the file is missing or torn.
        """
        self._moments[network] = read_tensors(path)

    def save_head(self, network: Network, path: str) -> None:
        """The same for its value head."""
        write_tensors(path, self._with_head(network).head.state_dict())

    def load_head(self, network: Network, path: str) -> None:
        """Reads what `save_head` wrote. Raises: as `load`."""
        read_weights(path, self._with_head(network).head, self._base)

    def average(self, network: Network, into: Network, share: float) -> None:
        """Moves the weights of `into` towards a network's: share x its own + (1 - share) x what they were. Where there
        is no `into` yet it is a copy."""
        import torch

        model = self._networks[network]
        mean = self._network(into, like=model)
        with torch.no_grad():
            for ours, theirs in zip(mean.parameters(), model.parameters(), strict=True):  # tied ones once
                ours.lerp_(theirs, share)
            mean.after_step()  # what a model's weights must be (nGPT: unit vectors), their mean is not

    def load(self, network: Network, path: str) -> None:
        """Reads weights that `save` wrote.

        Raises:
            NLRLError: the file is missing or torn, or holds the weights of another model.
        """
        read_weights(path, self._network(network), self._base)

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

    # -- one method a kind of training ---------------------------------------------------------------------------------
    def _fit_texts(
        self,
        network: Network,
        examples: Sequence[TextExample],
        settings: FitSettings,
        checkpoint: Any = None,
        **options: Any,
    ) -> Any:
        from nlrl.backbones.packing import TokenExample
        from nlrl.backbones.training import Trainer

        trainer = Trainer(self._networks[network], settings.learning_rate, device=self._device, **options)
        prompts = self._encoded([example.messages for example in examples])
        answers = self._ended([example.completion for example in examples])
        tokens = [
            TokenExample(prompt, answer, example.weight)
            for prompt, answer, example in zip(prompts, answers, examples, strict=True)
        ]
        return trainer.fit(tokens, settings.epochs, settings.batch_size, settings.seed, checkpoint=checkpoint)

    def _fit_policy(
        self, network: Network, examples: Sequence[AnswerExample], settings: PolicyFit, **options: Any
    ) -> Any:
        from nlrl.backbones.policy_gradient import PolicyExample, PolicySettings, fit_policy

        prompts = self._encoded([example.messages for example in examples])
        references = self._references(prompts, examples) if settings.loss.get("kl") else [()] * len(examples)
        found = [
            PolicyExample(prompt, e.tokens, e.logprobs, e.advantage, e.weight, reference, e.return_, e.value)
            for prompt, e, reference in zip(prompts, examples, references, strict=True)
        ]
        model = self._with_head(network) if settings.head else self._networks[network]
        return fit_policy(model, found, PolicySettings(**settings.loss), **self._options(settings), **options)

    def _fit_preferences(
        self, network: Network, examples: Sequence[PairExample], settings: PreferenceFit, **options: Any
    ) -> Any:
        from nlrl.backbones.preference import PreferenceExample, fit_preferences

        prompts = self._encoded([example.messages for example in examples])
        chosen, rejected = (
            self._ended(texts) for texts in zip(*((e.chosen, e.rejected) for e in examples), strict=True)
        )
        found = [
            PreferenceExample(prompt, better, worse, example.weight)
            for prompt, better, worse, example in zip(prompts, chosen, rejected, examples, strict=True)
        ]
        loss = {"beta": settings.beta, "likelihood": settings.likelihood}
        return fit_preferences(self._networks[network], found, **loss, **self._options(settings), **options)

    def _fit_values(
        self, network: Network, examples: Sequence[ReturnExample], settings: ValueFit, **options: Any
    ) -> Any:
        from nlrl.backbones.value_head import ValueExample, fit_values

        prompts = self._encoded([example.messages for example in examples])
        found = [ValueExample(prompt, e.target, e.weight) for prompt, e in zip(prompts, examples, strict=True)]
        return fit_values(self._with_head(network), found, **self._options(settings), **options)

    def _options(self, settings: FitSettings) -> dict[str, Any]:
        options = {field: getattr(settings, field) for field in ("learning_rate", "batch_size", "epochs", "seed")}
        return options | {"weight_decay": 0.0}

    def _checkpoint(self, examples: Sequence[Any], settings: FitSettings, path: str) -> Any:
        from nlrl.backbones.optimizer_state import FitCheckpoint, key_of

        key = key_of(examples, replace(settings, save_every=0))  # how often it is saved makes no other round of it
        return FitCheckpoint(Path(path), settings.save_every, key, write_tensors)

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _network(self, network: Network, like: Any = None) -> Any:
        """A network, made now as a copy if it is one that is not there from the beginning."""
        import copy

        if network not in self._networks:
            self._networks[network] = copy.deepcopy(like if like is not None else self._networks["critic"])
        return self._networks[network]

    def _encoded(self, prompts: Sequence[tuple[Message, ...]]) -> list[tuple[int, ...]]:
        return [tuple(row) for row in self._prompts.encode([Request(messages=messages) for messages in prompts])]

    def _ended(self, answers: Sequence[str]) -> list[tuple[int, ...]]:
        from nlrl.backbones.prompts import encode_texts

        eos = str(self._tokenizer.eos_token)
        return [tuple(row) for row in encode_texts(self._tokenizer, [answer + eos for answer in answers])]

    def _with_head(self, network: Network) -> Any:
        """A network and its value head, which is made when it is first asked for, always the same."""
        import torch

        from nlrl.backbones.value_head import ValueHead, WithValueHead

        model = self._networks[network]
        if network not in self._heads:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self._heads[network] = ValueHead(model.config.hidden_size).to(self._device)
        return WithValueHead(model, self._heads[network])

    def _references(
        self, prompts: Sequence[tuple[int, ...]], examples: Sequence[AnswerExample]
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of the answers under the base."""
        import torch

        from nlrl.backbones.loading import load_trainable
        from nlrl.backbones.scoring import score

        if self._untrained is None:
            self._untrained, _ = load_trainable(self._base, device=self._device, dtype=torch.float32)
        with torch.no_grad():
            scores = score(self._untrained, prompts, [example.tokens for example in examples])
        return [tuple(token.logprob for token in row) for row in scores]
