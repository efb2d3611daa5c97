"""The one base class of our language models.

1. A backbone is a `transformers` model: `from_pretrained`, `generate`, trainers and `save_pretrained` work.
2. Beside `forward` it has two lean methods, `hidden` and `logits`. Samplers and trainers call them, since a trainer
   wants logits of answer tokens only and a sampler wants the last token only, both without padding logic.
3. Neither method looks at the values of tensors from Python, and every shape follows from the arguments' shapes: they
   can be captured in a CUDA graph and compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.kv_cache import GrowingCache, KVCache

__all__ = ["Backbone", "DecodeState", "KVCache"]


class Backbone(PreTrainedModel, GenerationMixin):
    """A causal language model; subclasses give `hidden` and `logits`."""

    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

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

    def after_step(self) -> None:
        """Puts weights back where they must be; called after every optimizer step and after weights were rounded."""

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
            past_key_values: a Hugging Face `Cache`.
            logits_to_keep: 0 for all, n for the last n positions, or indices.
        """
        if use_cache is None:
            use_cache = bool(getattr(self.config, "use_cache", True)) and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = _positions(input_ids, attention_mask, past)
        hidden = self.hidden(
            input_ids,
            position_ids.expand(input_ids.shape),
            _mask(input_ids, attention_mask, past),
            None if past_key_values is None else GrowingCache(past_key_values),
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        kept_cache = past_key_values if use_cache else None
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=kept_cache)  # pyright: ignore


def _positions(input_ids: Tensor, attention_mask: Tensor | None, past: int) -> Tensor:
    time = input_ids.shape[1]
    if attention_mask is None or attention_mask.dim() != 2:
        return torch.arange(past, past + time, device=input_ids.device)[None]
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)[:, -time:]


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
