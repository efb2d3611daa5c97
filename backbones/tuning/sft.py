"""Supervised fine-tuning of a Hugging Face model with TRL, on the tokens that vLLM reads.

1. Prompts and answers come as tokens, from the same chat template that the model is asked with; nothing is rendered,
   cut or given a first token here.
2. Only answers are targets. A step's loss is the sum of (weight of the example) * (cross-entropy of the target) over
   its targets, divided by their number; weights are scaled so that a target weighs 1 on average.
3. Every round begins with a fresh optimizer: a network is its weights and nothing else.
4. The same code is one process, or one of several that torch.distributed has joined (each with the whole model, or
   sharded by FSDP2).

TRL, PEFT and accelerate are imported here and nowhere else.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback
from transformers.utils.logging import disable_progress_bar
from trl import SFTConfig, SFTTrainer

from nlrl.backbones import checkpoint
from nlrl.backbones.packing import TokenExample
from nlrl.backbones.tuning.settings import Round, Tuning
from nlrl.backbones.tuning.weights import TunedWeights, copy_all_but_weights
from nlrl.errors import NLRLError

IGNORED = -100
"""The label of a token that is no target."""


def tune(round_: Round, examples: Sequence[TokenExample]) -> dict[str, Any]:
    """Trains in this process, and in those joined with it; the first one writes `round_.out`.

    Args:
        examples: not empty, none longer than the model reads. The same in every process.
    Returns: `TrainMetrics` as a dict: the loss is the weighted mean cross-entropy of a target in the last epoch, nats.
    Raises:
        NLRLError: the loss stopped being a number, or sharding is asked for where there are no GPUs.
    """
    began = time.monotonic()
    disable_progress_bar()
    if round_.threads:
        torch.set_num_threads(round_.threads)
    if round_.settings.sharding == "fsdp2" and not torch.cuda.is_available():
        raise NLRLError("model.tuning.sharding is 'fsdp2', but this worker sees no GPU; use 'none'")
    with TemporaryDirectory() as scratch:
        trainer = WeightedTrainer.of(round_, examples, scratch)
        trainer.train()
    loss = trainer.mean_loss()
    if not math.isfinite(loss):
        raise NLRLError("training diverged: the loss is not a number. Lower the learning rate")
    _write(trainer, round_)
    read = round_.epochs * len(examples)
    tokens = round_.epochs * sum(map(len, examples))
    seconds = time.monotonic() - began
    return {"loss": loss, "tokens": tokens, "steps": trainer.state.global_step, "examples": read, "seconds": seconds}


class WeightedTrainer(SFTTrainer):
    """TRL's trainer with weights for examples. `inputs["weights"]`, of each example of a pass, is `(rows,)`."""

    sums: Tensor
    """Weighted loss and weight of all targets of this process since the epoch began."""

    @classmethod
    def of(cls, round_: Round, examples: Sequence[TokenExample], scratch: str) -> WeightedTrainer:
        tokenizer = AutoTokenizer.from_pretrained(round_.base)
        args = arguments(round_, len(examples), scratch)
        size, _ = passes(round_.settings, round_.batch_size)
        data = Dataset.from_list(rows(examples, size * round_.settings.workers))
        collate = Collator(tokenizer.pad_token_id or 0)
        trainer = cls(_model(round_), args, collate, data, processing_class=tokenizer)
        trainer.sums = torch.zeros(2, device=trainer.args.device)
        trainer.add_callback(_FreshSums(trainer.sums))
        trainer.remove_callback(PrinterCallback)
        return trainer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's, of which every target is weighed."""
        assert num_items_in_batch is not None  # the loss takes arguments, so the trainer counts
        weights = inputs.pop("weights")[:, None]
        outputs = model(**inputs, use_cache=False, fused_lm_head=True)  # log-probabilities without all logits
        losses = -outputs.log_probs * weights
        self.sums += torch.stack((losses.detach().sum().float(), (outputs.label_mask * weights).sum().float()))
        share = self.accelerator.num_processes  # gradients are averaged over processes, targets counted in all
        return losses.sum() / num_items_in_batch.clamp(min=1) * share

    def mean_loss(self) -> float:
        """Weighted mean over the last epoch and all processes."""
        total = self.accelerator.reduce(self.sums, reduction="sum")
        return float(total[0] / total[1])  # type: ignore[index]


class _FreshSums(TrainerCallback):
    """What is told at the end is of the last epoch."""

    def __init__(self, sums: Tensor):
        self._sums = sums

    def on_epoch_begin(self, args, state, control, **kwargs):
        self._sums.zero_()


