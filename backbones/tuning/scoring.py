"""What a fine-tuned Hugging Face model says of given tokens, by transformers and PEFT: what vLLM is held to."""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from nlrl.backbones.tuning.weights import ADAPTER_CONFIG, base_dtype


@torch.no_grad()
def score_folder(
    base: str, folder: str, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], threads: int = 0
) -> list[list[float]]:
    """Natural log-probability of every token of each answer behind its prompt.

    Args:
        base: folder of the base, to whose type the weights are rounded, as for vLLM; a CPU computes in float32.
        folder: what a round left: an adapter's, or a whole model's.
        prompts, answers: token ids, read one by one; no prompt may be empty.
        threads: CPU threads of torch; 0 leaves its choice.
    """
    if threads:
        torch.set_num_threads(threads)
    adapted = (Path(folder) / ADAPTER_CONFIG).exists()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(base if adapted else folder, dtype=base_dtype(Path(base)))
    if adapted:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, folder)
    model = (model.float() if device == "cpu" else model.to(device)).eval()
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=device)
        every = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        found.append(every.gather(1, ids[0, len(prompt) :, None])[:, 0].tolist())
    return found
