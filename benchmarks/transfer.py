"""How long new weights are under way: `nlrl bench transfer`, or `python -m nlrl.benchmarks.transfer`.

The clock runs from the trainer's last step to the first token that the new weights have written, in a run's own actors
on a local Ray: the trainer takes its weights off its device, the servers read them, and one answers. Two ways are timed
in turns: as runs do it (by reference, in the type of the engine), and as plain pickled tensors in float32 through the
driver, which is what the ratio is against. The first transfer of all, which makes room for a new weight set, is told
apart. Then the check that follows each transfer is timed, and what it finds is printed.

    nlrl bench transfer                                       the bundled base, on this machine
    nlrl bench transfer -- --size 1b --device cuda            1.2 billion weights on one GPU: under two minutes
    nlrl bench transfer -- --vllm FOLDER --tuning full        a Hugging Face folder, fine-tuned and served by vLLM

Random weights, but for the bundled base: speed does not depend on what they say.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.benchmarks.figures import Figure, machine, show
from nlrl.benchmarks.timing import ratio, seconds_of
from nlrl.orchestration.cluster import Cluster, Handle, first_done
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.fits import FitSettings, TextExample
from nlrl.orchestration.router import Router, start_servers
from nlrl.orchestration.trainer import TrainerActor
from nlrl.orchestration.transfer import PROBES, TOKENS, compared

BASE = "transformer-base"
SIZES: dict[str, dict[str, Any]] = {
    "100m": dict(
        vocab_size=32768, hidden_size=768, intermediate_size=2048, num_hidden_layers=10, num_attention_heads=12,
        num_key_value_heads=12,
    ),
    "1b": dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8,
    ),
}  # fmt: skip
"""The second is Llama-3.2-1B's shape."""
TARGET = 2.0
PROMPTS = [(Message("user", f"Choose a move.\n 1 | 2 | {number}"),) for number in range(8)]
EXAMPLES = [TextExample(prompt, "I take 5.") for prompt in PROMPTS]
WAYS = ("by reference", "pickled, through the driver")
NETWORK = "actor"


class CopyingTrainer(TrainerActor):
    """A trainer that can also give its weights away as plain tensors."""

    def plain_weights(self, network: Any) -> dict[str, Any]:
        """Float32 copies on the CPU."""
        state = self._networks[network].state_dict()
        return {key: tensor.detach().cpu().clone() for key, tensor in state.items()}


@dataclass
class Times:
    """Seconds of one transfer."""

    taken: float
    """Until the weights are off the trainer's device and in the object store."""
    installed: float
    """Until every server has them."""
    answered: float
    """Until the first token."""

    @property
    def total(self) -> float:
        return self.taken + self.installed + self.answered


@dataclass
class Actors:
    """What a run has of them."""

    cluster: Cluster
    router: Router
    trainer: Handle
    rounds: int = 0

    def train(self) -> None:
        """A step, so that the weights are new."""
        self.rounds += 1
        settings = FitSettings(1e-5, len(EXAMPLES), 1, self.rounds)
        self.trainer.call("fit", NETWORK, EXAMPLES, settings).result()

    def transfer(self, way: str) -> Times:
        """Trains, sends, asks."""
        self.train()
        start = time.perf_counter()
        sent = self.trainer.call("weights" if way == WAYS[0] else "plain_weights", NETWORK)
        first_done([sent])
        taken = time.perf_counter()
        state = sent.reference if way == WAYS[0] else self.cluster.put(sent.result())
        self.router.put_weights(NETWORK, f"{NETWORK}@{self.rounds}", state)
        installed = time.perf_counter()
        self.router.generate(NETWORK, [Request(PROMPTS[0], sampling=Sampling(max_tokens=1), seed=self.rounds)])
        return Times(taken - start, installed - taken, time.perf_counter() - installed)


def native(cluster: Cluster, args: argparse.Namespace, folder: Path) -> tuple[Actors, int]:
    """Actors of a native model, and how many weights it has."""
    name, weights = make(args.size, folder, args.device)
    gpu = 0.5 if args.device == "cuda" else 0
    room = {"max_rows": 16, "memory_bytes": 1 << 28}
    model = ModelConfig(name=name, device=args.device, options=room)
    options = {"num_cpus": 0, "num_gpus": gpu, "threads": args.threads, "name": "trainer"}
    router = start_servers(cluster, model, args.servers, args.threads, gpu / args.servers)
    trainer = cluster.spawn(CopyingTrainer, name, args.device, args.threads, **options)
    return Actors(cluster, router, trainer), weights


def make(size: str, folder: Path, device: str) -> tuple[str, int]:
    """A model's name or folder, and how many weights it has; made on the device."""
    import torch

    from nlrl.backbones import TransformerConfig, TransformerForCausalLM, load
    from nlrl.backbones.loading import save

    model, tokenizer = load(BASE)
    if size == "base":
        return BASE, sum(weight.numel() for weight in model.parameters())
    torch.manual_seed(0)
    with torch.device(device):  # a billion random numbers take a CPU half a minute
        model = TransformerForCausalLM(TransformerConfig(**SIZES[size], max_position_embeddings=1024, eos_token_id=2))
    save(model, tokenizer, folder, torch.bfloat16)
    return str(folder), sum(weight.numel() for weight in model.parameters())


