"""How fast each architecture of the bundled bases is beside the control: `nlrl bench backbones`, or `python -m
nlrl.benchmarks.backbones`.

Models have the sizes of configs/pretrain and random weights: speed does not depend on them, and untrained models end no
answer early. Decoding goes through `Engine`, prompts of the corpus in, a fixed number of sampled tokens
out, prefill included; training steps are pretraining's own on packed examples of the corpus. All models take turns in
every round; figures are medians over rounds, and ratios those of rates from the same round.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import nlrl
from nlrl.benchmarks.figures import Figure, machine
from nlrl.benchmarks.timing import Play, interleaved, ratio

CONFIGS = Path(nlrl.__file__).parent / "configs" / "pretrain"
CONTROL = "transformer-base"
ROW_LENGTH = 512


@dataclass(frozen=True)
class Options:
    device: str
    batch: int
    """Prompts a call."""
    tokens: int
    """Sampled for each prompt."""
    rows: int
    """Packed rows a training step."""
    rounds: int
    seconds: float


def pretraining_architectures() -> dict[str, dict[str, Any]]:
    """The configs of the bases, by the name of the base (or, where a config makes none that ships, of its folder):
    `model_type`, `vocab_size` and the fields of the architecture. The control comes first."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(CONFIGS.glob("*.toml")):
        config = tomllib.loads(path.read_text())
        if config.get("facts", True) and "games" not in config:  # ablations and other corpora: the control's again
            fields = {"model_type": config["model_type"], "vocab_size": 1024}
            found[Path(config["out"]).name] = fields | config.get("architecture", {})
    return {CONTROL: found.pop(CONTROL)} | found


def parameters(fields: dict[str, Any]) -> int:
    """How many numbers a model of this config learns; a binary weight is one."""
    from nlrl.benchmarks.cache import empty_model

    return sum(weight.numel() for weight in empty_model(fields).parameters())


def fresh_model(fields: dict[str, Any], device: str):
    """A model of random weights."""
    import torch
    from transformers import AutoConfig

    from nlrl.backbones.registry import model_class

    torch.manual_seed(0)
    fields = dict(fields)
    model_type = fields.pop("model_type")
    return model_class(model_type)(AutoConfig.for_model(model_type, **fields)).to(device)


# -- work --------------------------------------------------------------------------------------------------------------
@cache
def _material(count: int) -> tuple[Any, list[tuple[tuple[int, ...], tuple[int, ...]]]]:
    """The tokenizer of the control, and examples of the corpus in its tokens: prompt, completion."""
    from nlrl.agents.corpus import CorpusSettings, examples
    from nlrl.backbones.loading import load
    from nlrl.backbones.prompts import encode_texts

    _, tokenizer = load(CONTROL)
    found = list(islice(examples(CorpusSettings(), seed=3), count))
    prompts = encode_texts(tokenizer, [f"<bos>{e.messages[-1].content}<answer>" for e in found])
    answers = encode_texts(tokenizer, [f"{e.completion}<eos>" for e in found])
    return tokenizer, [(tuple(p), tuple(a)) for p, a in zip(prompts, answers, strict=True)]


def decoding(fields: dict[str, Any], options: Options) -> Play:
    """n calls of `batch` prompts each; units are the tokens that came out."""
    import torch

    from nlrl.backbones.engine import Engine
    from nlrl.backbones.language_model import Request, Sampling

    tokenizer, found = _material(options.batch)
    dtype = torch.bfloat16 if options.device.startswith("cuda") else None
    model = Engine(fresh_model(fields, options.device), tokenizer, dtype=dtype)
    sampling = Sampling(temperature=1.0, max_tokens=options.tokens)
    requests = [Request(tokens=prompt, sampling=sampling, seed=i) for i, (prompt, _) in enumerate(found)]

    def play(n: int) -> int:
        return sum(len(completion.tokens) for _ in range(n) for completion in model.generate(requests))

    return play


