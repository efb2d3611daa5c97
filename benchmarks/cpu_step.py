"""Decoding on a CPU, tokens a second: `python -m nlrl.benchmarks.cpu_step`.

One step reads a token a row, draws the next with its log-probability, and writes the state; every row stands at the
same context. Beside each other are PyTorch's eager step, the same step compiled whole (`torch.compile`, static
shapes), and the native step (`nlrl.backbones.engine.cpu`). Rounds go in turns; the figure is that of each one's fastest
step, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from nlrl.benchmarks.timing import seconds_of

BATCHES = (1, 8, 32, 64, 128)
SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2,
}  # fmt: skip
"""4 layers of width 256."""
Step = Callable[[], object]


def models(names: Sequence[str]):
    """(title, model) of bundled names and "4x256"."""
    import nlrl.backbones
    from nlrl.backbones import TransformerConfig, TransformerForCausalLM

    for name in names:
        small = name == "4x256"
        model = TransformerForCausalLM(TransformerConfig(**SMALL)) if small else nlrl.backbones.load(name)[0]
        yield name, model.eval().requires_grad_(False)


class Bench:
    """Steps of one model for a batch at one context."""

    def __init__(self, model, batch: int, context: int):
        import torch

        draw = torch.Generator().manual_seed(0)
        self.model, self.batch, self.context = model, batch, context
        self.state = model.new_state(batch, context)
        for name, (row, _) in self.state.AXES.items():
            part = getattr(self.state, name)
            if row is not None and part is not None:
                part.normal_(generator=draw)
        self.ids = torch.randint(model.config.vocab_size, (batch,), generator=draw)
        self.positions = torch.full((batch,), context - 1)
        self.rows, self.seeds = torch.arange(batch), torch.arange(batch)
        self.drawn = torch.full((batch,), 7)
        self.temperature = torch.ones(batch)

    def in_torch(self):
        """As the engine does it without native code."""
        from nlrl import kernels

        hidden = self.model.hidden(self.ids[:, None], self.positions[:, None], state=self.state)
        logits = self.model.logits(hidden)[:, 0].float()
        return kernels.sample(logits, self.seeds, self.drawn, self.temperature)

    def steps(self, with_compile: bool) -> dict[str, Step]:
        import torch

        from nlrl.backbones.engine.cpu import compile_model

        steps: dict[str, Step] = {"eager": self.in_torch}
        if with_compile:
            torch._dynamo.reset()
            steps["compiled"] = torch.compile(self.in_torch, fullgraph=True, dynamic=False)
        fast = compile_model(self.model)
        if fast is not None:
            steps["native"] = partial(self._native, fast)
        return steps

    def _native(self, fast):
        logits = fast.logits(self.ids, self.positions, self.rows, self.state)
        return fast.sample(logits, self.seeds, self.drawn, self.temperature)


def fastest(steps: dict[str, Step], rounds: int, repeats: int) -> dict[str, float]:
    """Seconds of each one's fastest call."""
    least = dict.fromkeys(steps, float("inf"))
    for step in [*steps.values()] * 2:
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            least[name] = min([least[name], *(seconds_of(step) for _ in range(repeats))])
    return least


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "cpu_step", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["transformer-base", "4x256"], help='bundled names, or "4x256"')
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="rows of a step")
    parser.add_argument("--context", type=int, default=300, help="tokens a row has read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5, help="steps a round")
    parser.add_argument("--threads", type=int, help="by default PyTorch's own choice")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes a while")
    args = parser.parse_args(argv)
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"tokens a second at context {args.context}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
    for name, model in models(args.models):
        for batch in args.batches:
            steps = Bench(model, batch, args.context).steps(not args.no_compile)
            with torch.inference_mode():
                seconds = fastest(steps, args.rounds, args.repeats)
            rates = {way: batch / took for way, took in seconds.items()}
            shown = "".join(f"  {way} {rate:9,.0f} ({rate / rates['eager']:.2f}x)" for way, rate in rates.items())
            print(f"  {name:18} batch {batch:4}{shown}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
