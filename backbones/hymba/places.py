"""Where the tokens of a call stand: what they see, and which slots of a state they go to.

Position p lives in slot p mod slots, so which position a slot holds follows from where a row's text ends, and nothing
is noted beside the slots. Where there is a slot for every position, this is slot p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.backbones.attention import first_visible

if TYPE_CHECKING:
    from nlrl.backbones.hymba.state import HymbaState


class Call(NamedTuple):
    """Where the tokens of one call stand; all that caches and masks need to know."""

    positions: Tensor
    """`(batch, time)`, -1 at padding."""
    start: Tensor
    """`(batch, 1)`, the position a row goes on from."""
    offset: Tensor
    """`(batch, 1)`, the place of that token in the call."""
    end: Tensor
    """`(batch, 1)`, the position of a row's last token; start - 1 where it has only padding."""

    @classmethod
    def of(cls, positions: Tensor) -> Call:
        if positions.shape[1] == 1:
            return cls(positions, positions.clamp_min(0), torch.zeros_like(positions), positions)
        real = positions >= 0
        offset = real.long().argmax(1, keepdim=True)
        start = positions.gather(1, offset).clamp_min(0)
        return cls(positions, start, offset, start + real.sum(1, keepdim=True) - 1)


def held_positions(slots: int, end: Tensor) -> Tensor:
    """The text position in every slot when a row's text ends with position `end`, `(batch, slots)`; negative: none.

    Args: end: `(batch, 1)`.
    """
    return end - (end - torch.arange(slots, device=end.device)) % slots


def visible_in_call(positions: Tensor) -> Tensor:
    """Causal, and nobody sees padding but padding itself; bool `(batch, 1, time, time)`."""
    time = positions.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=positions.device).tril()
    itself = torch.eye(time, dtype=torch.bool, device=positions.device)
    return (causal & (positions >= 0)[:, None] | itself)[:, None]


def masks(call: Call, mask: Tensor | None, state: HymbaState | None, reach: int, meta: int) -> tuple[Tensor, Tensor]:
    """What the tokens of a call see in global and in windowed layers, bool `(batch, 1, time, keys)` each. Keys are the
    meta tokens; with a state all its slots (global), or a ring and the call's tokens; without one the call's tokens.

    Args:
        mask: as in `Backbone.hidden`; reach: `HymbaConfig.reach`; meta: number of meta tokens, which everybody sees.
    Raises:
        ValueError: both a mask and a state.
    """
    check(mask, state)
    whole = visible_in_call(call.positions) if mask is None else mask
    window = whole & within(call.positions, call.positions, reach)
    if state is not None:
        slots = torch.arange(state.whole_slots, device=whole.device)
        whole = (slots <= call.positions.clamp_min(0)[..., None])[:, None]
        held = held_positions(state.ring_keys.shape[3], call.start - 1)
        ring = (held >= 0)[:, None, None] & within(call.positions, held, reach)
        window = torch.cat((ring, window), -1)
    return F.pad(whole, (meta, 0), value=True), F.pad(window, (meta, 0), value=True)


def check(mask: Tensor | None, state: HymbaState | None) -> None:
    """Raises: ValueError: both a mask and a state."""
    if mask is not None and state is not None:
        raise ValueError("a decode state takes no mask: positions say what a token may attend to")


def spans_of(call: Call, mask: Tensor | None, reach: int) -> tuple[Tensor, Tensor]:
    """What `masks` says of calls without earlier text, as the first of the call's own tokens that each token sees: in
    global and in windowed layers, `(batch, time)` int32 each, never falling along a row.

    Args: mask: of documents one behind the other; each token sees all tokens from some one on.
    """
    token = torch.arange(call.positions.shape[1], device=call.positions.device)
    whole = torch.where(call.positions >= 0, call.offset, token) if mask is None else first_visible(mask)
    whole = whole.int().expand(call.positions.shape)
    return whole, torch.maximum(whole, (token - reach).int())


def within(queries: Tensor, keys: Tensor, reach: int) -> Tensor:
    """Whether a key is near enough, bool `(batch, 1, time, keys)`; positions `(batch, time)` and `(batch, keys)`."""
    return (queries[:, :, None] - keys[:, None] <= reach)[:, None]


def write(cache: Tensor, new: Tensor, call: Call) -> None:
    """Puts a call's keys or values into their slots, in place; padding goes nowhere.

    Args:
        cache: `(batch, kv_heads, slots, width)`; new: `(batch, kv_heads, time, width)`.
    """
    new, slots = new.to(cache.dtype), cache.shape[2]
    held = held_positions(slots, call.end)
    place = (held - call.start + call.offset).clamp(0, new.shape[2] - 1)
    taken = new.gather(2, place[:, None, :, None].expand(-1, new.shape[1], -1, new.shape[3]))
    cache.copy_(torch.where((held >= call.start)[:, None, :, None], taken, cache))
