"""What a run with Hugging Face models takes, before anything is downloaded: `nlrl bench memory CONFIG`.

Parameters are counted on models that are built without memory (PyTorch's meta device), from the config.json in the
model's folder, or from `shapes.py` where there is none. Bytes follow from them. Times are lower bounds from the
arithmetic and the memory traffic of one iteration, divided by a share of the GPU's peak that is an assumption and is
printed; answers are counted by playing the config's games by chance (`answers.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrl.benchmarks.answers import Answers, plan
from nlrl.benchmarks.shapes import SHAPES
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig, RunConfig, load_config

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}
ADAM, GRADIENT = 8, 4
"""Bytes of AdamW's two moments and of a gradient, for each trained weight, in float32."""
CHUNK_BYTES = 32768 * 4 * 3
"""TRL reads the output layer in tiles: logits, their gradient and a copy, of one tile."""


@dataclass(frozen=True)
class GPU:
    """A card as its maker describes it."""

    memory: float
    flops: float
    """bfloat16, dense, a second."""
    bandwidth: float
    """Bytes a second."""


GPUS = {
    "a100": GPU(80e9, 312e12, 2.04e12),
    "h100": GPU(80e9, 989e12, 3.35e12),
    "h200": GPU(141e9, 989e12, 4.8e12),
}


@dataclass(frozen=True)
class Size:
    """A model's numbers."""

    parameters: int
    linear: int
    """Inputs plus outputs of all linear layers but the output layer: times the rank, the weights of an adapter."""
    layers: int
    kv_bytes: int
    """Of keys and values, for each token, in 16 bits."""
    layer_bytes: int
    """Of the activations that one layer keeps for its backward pass, for each token, in 16 bits."""
    hidden: int

    def adapter(self, rank: int) -> int:
        """Weights of an adapter of every linear layer."""
        return rank * self.linear


def size_of(name: str) -> Size:
    """Raises: NLRLError: neither a folder with a config.json nor a shape of that name is there."""
    import torch
    from transformers import AutoModelForCausalLM

    config = _hf_config(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    output = model.get_output_embeddings()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not output]
    heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kv = config.num_key_value_heads * heads
    kept = 5 * config.hidden_size + 2 * kv + 3 * config.intermediate_size
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(layer.in_features + layer.out_features for layer in layers),
        layers=config.num_hidden_layers,
        kv_bytes=2 * config.num_hidden_layers * kv * 2,
        layer_bytes=2 * kept,
        hidden=config.hidden_size,
    )


def _hf_config(name: str) -> Any:
    from transformers import AutoConfig

    if (Path(name) / "config.json").is_file():
        return AutoConfig.from_pretrained(name)
    if Path(name).name not in SHAPES:
        raise NLRLError(f"{name!r} is no folder with a config.json, and no shape is known but {', '.join(SHAPES)}")
    fields = dict(SHAPES[Path(name).name])
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def serving(model: ModelConfig, size: Size, gpu: GPU, share: float) -> dict[str, float]:
    """Bytes on each GPU of a vLLM server.

    Args:
        share: of the card's memory that vLLM may take.
    """
    gpus = int(model.options.get("tensor_parallel_size", 1))
    stored = model.options.get("quantization") or (model.dtype if model.dtype != "auto" else "bfloat16")
    weights = size.parameters * BYTES.get(stored, 2) / gpus
    tuned = model.tuning is not None and model.tuning.kind == "lora"
    adapters = 4 * 2 * size.adapter(model.tuning.rank) / gpus if model.tuning is not None and tuned else 0.0
    left = gpu.memory * share - weights - adapters
    return {
        "GPUs": gpus,
        "weights, GiB each": weights / GIB,
        "room for adapters, GiB each": adapters / GIB,
        "left for keys and values, GiB each": left / GIB,
        "key-value bytes a token": size.kv_bytes,
        "tokens held at once": max(0, int(left * gpus / size.kv_bytes)),
    }


def training(model: ModelConfig, size: Size) -> dict[str, float]:
    """Bytes on each training worker."""
    tuning = model.tuning
    assert tuning is not None
    lora, shards = tuning.kind == "lora", tuning.workers if tuning.sharding == "fsdp2" else 1
    trained = size.adapter(tuning.rank) if lora else size.parameters
    frozen = "float32" if tuning.dtype == "float32" else "bfloat16"
    held = size.parameters * BYTES[frozen] + 4 * trained if lora else 4 * size.parameters
    copies = 0 if lora or shards > 1 else 2 * size.parameters  # autocast's, for the length of a pass
    tokens = tuning.pass_size * tuning.max_length
    kept = size.layers * tokens * (2 * size.hidden if tuning.checkpointing else size.layer_bytes)
    once = tokens * size.layer_bytes if tuning.checkpointing else 0
    parts: dict[str, float] = {
        "trained weights": trained,
        "weights, GiB": held / shards / GIB,
        "bfloat16 copies, GiB": copies / GIB,
        "gradients, GiB": GRADIENT * trained / shards / GIB,
        "AdamW, GiB": ADAM * trained / shards / GIB,
        "activations at most, GiB": (kept + once + CHUNK_BYTES) / GIB,
    }
    return parts | {"sum, GiB": sum(value for name, value in parts.items() if name.endswith("GiB"))}


@dataclass(frozen=True)
class Assumed:
    """What times rest on, besides the card."""

    prompt: int
    """Tokens of a prompt."""
    answer: int
    """Tokens of an answer."""
    share: float
    """Of the peak, in training and in reading prompts."""
    batch: int
    """Answers that are written at once."""


