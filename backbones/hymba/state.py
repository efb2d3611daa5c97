"""What Hymba keeps of a text.

1. Global layers keep keys and values of every text position; windowed layers a ring: position p lives in slot
   p mod slots, and `reach` slots are enough, as a call's own tokens are seen before they are written (`places`).
2. Layers that use another's keys and values keep none.
3. What the meta tokens leave (`Prefix`) is the same for every row: one copy, shared by all states of a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from nlrl import kernels
from nlrl.backbones.decode_state import Axes, DecodeState
from nlrl.backbones.hymba.fields import HymbaFields
from nlrl.backbones.hymba.places import Call, write
from nlrl.backbones.hymba.prefix import Prefix
from nlrl.backbones.kv_cache import PAGE, new_table, page_of, read_pages, untouched, write_pages


@dataclass
class HymbaState(DecodeState):
    """The decode state; a layer's place in a tensor is its place among the layers of that kind."""

    room: int
    whole_keys: Tensor
    """`(global layers, batch, kv_heads, length, head_dim)`; values likewise with v_head_dim."""
    whole_values: Tensor
    ring_keys: Tensor
    """`(windowed layers with keys, batch, kv_heads, slots, head_dim)`."""
    ring_values: Tensor
    conv: Tensor
    """`(Mamba layers, batch, d_conv - 1, d_inner)`, inputs of the convolution."""
    ssm: Tensor
    """`(Mamba layers, batch, d_inner, d_state)`, float32 at least."""
    meta_keys: Tensor | None
    meta_values: Tensor | None
    meta_conv: Tensor | None
    meta_ssm: Tensor | None
    AXES: ClassVar[dict[str, Axes]] = {
        "whole_keys": (1, 3), "whole_values": (1, 3), "ring_keys": (1, 3), "ring_values": (1, 3), "conv": (1, None),
        "ssm": (1, None), "meta_keys": (None, None), "meta_values": (None, None), "meta_conv": (None, None),
        "meta_ssm": (None, None),
    }  # fmt: skip

    @classmethod
    def zeros(
        cls, config: HymbaFields, batch: int, length: int, prefix: Prefix, device, dtype: torch.dtype
    ) -> HymbaState:
        """An empty state for `length` text tokens a row, with a prefix it shares."""
        whole = sum(layer in config.global_attn_idx for layer in config.kv_layers)
        ring, ssm = len(config.kv_layers) - whole, len(config.ssm_layers)
        slots = max(1, min(config.reach, length))

        def zeros(*shape, dtype=dtype):
            return torch.zeros(shape, device=device, dtype=dtype)

        return cls(
            length,
            zeros(whole, batch, config.num_key_value_heads, length, config.head_dim),
            zeros(whole, batch, config.num_key_value_heads, length, config.v_head_dim),
            zeros(ring, batch, config.num_key_value_heads, slots, config.head_dim),
            zeros(ring, batch, config.num_key_value_heads, slots, config.v_head_dim),
            zeros(ssm, batch, config.mamba_d_conv - 1, config.d_inner),
            zeros(ssm, batch, config.d_inner, config.mamba_d_state, dtype=torch.promote_types(dtype, torch.float32)),
            prefix.keys,
            prefix.values,
            prefix.conv,
            prefix.ssm,
        )

    @property
    def fresh(self) -> bool:
        """Whether a call's rows are known to begin with it, so that they see nothing older."""
        return False

    @property
    def length(self) -> int:
        return self.room

    @property
    def whole_slots(self) -> int:
        """Text positions that a global layer sees at most."""
        return self.whole_keys.shape[3]

    def keep_whole(self, i: int, key: Tensor, value: Tensor, call: Call) -> None:
        """As `write_whole`, for a call that sees its own tokens alone."""
        write(self.whole_keys[i], key, call)
        write(self.whole_values[i], value, call)

    def write_whole(self, i: int, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        """Stores the keys and values of a call's tokens for the i-th global layer that keeps any, each `(batch,
        kv_heads, time, width)`; returns all of the layer's, `(batch, kv_heads, whole_slots, width)`."""
        self.keep_whole(i, key, value, call)
        return self.whole_keys[i], self.whole_values[i]

    def attend_whole(self, i: int, query, key, value, positions: Tensor, extras: tuple[Tensor | None, ...]) -> Tensor:
        """One new token a row attends to all of its text in the i-th global layer that keeps any, and is stored there.
        Arguments and result as in `kernels.ring_attention`; extras: its last four."""
        where = self.whole_keys[i], self.whole_values[i]
        return kernels.ring_attention(query, key, value, *where, positions, self.whole_slots, True, *extras)

    def attend_ring(
        self, i: int, query, key, value, positions: Tensor, reach: int, writes: bool, extras: tuple[Tensor | None, ...]
    ) -> Tensor:
        """The same in the i-th windowed layer that keeps any."""
        where = self.ring_keys[i], self.ring_values[i]
        return kernels.ring_attention(query, key, value, *where, positions, reach, writes, *extras)

    def extend(self, i: int, query, key, value, call: Call, reach: int | None, prefix) -> Tensor:
        """Several new tokens a row attend to what the i-th layer of its kind held before them, and to each other.

        Args: query, key, value, prefix, and the result: as in `kernels.extend_attention`. reach: of a windowed layer;
            None: a global one.
        """
        held = self._older_whole(i) if reach is None else (self.ring_keys[i], self.ring_values[i], None)
        where = *held[:2], call.positions, call.start[:, 0], held[2]
        return kernels.extend_attention(query, key, value, *where, reach, *prefix)

    def _older_whole(self, i: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values of the i-th global layer that keeps any, and where its rows' pages are, if there are."""
        return self.whole_keys[i], self.whole_values[i], None

    @property
    def prefix(self) -> Prefix:
        return Prefix(self.meta_keys, self.meta_values, self.meta_conv, self.meta_ssm)

    @property
    def shared_nbytes(self) -> int:
        """Bytes of the prefix, which all rows (and all states of a model) share; `nbytes` counts them too."""
        return sum(part.nbytes for part, (row, _) in self._parts() if row is None)

    def view(self, rows: slice, length: int) -> HymbaState:
        """As the base's. A ring with more slots than `length` has not gone round, so its first slots are all."""

        def narrow(part: Tensor, row: int, slot: int | None) -> Tensor:
            part = part[(slice(None),) * row + (rows,)]
            return part if slot is None else part.narrow(slot, 0, min(length, part.shape[slot]))

        return replace(self._changed(narrow), room=length)


@dataclass
class PagedHymbaState(HymbaState):
    """The keys and values of global layers in pages, `(global layers, pages, kv_heads, PAGE, width)`; the rest as in
    the base."""

    table: Tensor
    """As in `PagedKVCache`."""
    fresh: bool = False  # pyright: ignore[reportIncompatibleMethodOverride]
    AXES: ClassVar[dict[str, Axes]] = HymbaState.AXES | {
        "whole_keys": (None, None), "whole_values": (None, None), "table": (0, None),
    }  # fmt: skip

    @classmethod
    def of(cls, rows: HymbaState, length: int, pages: int) -> PagedHymbaState:
        """Takes over the rows of a state, whose own slots for global layers are not used."""
        parts: dict[str, Any] = {field.name: getattr(rows, field.name) for field in fields(HymbaState)}
        for name in ("whole_keys", "whole_values"):
            layers, _, heads, _, width = parts[name].shape
            like = parts[name]
            parts[name] = untouched((layers, pages, heads, PAGE, width), like.dtype, like.device)
        table = new_table(rows.ring_keys.shape[1], length, rows.ring_keys.device)
        parts["room"] = length
        return cls(**parts, table=table)

    @property
    def whole_slots(self) -> int:
        return self.table.shape[1] * PAGE

    def keep_whole(self, i: int, key: Tensor, value: Tensor, call: Call) -> None:
        where = page_of(self.table, call.positions), call.positions % PAGE
        write_pages(self.whole_keys[i], key.transpose(1, 2), where)
        write_pages(self.whole_values[i], value.transpose(1, 2), where)

    def write_whole(self, i: int, key: Tensor, value: Tensor, call: Call) -> tuple[Tensor, Tensor]:
        self.keep_whole(i, key, value, call)
        return read_pages(self.whole_keys[i], self.table), read_pages(self.whole_values[i], self.table)

    def attend_whole(self, i: int, query, key, value, positions: Tensor, extras: tuple[Tensor | None, ...]) -> Tensor:
        where = self.whole_keys[i], self.whole_values[i], self.table
        return kernels.paged_attention(query, key, value, *where, positions, None, *extras)

    def _older_whole(self, i: int) -> tuple[Tensor, Tensor, Tensor | None]:
        return self.whole_keys[i], self.whole_values[i], self.table

    def view(self, rows: slice, length: int) -> PagedHymbaState:
        seen = super().view(rows, length)
        assert isinstance(seen, PagedHymbaState)
        return replace(seen, table=seen.table[:, : -(-length // PAGE)])