def training(fields: dict[str, Any], options: Options) -> Play:
    """n optimizer steps on the same packed rows; units are tokens without padding."""
    import torch

    from nlrl.backbones.packing import TokenBatch, TokenExample, pack
    from nlrl.backbones.train_step import TrainStep, make_optimizer

    _, found = _material(8 * options.rows + 64)
    packed = pack([TokenExample(p, a) for p, a in found if len(p) + len(a) <= ROW_LENGTH], ROW_LENGTH, options.rows)
    batch, tokens = TokenBatch.of(packed), int((packed.documents > 0).sum())
    model = fresh_model(fields, options.device).train()
    on_cuda = options.device.startswith("cuda")
    optimizer = make_optimizer(model, 1e-4, (0.9, 0.98), 0.0, torch.device(options.device))
    step = TrainStep(model, optimizer, clip=1.0, bf16=on_cuda, compile=on_cuda)

    def play(n: int) -> int:
        for _ in range(n):
            step([batch], masked=True)
        step.loss_sum.item()  # waits for the device
        return n * tokens

    return play


WORK = {"decoding": decoding, "training": training}


# -- figures -----------------------------------------------------------------------------------------------------------
def hold(what: str, models: dict[str, dict[str, Any]], options: Options) -> list[Figure]:
    """Rates of all models, in turns; ratios are theirs over the control's."""
    plays = {name: WORK[what](fields, options) for name, fields in models.items()}
    rates = interleaved(plays, options.rounds, options.seconds)
    return [
        Figure(what, options.device, name, median(found), "tokens/s", ratio(found, rates[CONTROL]))
        for name, found in rates.items()
    ]


def show(figures: Sequence[Figure], sizes: dict[str, int]) -> None:
    print(f"\n{figures[0].section} on {figures[0].what}")
    for figure in figures:
        times = f"{figure.ratio:.2f}x {CONTROL}"
        print(f"  {figure.name:26}{sizes[figure.name]:12,} parameters{figure.value:14,.0f} tokens/s   {times}")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "nlrl bench backbones", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", help="names of bases, as in configs/pretrain; all of them if not given")
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK), help="what to measure")
    parser.add_argument("--device", default="auto", help="cpu, cuda; auto takes a GPU where there is one")
    parser.add_argument("--batch", type=int, help="prompts a call; 64, on a GPU 4096")
    parser.add_argument("--tokens", type=int, default=32, help="sampled for each prompt")
    parser.add_argument("--rows", type=int, help="packed rows of 512 tokens a training step; 4, on a GPU 192")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each model")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--threads", type=int, default=0, help="of a CPU; 0 is torch's choice")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    from nlrl.orchestration.models import resolve_device, set_threads

    args = _parse(argv)
    set_threads(args.threads)
    device = resolve_device(args.device)
    big = device.startswith("cuda")
    options = Options(
        device, args.batch or (4096 if big else 64), args.tokens, args.rows or (192 if big else 4), args.rounds,
        args.seconds,
    )  # fmt: skip
    known = pretraining_architectures()
    models = {name: known[name] for name in known if not args.models or name in (CONTROL, *args.models)}
    sizes = {name: parameters(fields) for name, fields in models.items()}
    print(f"{where(device)}; {options}")
    figures: list[Figure] = []
    for what in args.work:
        found = hold(what, models, options)
        show(found, sizes)
        figures += found
    if args.json:
        report = {"machine": where(device), "options": asdict(options), "parameters": sizes}
        args.json.write_text(json.dumps(report | {"figures": [asdict(figure) for figure in figures]}, indent=1) + "\n")
    return 0


def where(device: str) -> str:
    """The machine, and the GPU if it is one that works."""
    import torch

    gpu = f", {torch.cuda.get_device_name(device)}" if device.startswith("cuda") else ""
    return f"{machine()}{gpu}, {torch.get_num_threads()} threads, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