def tuned(cluster: Cluster, args: argparse.Namespace, folder: Path) -> tuple[Actors, int]:
    """The same of a Hugging Face model in vLLM."""
    from nlrl.backbones.tuning.settings import Tuning
    from nlrl.backbones.tuning.weights import shapes
    from nlrl.orchestration.gpus import gpus_of
    from nlrl.orchestration.tuning import TuningActor

    tuning = Tuning(kind=args.tuning, storage=folder)
    dtype = "float32" if args.device == "cpu" else "auto"
    room = {"max_model_len": 1024} | ({"cpu_kvcache_gib": 1.0, "enforce_eager": True} if dtype != "auto" else {})
    model = ModelConfig(kind="vllm", name=args.vllm, tuning=tuning, dtype=dtype, options=room)
    router = start_servers(cluster, model, 1, args.threads, gpus_of(model, 0))
    given = (args.vllm, tuning, str(folder / "scratch"), "ray", args.threads)
    trainer = cluster.spawn(TuningActor, *given, num_cpus=0, threads=args.threads, name="trainer")
    sizes = shapes(Path(args.vllm)).values()
    return Actors(cluster, router, trainer), sum(_product(shape) for shape in sizes)


def _product(shape: tuple[int, ...]) -> int:
    found = 1
    for side in shape:
        found *= side
    return found


def measure(actors: Actors, what: str, rounds: int, ways: Sequence[str], target: bool) -> list[Figure]:
    """Figures of `rounds` transfers each way, after one that is not counted with them."""
    begun = actors.transfer(ways[0])
    _tell("the first", begun)
    times = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            times[way].append(actors.transfer(way))
            _tell(way, times[way][-1])
    figures = [Figure("transfer", what, "the first, with room for the set", begun.total, "s")]
    for way in ways:
        total = median(each.total for each in times[way])
        met = {"target": f"under {TARGET:g} s", "met": total < TARGET} if target and way == WAYS[0] else {}
        others = [each.total for each in times[way]], [each.total for each in times[ways[0]]]
        parts = ", ".join(
            f"{part} {median(getattr(t, part) for t in times[way]):.3f}" for part in Times.__annotations__
        )
        figures.append(
            Figure("transfer", what, way, total, "s", None if way == ways[0] else ratio(*others), note=parts, **met)
        )
    return figures + check(actors, what)


def _tell(way: str, times: Times) -> None:
    """Progress: of a long measurement that is cut off, these lines stay."""
    print(f"{way}: {times.total:.2f} s", file=sys.stderr, flush=True)


def check(actors: Actors, what: str) -> list[Figure]:
    """What the look at the last transfer takes and finds."""
    sampling = Sampling(temperature=1.0, max_tokens=TOKENS)
    seconds, found = [], None
    for seed in range(3):
        requests = [Request(prompt, sampling=sampling, seed=seed) for prompt in PROMPTS[:PROBES]]
        box: list[Any] = []
        took = seconds_of(
            lambda box=box, asked=requests: box.append(compared(actors.router, actors.trainer, NETWORK, asked))
        )
        seconds, found = [*seconds, took], box[0]
    assert found is not None, "the engine gave no log-probabilities"
    return [
        Figure("check", what, "asking and reading a few answers", median(seconds), "s"),
        Figure("check", what, "KL(engine, trainer), 1e-12 nats a token", 1e12 * found.kl, ""),
        Figure("check", what, "largest difference of a log-probability, 1e-6", 1e6 * found.max_difference, ""),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "nlrl bench transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=["base", *SIZES], default="base", help="of a native model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--servers", type=int, default=1, help="engines that get the weights")
    parser.add_argument("--rounds", type=int, default=5, help="transfers each way")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each actor")
    parser.add_argument("--vllm", default="", metavar="FOLDER", help="a Hugging Face model instead")
    parser.add_argument("--tuning", choices=["lora", "full"], default="lora", help="how that one is trained")
    parser.add_argument("--inline", action="store_true", help="all in this process: nothing is sent, a quick look")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, Cluster("inline" if args.inline else "ray", "local") as cluster:
        actors, weights = (tuned if args.vllm else native)(cluster, args, Path(folder) / "model")
        kind = f"vLLM, {args.tuning}" if args.vllm else "native"
        what = f"{weights:,} weights, {kind}, {args.device}, {args.servers} server(s)"
        target = args.device == "cuda" and args.size == "1b"
        figures = measure(actors, what, args.rounds, WAYS[:1] if args.vllm else WAYS, target)
    for before, figure in zip([None, *figures], figures, strict=False):
        show(figure, before)
    if args.json:
        told = {key: str(value) for key, value in vars(args).items() if key != "json"}
        found = {"machine": machine(), "options": told, "figures": [asdict(figure) for figure in figures]}
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
