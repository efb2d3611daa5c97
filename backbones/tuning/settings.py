"""How a Hugging Face model is fine-tuned, and what one round of it is."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nlrl.errors import NLRLError

PACKAGES = ("trl", "peft", "accelerate")


class Tuning(BaseModel):
    """Fine-tuning of a Hugging Face model (kind "vllm"). Learning rates, batches and epochs are those of [critic] and
    [actor]."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["lora", "full"] = "lora"
    """lora: an adapter each for critic and actor over one frozen base, side by side in vLLM. full: every weight, two
    models that take turns in vLLM."""
    rank: int = Field(default=32, ge=1, le=512)
    """lora: rank of the adapters."""
    alpha: float = Field(default=64.0, gt=0)
    """lora: adapters count alpha / rank times."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """lora: share of an adapter's inputs left out in training."""
    targets: tuple[str, ...] = ()
    """lora: names of the linear layers that get an adapter, such as q_proj; empty for all but the output layer."""
    max_length: int = Field(default=2048, ge=2)
    """Longest prompt and answer together, in tokens. A longer example is left out and counted, never cut."""
    pass_size: int = Field(default=8, ge=1)
    """Texts that one worker reads at once; batch_size is reached by adding up gradients."""
    warmup: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises; then it is constant."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the weights while they are trained. auto: float32 (adapters always are), but a frozen base on a GPU in
    bfloat16. Computation on a GPU is in bfloat16."""
    checkpointing: bool = True
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    workers: int = Field(default=1, ge=1)
    """Training processes, each on a GPU of its own where there are GPUs."""
    sharding: Literal["none", "fsdp2"] = "none"
    """none: every worker holds the whole model. fsdp2: weights, gradients and optimizer are spread over the workers
    (needs GPUs)."""
    gpus_per_worker: float | None = Field(default=None, gt=0)
    """Ray's share of a GPU for each worker; vLLM takes turns with one of them on the rest. By default 0.5, or 0.6 where
    there are several workers, so that no two are on one GPU."""
    storage: Path | None = None
    """Where weights lie between rounds; with workers on several machines, a folder that all of them see. By default in
    the run's folder."""

    @model_validator(mode="after")
    def _shards_are_several(self) -> Self:
        if self.sharding == "fsdp2" and self.workers == 1:
            raise ValueError("sharding 'fsdp2' spreads a model over several workers; set workers to at least 2")
        if self.workers > 1 and self.gpu_share <= 0.5:
            raise ValueError("gpus_per_worker must be more than 0.5 for several workers: each needs a GPU of its own")
        return self

    @property
    def gpu_share(self) -> float:
        """GPUs of each worker."""
        return self.gpus_per_worker or (0.5 if self.workers == 1 else 0.6)


@dataclass(frozen=True)
class Round:
    """One round of fine-tuning: what each worker is told."""

    base: str
    """Folder of the base."""
    start: str
    """Folder of the weights to go on from, as an earlier round left it; empty begins with the base."""
    out: str
    """Folder for the new ones: an adapter's, or a whole model's."""
    settings: Tuning
    learning_rate: float
    batch_size: int
    epochs: int
    seed: int
    threads: int = 0
    """CPU threads of a worker; 0 leaves torch's choice."""


def require() -> None:
    """Raises: NLRLError: a package that fine-tuning needs is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise NLRLError(f"model.tuning needs {', '.join(missing)}: pip install 'nlrl[llm]' beside vLLM")
