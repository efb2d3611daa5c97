"""A random Llama of a few hundred thousand weights that is asked like a large one: for tests of whatever serves,
trains or plays with Hugging Face models.

Its words are those of the bundled base, so that a game's prompt is a few dozen tokens; its chat template and special
tokens are in the manner of Llama 3, with a tokenizer that puts a first token before every text if it is let.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

BOS, EOS, PAD = "<|begin_of_text|>", "<|eot_id|>", "<|pad|>"
HEADER = ("<|start_header_id|>", "<|end_header_id|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    f"{HEADER[0]}{{{{ message['role'] }}}}{HEADER[1]}\n\n{{{{ message['content'] | trim }}}}{EOS}"
    "{% endfor %}{% if add_generation_prompt %}"
    f"{HEADER[0]}assistant{HEADER[1]}\n\n"
    "{% endif %}"
)
HEAD_DIM = 32
"""The least that vLLM can do on a CPU."""
VLLM_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "NO_PROXY": "127.0.0.1",
}
"""For vLLM in tests: no network, no reports, no compilation (20 s), one thread."""


def make_tiny_llama(
    folder: Path, seed: int = 0, hidden_size: int = 64, layers: int = 2, context: int = 512, spread: float = 0.02
) -> None:
    """Writes a Hugging Face folder: random weights, tokenizer, chat template.

    Args:
        spread: standard deviation of the weights; 0.2 gives a model with opinions, which adapters can change.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // HEAD_DIM,
        num_key_value_heads=1,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        initializer_range=spread,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)


def tiny_tokenizer() -> Any:
    """The bundled base's words, between Llama 3's special tokens."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from nlrl.backbones.registry import BUNDLED

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(BUNDLED / "transformer-base" / "tokenizer.json"),
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=list(HEADER),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    first = (BOS, tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[first])
    return tokenizer


def lessons(game: str, roles: Iterable[str], count: int, seed: int = 0):
    """Corpus examples in a game's plain style, as `TextExample`s: what a random model needs to be understood."""
    from itertools import islice

    from nlrl.agents.corpus import CorpusSettings, examples
    from nlrl.backbones.language_model import Message
    from nlrl.orchestration.fits import TextExample

    found = islice(examples(CorpusSettings(game, roles=tuple(roles)), seed), count)
    return [TextExample(tuple(Message(m.role, m.content) for m in e.messages), e.completion) for e in found]
