"""The fields of a model's configuration, by themselves and as part of a `transformers` one.

1. Each architecture's `fields.py` has a dataclass of its fields, what follows from them, and what cannot be.
2. `configuration.py` beside it makes a `PreTrainedConfig` of it, with all that Hugging Face adds.
3. `Fields.of` reads a config.json that has nothing else in it than what we write, without importing `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

BOOKKEEPING = {"architectures", "dtype", "model_type", "transformers_version"}
"""What `save_pretrained` adds."""
Derived = Any
"""Type of a field that may be left out, or null; `derive`, or Hugging Face for rotary angles, fills it in."""


@dataclass(kw_only=True, repr=False)
class Fields:
    """Base of the fields."""

    model_type: ClassVar[str]

    def __post_init__(self, **others):
        """others: what `PreTrainedConfig`, if it is a base too, takes besides; it has the fields checked when it has
        read them."""
        self.derive()
        following = getattr(super(), "__post_init__", None)
        if following is not None:
            following(**others)
        else:
            self.validate_architecture()

    def derive(self) -> None:
        """Fills in what follows from other fields."""

    def validate_architecture(self):
        """Raises: ValueError: no such model can be."""

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> Self | None:
        """The fields of a config.json as we write it; None where `PreTrainedConfig` must translate it: it has keys that
        are not ours, such as those of older versions, or says nothing of rotary angles."""
        known = {field.name for field in fields(cls)}
        silent = "rope_parameters" in known and not written.get("rope_parameters")
        if silent or not written.keys() <= known | BOOKKEEPING:
            return None
        return cls(**{name: value for name, value in written.items() if name in known})
