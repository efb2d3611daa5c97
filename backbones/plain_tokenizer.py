"""The tokenizers that this project trains, without `transformers`.

`transformers` reads the same files and gives the same answers, but its import takes longer than everything else that a
first answer needs. Tokenizers with any setting that `train_tokenizer` does not make are left to it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from nlrl.backbones.tokenizer import CHAT_TEMPLATE

NAMED = ("bos_token", "eos_token", "pad_token")
FIXED = {"clean_up_tokenization_spaces": False, "backend": "tokenizers", "tokenizer_class": "TokenizersBackend"}
INDIFFERENT = {"is_local", "local_files_only", "model_max_length"}
"""Settings that change no answer of the engine, which has a context of its own."""
OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates")
"""Where older versions of `transformers`, and other tokenizers, keep more settings."""


class PlainTokenizer:
    """What the engine asks of a `PreTrainedTokenizerFast`, under the same names."""

    chat_template = CHAT_TEMPLATE

    def __init__(self, backend: Tokenizer, named: dict[str, str], extra: Sequence[str]):
        """Args: named: the texts of `NAMED`; extra: further special tokens."""
        backend.no_padding()
        backend.no_truncation()
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token, self.pad_token = (named[name] for name in NAMED)
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (backend.token_to_id(named[name]) for name in NAMED)
        self.all_special_ids = [backend.token_to_id(token) for token in dict.fromkeys([*named.values(), *extra])]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self.backend_tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens)

    def convert_ids_to_tokens(self, token: int) -> str | None:
        return self.backend_tokenizer.id_to_token(token)

    def apply_chat_template(
        self, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False, tokenize: bool = False
    ) -> str:
        """The chat as a text; tokenize must be False."""
        assert not tokenize
        named = {name: getattr(self, name) for name in NAMED}
        return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **named)

    @cached_property
    def _template(self):
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(self.chat_template)


def read_plain_tokenizer(folder: Path) -> PlainTokenizer | None:
    """The tokenizer of a model folder; None where it is not there, or is not as `train_tokenizer` makes them."""
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError, RecursionError):
        return None
    if template != CHAT_TEMPLATE or not _is_plain(settings) or any((folder / name).exists() for name in OTHER_FILES):
        return None
    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # the library has no other; `transformers` says what is wrong
        return None
    named, extra = {name: settings[name] for name in NAMED}, settings["extra_special_tokens"]
    known = all(backend.token_to_id(token) is not None for token in [*named.values(), *extra])
    return PlainTokenizer(backend, named, extra) if known else None


def _is_plain(settings: Any) -> bool:
    names = {*NAMED, *FIXED, *INDIFFERENT, "extra_special_tokens"}
    if not isinstance(settings, dict) or not settings.keys() <= names:
        return False
    extra = settings.get("extra_special_tokens")
    tokens = [*(settings.get(name) for name in NAMED), *(extra if isinstance(extra, list) else [None])]
    return all(isinstance(token, str) for token in tokens) and all(settings.get(k) == v for k, v in FIXED.items())
