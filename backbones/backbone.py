"""The one base class of our language models.

1. A backbone is a `transformers` model: `from_pretrained`, `generate`, trainers and `save_pretrained` work.
2. Beside `forward` it has two lean methods, `hidden` and `logits`. Samplers and trainers call them, since a trainer
   wants logits of answer tokens only and a sampler wants the last token only, both without padding logic.
3. Neither method looks at the values of tensors from Python, and every shape follows from the arguments' shapes: they
   can be captured in a CUDA graph and compiled.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from nlrl.backbones import checkpoint
from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.kv_cache import GrowingCache, KVCache, PagedKVCache
from nlrl.backbones.state_cache import StateCache

__all__ = ["Backbone", "DecodeState", "KVCache"]


class Backbone(PreTrainedModel, GenerationMixin):
    """A causal language model; subclasses give `hidden` and `logits`."""

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    recurrent = False
    """Its state is more than keys and values; `forward` and `generate` then keep it in a `StateCache`."""

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

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """Hugging Face's hook, between a built model and its weights: it knows no int8 matrices with scales."""
        if state_dict is None and checkpoint_files:
            state_dict = checkpoint.dequantised_files([Path(path) for path in checkpoint_files])
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values=None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """The Hugging Face call.

        Args:
            input_ids: `(batch, time)`.
            attention_mask: `(batch, past + time)`, 0 at padding; padding may be on either side.
            position_ids: `(batch, time)`; by default the index among the tokens that are not padding.
            labels: `(batch, time)`, -100 where there is nothing to learn; shifted here.
            past_key_values: a Hugging Face `Cache`; for recurrent models a `StateCache`.
            logits_to_keep: 0 for all, n for the last n positions, or indices.
        """
        if use_cache is None:
            use_cache = self._caches_by_default()
        if use_cache and past_key_values is None:
            past_key_values = self._new_cache()
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, past)
        position_ids = position_ids.expand(input_ids.shape)
        if self.recurrent:
            position_ids = _without_padding(position_ids, attention_mask)
        state = self._state_of(past_key_values, input_ids)
        mask = None if isinstance(state, DecodeState) else _mask(input_ids, attention_mask, past)
        hidden = self.hidden(input_ids, position_ids, mask, state)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        kept_cache = past_key_values if use_cache else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=kept_cache)  # pyright: ignore

    def _caches_by_default(self) -> bool:
        # States are written in place, and autograd cannot follow that.
        differentiated = self.recurrent and torch.is_grad_enabled()
        return bool(getattr(self.config, "use_cache", True)) and not self.training and not differentiated

    def _new_cache(self) -> Cache:
        return StateCache(self.new_state) if self.recurrent else DynamicCache(config=self.config)

    def _state_of(self, cache: Cache | None, input_ids: Tensor) -> DecodeState | GrowingCache | None:
        """What `hidden` writes into, with room for what the call brings."""
        if isinstance(cache, StateCache):
            return cache.room_for(*input_ids.shape)
        if cache is not None and self.recurrent:
            raise ValueError(f"{type(self).__name__} keeps its state in a StateCache, not in a {type(cache).__name__}")
        return None if cache is None else GrowingCache(cache)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs: dict, *args, **kwargs) -> None:
        """Hugging Face's hook: puts the cache of a generation into `model_kwargs`."""
        if not self.recurrent:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # pyright: ignore
            return
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise ValueError(
                f"cache_implementation={generation_config.cache_implementation!r} is for attention only; "
                f"{type(self).__name__} keeps its state in a StateCache"
            )
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = self._new_cache()


def _positions(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    time = input_ids.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(past, past + time, device=input_ids.device)[None]
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -time:]


def _without_padding(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The positions, -1 at padding: `generate` writes 0 there, and at 0 a document would begin."""
    if attention_mask is None or attention_mask.dim() != 2:
        return position_ids
    return position_ids.masked_fill(attention_mask[:, -position_ids.shape[1] :] == 0, -1)


def _mask(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor | None:
    """Causal and padding mask, `(batch, 1, time, past + time)`; None where plain causal attention is the same."""
    batch, time = input_ids.shape
    if attention_mask is not None and attention_mask.dim() == 4:
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask >= 0
    if attention_mask is None and past == 0:
        return None
    keys = torch.arange(past + time, device=input_ids.device)
    query = keys[past:, None]
    causal = (keys <= query)[None, None]
    if attention_mask is None:
        return causal.expand(batch, 1, time, past + time)
    # Padding queries see themselves, or their softmax would be over nothing.
    return causal & attention_mask.bool()[:, None, None] | (keys == query)
