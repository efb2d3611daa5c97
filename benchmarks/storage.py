"""What storing a base as int8 costs: `nlrl bench storage`, or `python -m nlrl.benchmarks.storage`.

Each base is scored twice on the same held-out prompts with the same seeds, once as it is shipped and once after a
round trip through int8 (`nlrl.backbones.int8`), both computed in float32 on the CPU. Agreement is counted on the texts
themselves: one token that differs makes a prompt differ. Logits are compared where the corpus has its targets, on
packed held-out examples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nlrl.benchmarks.figures import machine

BASES = ("transformer-base", "ngpt-base")
LOGIT_EXAMPLES = 200


def compare(base: str, prompts: int, seed: int) -> dict[str, Any]:
    """Figures of one base in both storages."""
    import torch

    from nlrl.backbones.checkpoint import WEIGHTS
    from nlrl.backbones.loading import BUNDLED, load, save

    shipped = BUNDLED / base if (BUNDLED / base).is_dir() else Path(base)
    with TemporaryDirectory() as folder:
        small = Path(folder) / "int8"
        save(*load(base), small, dtype=torch.int8)
        places = {"shipped": shipped, "int8": small}
        roles, texts = {}, {}
        for name, place in places.items():
            roles[name], texts[name] = _scores(place, prompts, seed)
        return {
            "base": base,
            "bytes": {name: (place / WEIGHTS).stat().st_size for name, place in places.items()},
            "roles": roles,
            "same_text": {role: _share_equal(texts["shipped"][role], texts["int8"][role]) for role in texts["int8"]},
            "logits": _logits(shipped, small, seed),
        }


def _scores(place: Path, prompts: int, seed: int) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Scores by role, and the texts they are of."""
    from nlrl.agents.corpus import CorpusSettings
    from nlrl.agents.corpus.study import study
    from nlrl.orchestration.config import ModelConfig
    from nlrl.orchestration.models import open_model

    model = _Listening(open_model(ModelConfig(name=str(place), device="cpu", dtype="float32")))
    found = study(model, CorpusSettings(), prompts, seed)  # pyright: ignore[reportArgumentType]
    return {role: asdict(score) for role, score in found.items()}, dict(zip(found, model.heard, strict=True))


class _Listening:
    """A model whose answers are kept, call by call; the study asks role by role, in order."""

    def __init__(self, model: Any):
        self._model, self.heard = model, []

    def generate(self, requests: Sequence[Any]) -> list[Any]:
        completions = self._model.generate(requests)
        self.heard.append([completion.text for completion in completions])
        return completions


def _share_equal(one: Sequence[str], other: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _logits(shipped: Path, small: Path, seed: int) -> dict[str, float]:
    """The difference of the logits of targets, and the loss (nats a target token) of both."""
    import torch
    import torch.nn.functional as F

    from nlrl.agents.corpus import CorpusSettings, examples
    from nlrl.backbones.loading import load
    from nlrl.backbones.prompts import encode_texts

    found: dict[str, list[torch.Tensor]] = {"shipped": [], "int8": []}
    targets: list[int] = []
    held_out = list(islice(examples(CorpusSettings(held_out=True), seed), LOGIT_EXAMPLES))
    for name, place in (("shipped", shipped), ("int8", small)):
        model, tokenizer = load(place)
        prompts = encode_texts(tokenizer, [f"<bos>{e.messages[-1].content}<answer>" for e in held_out])
        answers = encode_texts(tokenizer, [f"{e.completion}<eos>" for e in held_out])
        targets = [token for answer in answers for token in answer]
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            with torch.no_grad():
                hidden = model.hidden(ids, torch.arange(ids.shape[1])[None])
                found[name].append(model.logits(hidden[0, len(prompt) - 1 : -1]))
    before, after = torch.cat(found["shipped"]), torch.cat(found["int8"])
    wanted = torch.tensor(targets)
    return {
        "targets": len(wanted),
        "relative": float((after - before).norm() / before.norm()),
        "largest": float((after - before).abs().max()),
        "same_choice": float((after.argmax(-1) == before.argmax(-1)).float().mean()),
        "loss_shipped": float(F.cross_entropy(before, wanted)),
        "loss_int8": float(F.cross_entropy(after, wanted)),
    }


# -- printing ----------------------------------------------------------------------------------------------------------
def show(found: dict[str, Any]) -> None:
    """One base's table."""
    size, logits = found["bytes"], found["logits"]
    print(f"\n{found['base']}: {size['shipped']:,} bytes as shipped, {size['int8']:,} as int8")
    print(
        f"  logits of {logits['targets']:,} targets: {logits['relative']:.2%} apart (largest difference "
        f"{logits['largest']:.2f}), the same choice in {logits['same_choice']:.2%}; "
        f"loss {logits['loss_shipped']:.4f} -> {logits['loss_int8']:.4f}"
    )
    print(f"  {'role':14}{'parsed':>18}{'exact':>18}{'true claims':>18}{'same text':>12}")
    for role, after in found["roles"]["int8"].items():
        before = found["roles"]["shipped"][role]
        cells = [_pair(before[key], after[key]) for key in ("parsed", "exact", "true_claims")]
        print(f"  {role:14}" + "".join(f"{cell:>18}" for cell in cells) + f"{found['same_text'][role]:>12.1%}")


def _pair(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.1%} {after:.1%}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "nlrl bench storage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bases", nargs="*", default=list(BASES), help="bundled names or folders")
    parser.add_argument("--prompts", type=int, default=300, help="held-out prompts of each role")
    parser.add_argument("--seed", type=int, default=1, help="of the prompts")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    print(f"{machine()}; {args.prompts} held-out prompts of each role, seed {args.seed}; shipped, then int8")
    found = []
    for base in args.bases:
        found.append(compare(base, args.prompts, args.seed))
        show(found[-1])
    if args.json:
        options = {"prompts": args.prompts, "seed": args.seed}
        args.json.write_text(json.dumps({"machine": machine(), "options": options, "bases": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
