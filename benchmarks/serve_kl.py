"""How far the engine's log-probabilities are from the training forward's; a part of `nlrl bench serve`.

The engine samples answers at temperature 1; the training forward (packed rows under a block mask; in bfloat16: float32
weights under autocast, as in a training step) says what it gives the same tokens. With d = log p_trainer - log p_engine
of a sampled token, the mean of exp(d) - 1 - d estimates KL(engine || trainer): unbiased, and never negative (Schulman,
"Approximating KL Divergence", 2020, k3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from nlrl.benchmarks.figures import Figure

BASES = ("transformer-base", "hymba-base", "bimamba-base")
ROW_LENGTH = 512
TARGETS = {"float32": 1e-6, "bfloat16": 2e-3}


def compare(device: str, count: int, tokens: int, names: Sequence[str] = BASES) -> list[Figure]:
    """Figures of bundled models; count: answers sampled, tokens: of each at most."""
    return [figure for name in names for dtype in TARGETS for figure in _figures(name, dtype, device, count, tokens)]


def _figures(name: str, dtype: str, device: str, count: int, tokens: int) -> list[Figure]:
    import torch

    from nlrl.backbones.engine import Engine
    from nlrl.backbones.language_model import Request, Sampling
    from nlrl.backbones.loading import load_trainable
    from nlrl.benchmarks.backbones import _material

    model, tokenizer = load_trainable(name)
    model = model.to(device=device, dtype=torch.float32)  # pyright: ignore[reportCallIssue]
    prompts = [prompt for prompt, _ in _material(count)[1]]
    requests = [Request(tokens=p, sampling=Sampling(max_tokens=tokens), seed=i) for i, p in enumerate(prompts)]
    with Engine(model, tokenizer, dtype=getattr(torch, dtype)) as engine:
        answers = engine.generate(requests)
    drawn = [(prompt, answer.tokens, answer.logprobs) for prompt, answer in zip(prompts, answers, strict=True)]
    difference = log_ratios(model, drawn, dtype == "bfloat16")
    kl = float((difference.exp() - 1 - difference).mean())
    note = f"{len(difference):,} tokens, largest difference {float(difference.abs().max()):.2g} nats"
    target = TARGETS[dtype]
    return [Figure("kl", f"{name}, {device}", dtype, kl, "nats", None, f"under {target:g}", kl < target, note)]


def log_ratios(model, drawn: Sequence[tuple[Sequence[int], Sequence[int], Sequence[float]]], bf16: bool):
    """log p_trainer - log p_engine of every token, float64 `(tokens,)`.

    Args: drawn: prompt, answer, the engine's log-probabilities of it.
    """
    import torch

    from nlrl.backbones.packing import TokenBatch, TokenExample, pack
    from nlrl.backbones.train_step import target_hidden, targets_of, wide_logits

    packed = pack([TokenExample(tuple(prompt), tuple(answer)) for prompt, answer, _ in drawn], ROW_LENGTH)
    batch = TokenBatch.of(packed).to(model.device)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        targets = targets_of(batch, static=False)
        logits = wide_logits(model, target_hidden(model, batch, True, targets))
    theirs = logits.double().log_softmax(-1).gather(1, targets.tokens[:, None])[:, 0].cpu()
    return theirs - torch.tensor(_in_order(packed, drawn), dtype=torch.float64)


def _in_order(packed, drawn) -> list[float]:
    """The engine's log-probabilities in the order of the packed targets."""
    known = defaultdict(list)
    for prompt, answer, logprobs in drawn:
        known[*prompt, *answer].append(logprobs)
    found: list[float] = []
    for tokens, documents in zip(packed.tokens, packed.documents, strict=True):
        for number in range(1, documents.max() + 1):
            found += known[tuple(tokens[documents == number].tolist())].pop()
    return found
