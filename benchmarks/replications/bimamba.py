"""Bi-Mamba against Mamba-2: validation loss and bytes of a Mamba-2 whose projections are signs, learned from a teacher,
learned without one, and rounded to after training (arXiv 2411.11843: 780 million to 2.7 billion parameters).

All arms have the same shape; a binary one has a scale and a shift for every input column of a projection beside it.
As in the paper the taught one learns from a teacher's distributions alone and from scratch; the paper's teacher is a
larger Transformer, this one the Mamba-2 of the first seed. Rounding after training takes the signs, scales and shifts
that are nearest to every column (least squares, no data); the paper compares with GPTQ and BiLLM, which use data too.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from nlrl.benchmarks.replications.experiment import Arm, Claim, Data, Report

LAYERS, WIDTH, HEAD_DIM, STATE = 8, 256, 64, 64
CONTEXT, TOKENS, BATCH = 512, 800 << 14, 1 << 14
LRS = (2e-3, 4e-3, 8e-3)


def claim() -> Claim:
    arms = (
        Arm("mamba2", "Mamba-2", partial(_mamba2, binary=False), LRS),
        Arm("distilled", "Bi-Mamba, taught by Mamba-2", partial(_mamba2, binary=True), LRS, teacher="mamba2"),
        Arm("alone", "Bi-Mamba, without a teacher", partial(_mamba2, binary=True), LRS),
    )
    measures = {"storage": storage, "rounded": rounded}
    return Claim("bimamba", arms, (CONTEXT,), TOKENS, BATCH, measures=measures, extensions=1)


def sections(report: Report):
    """Tables and figures beside the common ones."""
    from nlrl.benchmarks.replications.bimamba_report import bytes_section

    return [bytes_section(report)]


def _mamba2(vocab: int, context: int, binary: bool):
    from nlrl.backbones import BiMambaConfig, BiMambaForCausalLM

    config = BiMambaConfig(
        vocab_size=vocab, hidden_size=WIDTH, num_hidden_layers=LAYERS, head_dim=HEAD_DIM, state_size=STATE,
        binary=binary,
    )  # fmt: skip
    return BiMambaForCausalLM(config)


# -- measures ----------------------------------------------------------------------------------------------------------
def storage(model, data: Data, device) -> dict:
    """What the model takes as it is shipped, signs as bits and the rest in 16 bits; bytes.

    `disk`: of the weights' file; `memory`: of all tensors; `projections`: of the in- and out-projections, scales and
    shifts included; `weights`: how many weights these have.
    """
    import torch

    from nlrl.backbones.bimamba.packed import pack
    from nlrl.backbones.checkpoint import WEIGHTS, write_weights

    shipped = pack(model) if model.config.binary else model
    tensors = {
        name: tensor.to(torch.float16) if tensor.is_floating_point() else tensor
        for name, tensor in shipped.state_dict().items() if name not in model._tied_weights_keys
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        path = Path(folder) / WEIGHTS
        write_weights(path, tensors, torch.float16, {})
        disk = path.stat().st_size
    projections = [tensor.nbytes for name, tensor in tensors.items() if "_proj." in name]
    memory = sum(tensor.nbytes for tensor in tensors.values())
    return {"disk": disk, "memory": memory, "projections": sum(projections), "weights": _projected(model)}


def rounded(model, data: Data, device) -> dict:
    """Of a model that is not binary: validation loss after its projections were rounded to signs, without training,
    and what it takes then. Nothing of binary models."""
    from nlrl.benchmarks.replications.train import validation_loss

    if model.config.binary:
        return {}
    binary = binarised(model)
    return {"loss": validation_loss(binary, data)} | storage(binary, data, device)


def binarised(model):
    """A Bi-Mamba whose projections are nearest to the model's, everything else as it is.

    Args: model: a `BiMambaForCausalLM` that is not binary. Returns: another, on the same device.
    """
    from nlrl.backbones.bimamba.modeling import BiMambaForCausalLM
    from nlrl.backbones.checkpoint import build

    config = copy.deepcopy(model.config)
    config.binary = True
    tensors = {}
    for name, tensor in model.state_dict().items():
        stem, _, last = name.rpartition(".")
        if last == "weight" and stem.endswith("_proj"):
            signs, alpha, beta = nearest_signs(tensor)
            tensors |= {f"{stem}.weight": signs * alpha, f"{stem}.alpha": alpha, f"{stem}.beta": beta}
        else:
            tensors[name] = tensor.detach().clone()
    return build(BiMambaForCausalLM, config, tensors, Path("the model"), model.dtype)


def nearest_signs(weight):
    """Signs, scale and shift with the least squares distance to every column: its values in order, cut in two where
    the means of both parts leave least.

    Args: weight: `(outputs, inputs)`, two outputs at least. Returns: signs, as large; alpha and beta `(inputs,)`: W is
        about alpha * signs + beta.
    """
    import torch

    ordered = weight.double().sort(0).values
    below = torch.arange(1, len(weight), device=weight.device)[:, None]
    sums, above = ordered.cumsum(0)[:-1], len(weight) - below
    rest = ordered.sum(0) - sums
    cut = (sums**2 / below + rest**2 / above).argmax(0, keepdim=True)
    low, high = ((part / count.expand_as(part)).gather(0, cut)[0] for part, count in ((sums, below), (rest, above)))
    signs = torch.where(weight >= ordered.gather(0, cut + 1), 1.0, -1.0)
    return signs.to(weight), ((high - low) / 2).to(weight), ((high + low) / 2).to(weight)


def _projected(model) -> int:
    """Weights of the projections; those of a packed model are not counted."""
    return sum(weight.numel() for name, weight in model.named_parameters() if name.endswith("_proj.weight"))