class Collator:
    """Rows of a dataset, padded on the right to the longest."""

    def __init__(self, pad: int):
        self._pad = pad

    def __call__(self, found: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(row["input_ids"]) for row in found)

        def padded(column: str, fill: int) -> Tensor:
            return torch.tensor([[*row[column], *[fill] * (longest - len(row[column]))] for row in found])

        labels = padded("labels", IGNORED)
        lengths = torch.tensor([len(row["input_ids"]) for row in found])
        return {
            "input_ids": padded("input_ids", self._pad),
            "labels": labels,
            "attention_mask": (torch.arange(longest)[None] < lengths[:, None]).long(),
            "weights": torch.tensor([row["weight"] for row in found]),
        }


def rows(examples: Sequence[TokenExample], at_once: int = 1) -> list[dict[str, Any]]:
    """What TRL reads: tokens, labels that mask the prompt, and weights that are 1 on average over all targets.

    Args:
        at_once: what all processes read in a pass together. Rows without targets fill up the last pass: accelerate
            would repeat examples there.
    """
    targets = sum(len(example.completion) for example in examples)
    scale = targets / sum(example.weight * len(example.completion) for example in examples)
    found = [
        {
            "input_ids": [*example.prompt, *example.completion],
            "labels": [*[IGNORED] * len(example.prompt), *example.completion],
            "weight": example.weight * scale,
        }
        for example in examples
    ]
    shortest = min(found, key=lambda row: len(row["input_ids"]))
    filler = shortest | {"labels": [IGNORED] * len(shortest["labels"]), "weight": 0.0}
    return found + [filler] * (-len(found) % at_once)


def passes(settings: Tuning, batch_size: int) -> tuple[int, int]:
    """How a worker reads its share of a batch: (texts in a pass, passes in a step)."""
    share = -(-batch_size // settings.workers)
    count = -(-share // settings.pass_size)
    return -(-share // count), count


def arguments(round_: Round, examples: int, scratch: str) -> SFTConfig:
    """TRL's arguments for a round: nothing is saved, logged or prepared by it."""
    settings, on_gpu = round_.settings, torch.cuda.is_available()
    size, count = passes(settings, round_.batch_size)
    steps = round_.epochs * -(-examples // (size * count * settings.workers))  # an estimate is enough for a warm-up
    sharded = settings.sharding == "fsdp2"
    found = SFTConfig(
        output_dir=scratch,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=count,
        num_train_epochs=round_.epochs,
        learning_rate=round_.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=round(steps * settings.warmup),
        weight_decay=settings.weight_decay,
        max_grad_norm=1.0,
        seed=round_.seed % (1 << 32),
        data_seed=round_.seed % (1 << 32),
        bf16=on_gpu,
        use_cpu=not on_gpu,
        gradient_checkpointing=settings.checkpointing and not sharded,
        fsdp=sharded or None,  # pyright: ignore[reportArgumentType]
        fsdp_config={"version": 2, "activation_checkpointing": settings.checkpointing} if sharded else None,
        ddp_find_unused_parameters=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    if on_gpu:
        found._n_gpu = 1  # a process has one, however many it sees; TRL refuses to copy a model to several
    return found


def _model(round_: Round) -> Any:
    settings, start = round_.settings, Path(round_.start) if round_.start else None
    whole = settings.kind == "full"
    source = start if start and whole else Path(round_.base)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=_dtype(settings), use_safetensors=True)
    if whole:
        return model
    if start:
        return PeftModel.from_pretrained(model, start, is_trainable=True)
    torch.manual_seed(round_.seed % (1 << 32))  # an adapter begins with random numbers
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise NLRLError(f"model.tuning.targets: {error}") from None


def _dtype(settings: Tuning) -> torch.dtype:
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if settings.kind == "lora" and torch.cuda.is_available() else torch.float32


def _write(trainer: WeightedTrainer, round_: Round) -> None:
    """The first process writes what was trained; all take part in gathering it."""
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    base, out = Path(round_.base), Path(round_.out)
    with checkpoint.new_folder(out) as fresh:
        if round_.settings.kind == "lora":
            model.save_pretrained(fresh, state_dict=state, save_embedding_layers=False)
            tuned = TunedWeights.of_folder(fresh)  # once more, in the one form of ours
            tuned.write_folder(fresh, base)
        else:
            model.save_pretrained(fresh, state_dict=state, max_shard_size="100TB")
            copy_all_but_weights(base, fresh)  # TRL has set the ids of special tokens anew