def seconds_to_answer(answers: int, size: Size, gpus: int, gpu: GPU, assumed: Assumed) -> float:
    """Reading is bound by arithmetic (2 operations a weight and token), writing by memory: every step reads all weights
    and the keys and values of each answer in the batch."""
    reading = 2 * size.parameters * answers * assumed.prompt / (gpus * gpu.flops * assumed.share)
    context = assumed.prompt + assumed.answer / 2
    step = (2 * size.parameters + assumed.batch * context * size.kv_bytes) / (gpus * gpu.bandwidth)
    return reading + answers * assumed.answer / assumed.batch * step


def seconds_to_train(tokens: float, model: ModelConfig, size: Size, gpu: GPU, assumed: Assumed) -> float:
    """2 operations a weight and token forward, 2 backward through activations, 2 more for the gradients of trained
    weights, and 2 to compute activations again."""
    assert model.tuning is not None
    operations = (4 if model.tuning.kind == "lora" else 6) + (2 if model.tuning.checkpointing else 0)
    return operations * size.parameters * tokens / (model.tuning.workers * gpu.flops * assumed.share)


def times(config: RunConfig, answers: Answers, sizes: dict[str, Size], gpu: GPU, assumed: Assumed) -> dict[str, float]:
    """Seconds of one iteration's parts, at best."""
    student, teacher = config.model, config.teacher or config.model
    count = int(teacher.options.get("tensor_parallel_size", 1))
    by_student = answers.policy + answers.critic + answers.evaluation
    out = {
        "student answers": seconds_to_answer(by_student, sizes["student"], 1, gpu, assumed),
        "teacher answers": seconds_to_answer(answers.g1 + answers.improvement, sizes["teacher"], count, gpu, assumed),
    }
    length = assumed.prompt + assumed.answer
    for name, train, texts in (
        ("critic", config.critic, answers.critic_texts * config.critic.buffer_iterations),
        ("actor", config.actor, answers.actor_texts * config.actor.buffer_iterations),
    ):
        if student.tuning is not None:
            tokens = texts * length * train.epochs
            out[f"train the {name}"] = seconds_to_train(tokens, student, sizes["student"], gpu, assumed)
    return out


def report(config: RunConfig, card: str, assumed: Assumed) -> dict[str, Any]:
    """All figures of a config."""
    gpu, models = GPUS[card], {"student": config.model, "teacher": config.teacher}
    held = {role: model for role, model in models.items() if model is not None and model.kind == "vllm"}
    if "student" not in held:
        raise NLRLError(f"model.kind is '{config.model.kind}': this estimates models in vLLM")
    sizes = {role: size_of(model.name) for role, model in held.items()}
    sizes.setdefault("teacher", sizes["student"])
    tuning = config.model.tuning
    found: dict[str, Any] = {"card": card, "assumed": vars(assumed)}
    for role, model in held.items():
        share = model.options.get("gpu_memory_utilization", 0.9 * (1 if model.tuning is None else _left(model)))
        found[role] = {"parameters": sizes[role].parameters} | serving(model, sizes[role], gpu, share)
    if tuning is not None:
        found["training worker"] = {"workers": tuning.workers} | training(config.model, sizes["student"])
        share = config.model.options.get("gpu_memory_utilization", 0.9 * _left(config.model))
        both = share * gpu.memory / GIB + found["training worker"]["sum, GiB"]
        found["a card with vLLM and a worker"] = {"taken, GiB": both, "of, GiB": gpu.memory / GIB}
    answers = plan(config)
    found["answers of an iteration"] = vars(answers)
    seconds = times(config, answers, sizes, gpu, assumed)
    found["minutes of an iteration, at best"] = {name: value / 60 for name, value in seconds.items()}
    found["hours of the run, at best"] = {"all": config.iterations * sum(seconds.values()) / 3600}
    return found


def prompt_tokens(config: RunConfig) -> int:
    """Of the policy's first question, at four characters a token."""
    from nlrl.agents.roles import Roles, StateInput
    from nlrl.envs import make

    game = make(config.game.name, **config.game.params)
    messages = Roles(game, config.model.prompt_style).policy.messages(StateInput(game.initial_states()[0]))
    return sum(len(message.content) for message in messages) // 4


def _left(model: ModelConfig) -> float:
    assert model.tuning is not None
    return 1 - model.tuning.gpu_share % 1


def main(arguments: Sequence[str]) -> None:
    """Entry point of `nlrl bench memory`."""
    parser = argparse.ArgumentParser(prog="nlrl bench memory", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100")
    parser.add_argument("--prompt", type=int, help="tokens of a prompt; by default its characters / 4")
    parser.add_argument("--answer", type=int, default=120, help="tokens of an answer")
    parser.add_argument("--share", type=float, default=0.4, help="of the card's peak, in training and reading")
    parser.add_argument("--batch", type=int, default=128, help="answers written at once")
    parser.add_argument("--json", action="store_true")
    given, changes = parser.parse_known_args(list(arguments))
    config = load_config(given.config)
    if changes:
        from nlrl.orchestration.overrides import overridden

        config = overridden(config, changes)
    prompt = given.prompt or prompt_tokens(config)
    found = report(config, given.gpu, Assumed(prompt, given.answer, given.share, given.batch))
    print(json.dumps(found, indent=2) if given.json else text(found))


def text(found: dict[str, Any]) -> str:
    """As lines for people."""
    lines = []
    for name, value in found.items():
        if not isinstance(value, dict):
            lines.append(f"{name}: {value}")
            continue
        lines.append(name)
        lines += [f"    {key:40} {number(each):>18}" for key, each in value.items()]
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
