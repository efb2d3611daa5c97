"""What a model keeps of a text while it writes: `nlrl bench cache`, or `python -m nlrl.benchmarks.cache`.

1. Hymba-1.5B beside Llama-3.2-3B at 8,000 tokens by the formula that gives the Hymba paper's 78.6 MB (table 2; the
   paper prints the result, not the formula): 2 bytes a number, meta tokens in the global layers only, half of the
   windowed layers keep keys and values, no convolution state.
2. The same with everything counted, as NVIDIA's code keeps it, and as ours does: recurrent states in float32, the
   last three inputs of a convolution instead of four, and what the meta tokens leave once for all sequences.
3. Every architecture, in published sizes and in those of the bundled bases. Bytes are those of the states that
   `new_state` makes, of models built on the meta device, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

PAPER_LENGTH = 8000
"""The paper's "8k"."""
LENGTHS = (1024, 8192, 32768)
HYMBA, LLAMA = "Hymba-1.5B", "Llama-3.2-3B"

PUBLISHED: dict[str, dict[str, Any]] = {
    HYMBA: dict(
        model_type="hymba", vocab_size=32001, hidden_size=1600, intermediate_size=5504, num_hidden_layers=32,
        num_attention_heads=25, num_key_value_heads=5, sliding_window=1024, num_memory_tokens=128,
        global_attn_idx=[0, 15, 31],
        kv_reuse_group=[[i, i + 1] for i in range(1, 15, 2)] + [[16, 17, 18]] + [[i, i + 1] for i in range(19, 31, 2)],
        mamba_expand=2, mamba_d_state=16, mamba_d_conv=4, rope_type="ntk", max_position_embeddings=8192,
        orig_max_position_embeddings=2048,
    ),
    LLAMA: dict(
        model_type="transformer", vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28,
        num_attention_heads=24, num_key_value_heads=8, head_dim=128,
    ),
    "Llama-3.2-1B": dict(
        model_type="transformer", vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, head_dim=64,
    ),
    "nGPT 1B": dict(
        model_type="ngpt", vocab_size=32000, hidden_size=1280, num_hidden_layers=36, num_attention_heads=20,
    ),
    "Differential 3B, version 1": dict(
        model_type="diff_transformer", version=1, vocab_size=100288, hidden_size=3072, intermediate_size=8192,
        num_hidden_layers=28, num_attention_heads=12, head_dim=128,
    ),
    "Differential 3B, version 2": dict(
        model_type="diff_transformer", version=2, vocab_size=100288, hidden_size=3072, intermediate_size=8192,
        num_hidden_layers=28, num_attention_heads=24, head_dim=128,
    ),
    "Bi-Mamba 1.3B": dict(model_type="bimamba", vocab_size=32000, hidden_size=2048, num_hidden_layers=48),
    "Bi-Mamba 2.7B": dict(model_type="bimamba", vocab_size=32000, hidden_size=2560, num_hidden_layers=64),
}  # fmt: skip
"""Configs of published models, in our fields. The caches of all but the two compared ones depend on few of these."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of a decode state for one sequence."""

    kv: int = 0
    """Keys and values."""
    conv: int = 0
    """Inputs of convolutions."""
    recurrent: int = 0
    """Recurrent states."""
    shared: int = 0
    """Parts that all sequences share; once, not for each."""

    @property
    def sequence(self) -> int:
        """Bytes that one more sequence takes."""
        return self.kv + self.conv + self.recurrent


def empty_model(fields: dict[str, Any]):
    """A model of the config, without memory for its weights."""
    import torch
    from transformers import AutoConfig

    from nlrl.backbones.registry import model_class

    fields = dict(fields)
    model_type = fields.pop("model_type")
    with torch.device("meta"):
        return model_class(model_type)(AutoConfig.for_model(model_type, **fields))


def footprint(model, length: int) -> Footprint:
    """Of the state of one sequence of `length` tokens, in bfloat16."""
    import torch

    state = model.new_state(1, length, device="meta", dtype=torch.bfloat16)
    sizes = dict.fromkeys(("kv", "conv", "recurrent", "shared"), 0)
    for name, (row, _) in state.AXES.items():
        part = getattr(state, name)
        if part is not None:
            sizes["shared" if row is None else _kind(name)] += part.nbytes
    return Footprint(**sizes)


def _kind(name: str) -> str:
    if "key" in name or "value" in name:
        return "kv"
    return "conv" if name in ("conv", "windows") else "recurrent"


