"""A tokenizer of letters and numbers, small models of every architecture over it, and the plainest sampler there is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from nlrl.backbones import (
    BiMambaConfig,
    BiMambaForCausalLM,
    DiffTransformerConfig,
    DiffTransformerForCausalLM,
    HymbaConfig,
    HymbaForCausalLM,
    NGPTConfig,
    NGPTForCausalLM,
    TransformerConfig,
    TransformerForCausalLM,
)
from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Request
from nlrl.backbones.sampler import gumbel_noise, signed_seed
from nlrl.backbones.tokenizer import train_tokenizer

CONTEXT = 128
SIZES = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=CONTEXT,
)  # fmt: skip
HYMBA = SIZES | dict(
    num_hidden_layers=4, sliding_window=5, global_attn_idx=[0, 3], kv_reuse_group=[[1, 2]], num_memory_tokens=4,
    mamba_d_state=4,
)  # fmt: skip
MAMBA = dict(hidden_size=32, num_hidden_layers=2, head_dim=16, state_size=6, chunk_size=8)
MODELS: dict[str, Callable] = {
    "transformer": lambda size: TransformerForCausalLM(TransformerConfig(vocab_size=size, **SIZES)),
    "ngpt": lambda size: NGPTForCausalLM(NGPTConfig(vocab_size=size, **SIZES)),
    "diff_v1": lambda size: DiffTransformerForCausalLM(DiffTransformerConfig(vocab_size=size, version=1, **SIZES)),
    "diff_v2": lambda size: DiffTransformerForCausalLM(DiffTransformerConfig(vocab_size=size, version=2, **SIZES)),
    "hymba": lambda size: HymbaForCausalLM(HymbaConfig(vocab_size=size, **HYMBA)),
    "bimamba": lambda size: BiMambaForCausalLM(BiMambaConfig(vocab_size=size, **MAMBA)),
}


@pytest.fixture(scope="session")
def tokenizer():
    atoms = [r"[+-]\d\.\d\d", r"[a-z]", r" "]
    scores = [f"{sign}{value / 10:.2f}" for value in range(11) for sign in "+-"]
    return train_tokenizer(["a b c d e f g h"] * 50, atoms, scores, 300)


def make_model(name: str, tokenizer, seed: int = 0, device: str = "cpu"):
    """With weights so large that answers are not all alike, and end tokens rare."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[name](len(tokenizer) + 3).eval()
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        model = model.to(device)
        model.after_step()
    return model


@pytest.fixture
def engine_of(tokenizer):
    """engine_of(name or model, **options) -> Engine, closed at the test's end."""
    open_engines: list[Engine] = []

    def make(model="transformer", **options) -> Engine:
        if isinstance(model, str):
            model = make_model(model, tokenizer)
        open_engines.append(Engine(model, tokenizer, **options))
        return open_engines[-1]

    yield make
    for engine in open_engines:
        engine.close()


@torch.no_grad()
def plain(model, tokenizer, request: Request) -> tuple[int, ...]:
    """What a request must be answered with: everything is read anew for every token."""
    tokens, drawn = list(request.tokens), []
    for step in range(min(request.sampling.max_tokens, CONTEXT - len(tokens))):
        ids = torch.tensor([tokens + drawn], device=model.device)
        positions = torch.arange(ids.shape[1], device=model.device)[None]
        logits = model.logits(model.hidden(ids, positions))[:, -1].float().cpu()
        noise = gumbel_noise(torch.tensor([signed_seed(request.seed)]), torch.tensor(step), logits.shape[-1])
        token = int((logits + request.sampling.temperature * noise).argmax())
        drawn.append(token)
        if token == tokenizer.eos_token_id and not request.sampling.ignore_end:
            break
    return tuple(drawn)


def prompt(seed: int, length: int) -> tuple[int, ...]:
    """Letters, the same ones for the same seed whatever the length."""
    return tuple(4 + int(i) for i in torch.randint(20, (200,), generator=torch.Generator().manual_seed(seed))[:length])
