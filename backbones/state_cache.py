"""A `DecodeState` behind the interface of Hugging Face's caches, for models that keep more than keys and values.

1. It has no layers: the model writes into the state itself, `generate` asks for lengths and reorders rows.
2. It grows by doubling: a state is static in shape, but nobody told `generate` how long the text will be.
3. A recurrence cannot be run backwards, so tokens cannot be taken back: what needs that (assisted decoding) is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import Cache

from nlrl.backbones.decode_state import DecodeState

SHORTEST = 64
"""Room of the first state, in tokens."""


class StateCache(Cache):
    """Starts empty; pass it as `past_key_values`, or let `generate` make it."""

    def __init__(self, new_state: Callable[[int, int], DecodeState]):
        """Args: new_state: `Backbone.new_state` of the model: (batch, length) -> an empty state."""
        super().__init__(layers=[])
        self.new_state = new_state
        self.state: DecodeState | None = None
        self.seen = 0
        """Tokens read a row, padding included."""

    def room_for(self, batch: int, time: int) -> DecodeState:
        """The state, with room for `time` more tokens a row, which count as read from now on.

        Raises:
            ValueError: the state belongs to another number of rows.
        """
        self.seen += time
        if self.state is None:
            self.state = self.new_state(batch, max(SHORTEST, _power_of_two(self.seen)))
        elif self.batch_size != batch:
            raise ValueError(f"the StateCache holds {self.batch_size} rows, but the call brings {batch}")
        elif self.seen > self.state.length:
            larger = self.new_state(batch, _power_of_two(self.seen))
            larger.copy_(self.state)
            self.state = larger
        return self.state

    @property
    def batch_size(self) -> int:
        """Rows; -1 as long as it is empty."""
        if self.state is None:
            return -1
        sizes = ((getattr(self.state, name), row) for name, (row, _) in self.state.AXES.items())
        return next(part.shape[row] for part, row in sizes if part is not None and row is not None)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.seen + query_length, 0

    def has_previous_state(self, layer_idx: int | None = None, state_idx: int | None = None) -> bool:
        return self.state is not None

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_compileable(self) -> bool:
        return False

    def reset(self) -> None:
        self.state, self.seen = None, 0

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.state is not None:
            self.state = self.state.select(indices.to(self.state.device))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.batch_select_indices(torch.arange(max(self.batch_size, 0)).repeat_interleave(repeats))

    @property
    def is_croppable(self) -> bool:
        return False

    def crop(self, tokens_to_remove: int) -> None:
        """Raises: ValueError: always, unless nothing is to be removed."""
        if tokens_to_remove:
            raise ValueError(_NO_WAY_BACK)

    def activate_past_recording(self) -> None:
        """Raises: ValueError: always."""
        raise ValueError(_NO_WAY_BACK)


_NO_WAY_BACK = (
    "this model has recurrent states, which cannot go back to an earlier token: a StateCache cannot be cropped, and "
    "assisted (speculative) decoding is not possible"
)


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