# -- Hymba beside Llama ------------------------------------------------------------------------------------------------
def paper_hymba(config, length: int) -> float:
    """The published accounting of a Hymba's cache, bytes: it gives table 2's 78.6 MB and, for the ablation's model,
    figures of table 10. Where layers share keys and values, half of the windowed ones are counted."""
    windowed = (len(config.attention_layers) - len(config.global_attn_idx)) / (2 if config.kv_reuse_group else 1)
    whole = len(config.global_attn_idx) * (length + config.num_memory_tokens)
    return (whole + windowed * (config.sliding_window or 0)) * _kv_of_token(config) + _ssm(config)


def everything_hymba(config, length: int) -> int:
    """All that NVIDIA's code keeps for a sequence, bytes: keys and values of the meta tokens in every layer that has
    its own, 16-bit recurrent states, four inputs of a convolution."""
    whole = len(config.global_attn_idx)
    rings = len(config.kv_layers) - whole
    tokens = whole * length + rings * min(config.sliding_window, length)
    meta = len(config.kv_layers) * config.num_memory_tokens
    conv = len(config.ssm_layers) * config.d_inner * config.mamba_d_conv * 2
    return (tokens + meta) * _kv_of_token(config) + conv + _ssm(config)


def paper_transformer(config, length: int) -> int:
    """Keys and values in 16 bits, bytes."""
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * 2 * length


def _kv_of_token(config) -> int:
    """Bytes of one token's keys and values in one layer."""
    return config.num_key_value_heads * (config.head_dim + config.v_head_dim) * 2


def _ssm(config) -> int:
    return len(config.ssm_layers) * config.d_inner * config.mamba_d_state * 2


def comparison(length: int = PAPER_LENGTH) -> list[dict[str, Any]]:
    """Hymba-1.5B and Llama-3.2-3B: bytes a sequence by each way of counting."""
    hymba, llama = empty_model(PUBLISHED[HYMBA]), empty_model(PUBLISHED[LLAMA])
    theirs, ours = footprint(llama, length), footprint(hymba, length)
    by_formula = paper_transformer(llama.config, length)
    rows = [
        ("the paper's formula", paper_hymba(hymba.config, length), by_formula, 0),
        ("everything, NVIDIA's code", everything_hymba(hymba.config, length), by_formula, 0),
        ("everything, our states", ours.sequence, theirs.sequence, ours.shared),
    ]
    return [
        {"counted": name, "hymba": mine, "llama": other, "ratio": other / mine, "shared": shared}
        for name, mine, other, shared in rows
    ]


# -- every architecture ------------------------------------------------------------------------------------------------
def bundled() -> dict[str, dict[str, Any]]:
    """The architectures of configs/pretrain by the names of their bases."""
    from nlrl.benchmarks.backbones import pretraining_architectures

    return pretraining_architectures()


def table(models: dict[str, dict[str, Any]], lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Footprints of every model at every length."""
    rows = []
    for name, fields in models.items():
        model = empty_model(fields)
        rows += [{"model": name, "length": n} | asdict(footprint(model, n)) for n in lengths]
    return rows


# -- printing ----------------------------------------------------------------------------------------------------------
def show_comparison(rows: list[dict[str, Any]], length: int) -> None:
    print(f"{HYMBA} beside {LLAMA} at {length:,} tokens, MB (1e6 bytes) a sequence, 16-bit keys and values")
    print(f"  {'counted':28}{HYMBA:>14}{LLAMA:>14}{'ratio':>10}")
    for row in rows:
        numbers = f"{row['hymba'] / 1e6:14.3f}{row['llama'] / 1e6:14.3f}{row['ratio']:9.3f}x"
        shared = f"   (and {row['shared'] / 1e6:.3f} MB once for all sequences)" if row["shared"] else ""
        print(f"  {row['counted']:28}{numbers}{shared}")


def show_table(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}: bytes a sequence; `shared` once for all sequences")
    print(
        f"  {'model':28}{'tokens':>8}{'all':>16}{'keys, values':>16}{'convolution':>13}{'recurrent':>13}{'shared':>13}"
    )
    before = ""
    for row in rows:
        name = row["model"] if row["model"] != before else ""
        whole = row["kv"] + row["conv"] + row["recurrent"]
        parts = f"{row['kv']:16,}{row['conv']:13,}{row['recurrent']:13,}{row['shared']:13,}"
        print(f"  {name:28}{row['length']:8,}{whole:16,}{parts}")
        before = row["model"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "nlrl bench cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="tokens, for the tables")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    found = {
        "comparison": comparison(),
        "published": table(PUBLISHED, args.lengths),
        "bundled": table(bundled(), args.lengths),
    }
    show_comparison(found["comparison"], PAPER_LENGTH)
    show_table("Published sizes", found["published"])
    show_table("Bundled sizes", found["bundled"])
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
