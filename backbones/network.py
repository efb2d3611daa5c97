"""The one base class of what our language models compute, and of nothing else.

1. Each architecture is a `Network` in its `network.py`: modules and weights, without `transformers`, whose import takes
   longer than everything else that a first answer needs. The engine runs it as it is (`loading.load_network`).
2. `backbone.Backbone` makes a `transformers` model of it. Names and shapes of weights are the same.
3. It has two lean methods, `hidden` and `logits`. Samplers and trainers call them, since a trainer wants logits of
   answer tokens only and a sampler wants the last token only, both without padding logic.
4. Neither method looks at the values of tensors from Python, and every shape follows from the arguments' shapes: they
   can be captured in a CUDA graph and compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.fields import Fields
from nlrl.backbones.kv_cache import GrowingCache, KVCache, PagedKVCache


class Network(nn.Module):
    """A causal language model; subclasses give `hidden` and `logits`."""

    fields_class: ClassVar[type[Fields]]
    recurrent = False
    """Its state is more than keys and values."""
    _tied_weights_keys: Any = None
    """Tensor -> the one it is, where the config says `tie_word_embeddings`."""

    def __init__(self, config):
        """Its weights are not initialised. config: of `fields_class`."""
        super().__init__()
        self.config: Any = config

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(weight.dtype for weight in self.parameters() if weight.is_floating_point())

    def hidden(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        mask: Tensor | None = None,
        state: DecodeState | GrowingCache | None = None,
    ) -> Tensor:
        """Final hidden states, `(batch, time, width)`.

        Args:
            input_ids: `(batch, time)` long.
            position_ids: `(batch, time)` long, from 0 in each document, without gaps; a row may hold several documents
                (without a state). -1 is padding: it changes nothing that a later token sees, and its output is noise.
            mask: bool `(batch, 1, time, time)`, True = may attend: what separates the documents of a row. None is
                plain causal attention. Not with a state.
            state: from `new_state`; what earlier calls have read. A row's tokens go on where they ended, or begin anew
                at position 0, whatever the state held.
        """
        raise NotImplementedError

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities, `(..., vocab)`, of hidden states `(..., width)`."""
        raise NotImplementedError

    def vocabulary(self) -> Tensor:
        """The matrix that makes logits of hidden states, `(vocab, width)`: `logits(hidden) = hidden vocabulary()'`."""
        return self.lm_head.weight  # pyright: ignore

    def head(self) -> tuple[Tensor, Tensor | None]:
        """`vocabulary()` before anything multiplies its rows, and what does, `(vocab,)` or None: kernels that scale
        logits on their way need no scaled copy of the matrix."""
        return self.vocabulary(), None

    def new_state(self, batch: int, length: int, device=None, dtype=None) -> DecodeState:
        """An empty state of static shape with room for `length` tokens a row; device and dtype default to the
        model's."""
        c = self.config
        shape = (c.num_hidden_layers, batch, c.num_key_value_heads, length, c.head_dim)
        return KVCache.zeros(shape, device or self.device, dtype or self.dtype)

    def new_paged_state(self, batch: int, length: int, pages: int, device=None, dtype=None) -> DecodeState:
        """As `new_state`, but what grows with a text lies in `pages` pages that rows may share, and the state's `table`
        says which page is whose; page 0 is scratch. What has a fixed size lies in rows."""
        one = self.new_state(1, 1, device="meta", dtype=dtype)
        assert isinstance(one, KVCache)
        return PagedKVCache.like(one, batch, pages, length, torch.device(device or self.device))

    def after_step(self) -> None:
        """Puts weights back where they must be; called after every optimizer step and after weights were rounded."""


class CheckpointedLayer(nn.Module):
    """A layer whose inside can be computed again in the backward pass instead of kept. Hugging Face's
    `gradient_checkpointing_enable` sets both attributes."""

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable

    def __call__(self, *args):
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(super().__call__, *args)
        return super().__call__(*args)
