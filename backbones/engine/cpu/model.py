"""A backbone that reads tokens in one native call: a decoding step of many rows, or pieces of many prompts.

fast = compile_model(model)                             # None: use the model itself
logits = fast.logits(ids, positions, rows, state)       # state: what model.hidden would have been given, or pages
tokens, logprobs = fast.sample(logits, seeds, steps, temperature)
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.engine.cpu import library
from nlrl.backbones.engine.cpu.pack import Packed
from nlrl.backbones.engine.cpu.pack_decoders import diff_transformer, ngpt, transformer
from nlrl.backbones.engine.cpu.pack_recurrent import bimamba, hymba
from nlrl.backbones.engine.rows import Rows
from nlrl.backbones.network import Network

log = logging.getLogger(__name__)
WIDEST_HEAD = 512
MISTAKES = ("", "an id is not in the vocabulary", "a position is below -1 or has no room in the state",
            "a row is not in the state", "a live position's page is not in the state",
            "a row's tokens do not stand side by side at successive positions",
            "a token is wanted that is not there")  # fmt: skip
"""What the numbers mean that steps return (`step.h`: Wrong)."""


PACKERS: dict[str, Callable[[Any, int], Packed]] = {
    "transformer": transformer, "ngpt": ngpt, "diff_transformer": diff_transformer, "bimamba": bimamba, "hymba": hymba,
}  # fmt: skip
"""model_type -> (model, lanes) -> its weights as the native step reads them."""


def compile_model(model: Network) -> CpuModel | None:
    """The model's native form; None, said once in the log, where its architecture, its type or the machine has none.

    Its weights are copied: call `refresh` when the model's have changed.
    """
    reason = _unsuitable(model)
    if reason:
        _say_once(f"decoding with PyTorch: the native CPU step is not for {reason}")
        return None
    built = library.library()
    return None if built is None else CpuModel(model, built)


def _unsuitable(model: Network) -> str:
    if model.config.model_type not in PACKERS:
        return f"models of the type {model.config.model_type!r}"
    if model.device.type != "cpu" or model.dtype != torch.float32:
        return f"{model.dtype} on {model.device.type}"
    if (getattr(model.config, "head_dim", 0) or 0) > WIDEST_HEAD:
        return f"heads of more than {WIDEST_HEAD} channels"
    return ""


@functools.cache
def _say_once(text: str) -> None:
    log.warning(text)


class CpuModel:
    """See `compile_model`. For one thread at a time; a call uses `torch.get_num_threads()` threads."""

    def __init__(self, model: Network, built: ctypes.CDLL):
        self._model, self._library = model, built
        self._turns: Tensor | None = None
        self.refresh()

    def refresh(self) -> None:
        """Takes over the model's weights as they are now."""
        with torch.no_grad():
            packed = PACKERS[self._model.config.model_type](self._model, self._library.nlrl_lanes())
        self._packed = packed
        self._sizes = library.Sizes(**packed.sizes)
        pointers = [0 if part is None else _float(part) for layer in packed.layers for part in layer]
        self._layers: list[ctypes.Array] = [(ctypes.c_void_p * len(pointers))(*pointers)]
        if packed.places:
            self._layers.append((ctypes.c_int64 * len(packed.places))(*packed.places))
        self._step = getattr(self._library, packed.step)
        self._prepare_turns(self._turns.shape[0] if self._turns is not None else 0)

    def logits(
        self, ids: Tensor, positions: Tensor, rows: Tensor, state: DecodeState, wanted: Tensor | None = None
    ) -> Tensor:
        """Reads tokens, writing into the state in place, and gives the logits after them.

        Args:
            ids, positions, rows: int64 `(n,)`: tokens, their positions, their rows in the state. Tokens of one row
                stand side by side at successive positions, as in a piece of its text. Position -1 leaves no trace, and
                its logits are noise.
            state: the model's `new_state` or `new_paged_state`, float32 on the CPU.
            wanted: int64 `(m,)`, the tokens (0 .. n - 1) whose logits are wanted; None for all.
        Returns: float32 `(m, vocab)`.
        Raises:
            ValueError: an argument has another type or shape, or names what the state or the vocabulary does not have;
                nothing was written.
        """
        n, outputs, vocab = len(ids), len(ids if wanted is None else wanted), self._packed.sizes["vocab"]
        logits = torch.empty(outputs, vocab)
        if n == 0:
            return logits
        parts = self._parts(state)
        where = [_int64(name, part, n) for name, part in (("ids", ids), ("positions", positions), ("rows", rows))]
        some = None if wanted is None else _int64("wanted", wanted, outputs)
        call = library.Call(n, torch.get_num_threads(), outputs, *where, some, logits.data_ptr(), vocab, 0)
        _check(self._step(_addresses(parts), ctypes.byref(call)))
        return logits

    def burst(self, rows: Rows, where: Tensor, ends: Tensor, state: DecodeState, steps: int) -> None:
        """Feeds some rows their last tokens and draws the next, `steps` times; who is finished does no further step.

        Args:
            rows: on the CPU; written in place, tokens and logprobs from column 0 on.
            where: int64 `(n,)`, the rows that run.
            ends: int64, end tokens.
            state: of all rows, as in `logits`.
        Raises:
            ValueError: as in `logits`; steps before that, and those of other rows, may be done.
        """
        n, vocab = len(where), self._packed.sizes["vocab"]
        logits, parts = torch.empty(n, vocab), self._parts(state)
        columns = (rows.ids, rows.positions, rows.steps, rows.seeds, rows.limit, rows.temperature, rows.finished)
        given = (where, ends, logits, *columns, rows.ignores_end, rows.tokens, rows.logprobs)
        sizes = (n, steps, torch.get_num_threads(), vocab, len(ends), rows.tokens.shape[1])
        order = library.Burst(*sizes, *(part.data_ptr() for part in given))
        _check(self._library.nlrl_burst(self._step, _addresses(parts), ctypes.byref(order)))

    def sample(self, logits: Tensor, seeds: Tensor, steps: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
        """Draws a token for every row with the noise of `sampler.gumbel_noise`: the same tokens, ties aside.

        Args:
            logits: float32 `(n, vocab)`.
            seeds, steps: int64 `(n,)`.
            temperature: float32 `(n,)`; 0 takes the likeliest token.
        Returns: tokens, int64 `(n,)`; their log-probabilities at temperature 1, float32 `(n,)`.
        """
        n, vocab = logits.shape
        if logits.dtype != torch.float32 or logits.stride(1) != 1:
            raise ValueError("logits must be float32 with rows in one piece")
        if temperature.dtype != torch.float32 or temperature.shape != (n,):
            raise ValueError(f"temperature must be float32 ({n},)")
        tokens, logprobs = torch.empty(n, dtype=torch.int64), torch.empty(n)
        temperature = temperature.contiguous()
        draw = library.Draw(
            n, vocab, torch.get_num_threads(), logits.data_ptr(), logits.stride(0),
            _int64("seeds", seeds, n), _int64("steps", steps, n), temperature.data_ptr(),
            tokens.data_ptr(), logprobs.data_ptr(),
        )  # fmt: skip
        self._library.nlrl_sample(ctypes.byref(draw))
        return tokens, logprobs

    def _parts(self, state: DecodeState) -> tuple[Any, ...]:
        """What the native functions take, in order."""
        held = self._packed.held(state)
        if held.length + self._sizes.meta > self._sizes.turns:
            self._prepare_turns(held.length + self._sizes.meta)
        return self._sizes, self._outer, *self._layers, *held.parts

    def _prepare_turns(self, count: int) -> None:
        """Rotary tables for `count` positions."""
        if self._packed.turns is not None:
            with torch.no_grad():
                self._turns = self._packed.turns(count)
            self._sizes.turns = count
        turns = 0 if self._turns is None else _float(self._turns)
        self._outer = library.Outer(_float(self._packed.embedding), _float(self._packed.lm_head), turns)


def _addresses(parts: tuple[Any, ...]) -> ctypes.Array:
    return (ctypes.c_void_p * len(parts))(*map(ctypes.addressof, parts))


def _check(wrong: int) -> None:
    if wrong:
        raise ValueError(f"{MISTAKES[wrong]}; nothing was read")


def _float(tensor: Tensor) -> int:
    assert tensor.dtype == torch.float32, tensor.dtype
    assert tensor.is_contiguous(), tensor.stride()
    return tensor.data_ptr()


def _int64(name: str, tensor: Tensor, n: int) -> int:
    if tensor.dtype != torch.int64 or tensor.shape != (n,) or not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous int64 ({n},)")
    return tensor.data_ptr()
