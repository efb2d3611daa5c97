"""The one base class of our language models.

A backbone is a `Network` and a `transformers` model: `from_pretrained`, `generate`, trainers and `save_pretrained`
work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from nlrl.backbones.checkpoint import dequantised_files
from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.kv_cache import GrowingCache, KVCache
from nlrl.backbones.network import CheckpointedLayer, Network
from nlrl.backbones.state_cache import StateCache

__all__ = ["Backbone", "DecodeState", "KVCache"]


class Backbone(Network, PreTrainedModel, GenerationMixin):
    """A causal language model; the `Network` that subclasses also are gives `hidden` and `logits`. Those that are
    `recurrent` keep their state in a `StateCache`."""

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    def __init__(self, config):
        """Subclasses call `post_init` at the end of theirs: it draws the first weights."""
        PreTrainedModel.__init__(self, config)

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1):
        """Hugging Face's hook: which layers are computed again."""
        layers = [module for module in self.modules() if isinstance(module, CheckpointedLayer)]
        for i, layer in enumerate(layers):
            layer.gradient_checkpointing = enable and i % every_n_layers == 0
            layer._gradient_checkpointing_func = gradient_checkpointing_func

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, *args, **kwargs):
        """Hugging Face's hook, between a built model and its weights: it knows no int8 matrices with scales."""
        if state_dict is None and checkpoint_files:
            state_dict = dequantised_files([Path(path) for path in checkpoint_files])
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
