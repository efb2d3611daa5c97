"""The native engine: continuous batching, paged states, prefixes kept where the caller says, constrained sampling.

engine = Engine(model, tokenizer)
answers = engine.generate(requests)            # or engine.submit(request).result()
"""

from nlrl.backbones.engine.engine import Engine, QueueFull
from nlrl.backbones.engine.sequence import Delta, Ticket

__all__ = ["Delta", "Engine", "QueueFull", "Ticket"]
