"""A byte-level BPE tokenizer trained on a given corpus.

Two choices make a very small model good at board games. *Atoms* (a cell, a score such as `+0.54`, a line such as
`3-5-7`) are never split or merged with their neighbours, so each is one token and its meaning sits in one
embedding. Everything else may merge across spaces up to the next punctuation mark, so a set phrase costs one or two
tokens instead of one a word. Any text can still be encoded, byte by byte in the worst case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, ANSWER = "<pad>", "<bos>", "<eos>", "<answer>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<answer>{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}\n{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}"
)
_PUNCTUATION = r".;:,\n"


def train_tokenizer(
    texts: Iterable[str], atoms: Sequence[str], atom_texts: Iterable[str], vocab_size: int
) -> PreTrainedTokenizerFast:
    """Trains a tokenizer.

    Args:
        texts: the corpus.
        atoms: regular expressions (Oniguruma) of pieces that are tokens of their own; earlier ones win.
        atom_texts: every text that the atoms stand for, so that each gets its token however rare it is in the corpus.
        vocab_size: at most this many tokens, the four special ones included.
    """
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_piece(atoms)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, ANSWER],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=20,
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain(texts, (text for text in atom_texts for _ in range(1000))), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[ANSWER],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer saved in a model folder."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


def _piece(atoms: Sequence[str]) -> str:
    atom = "|".join(atoms)
    return rf"{atom}|(?:(?!{atom})[^{_PUNCTUATION}])+[{_PUNCTUATION}]*|[{_PUNCTUATION}]+"
