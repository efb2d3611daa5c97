"""Adam that leaves unit vectors on the unit sphere: nGPT's step and its weight normalisation in one pass."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from nlrl import kernels


class NormalisedAdam(torch.optim.AdamW):
    """AdamW without decay whose `step` also does what `after_step` of its model would.

    The state is AdamW's, tensor for tensor: a `state_dict` of one goes on in the other.
    """

    normalises = True
    """`step` leaves nothing for `after_step` to do."""

    def __init__(self, params, unit_axes: Iterable[tuple[Tensor, int]], **settings):
        """
        Args:
            params: as of `torch.optim.AdamW`.
            unit_axes: the matrices that consist of unit vectors, and along which axis (`NGPTForCausalLM.unit_axes`).
            settings: `lr`, `betas`, `eps`, and `capturable` for CUDA graphs.
        Raises:
            ValueError: a group has weight decay, which the next normalisation would undo.
        """
        super().__init__(params, **({"weight_decay": 0.0, "fused": True} | settings))
        self._axes = {id(weight): axis for weight, axis in unit_axes}
        if any(group["weight_decay"] for group in self.param_groups):
            raise ValueError("NormalisedAdam takes no weight decay: unit vectors have no length to shrink")

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if not moving:
                continue
            states = [self._state(p, group) for p in moving]
            torch._foreach_add_([state["step"] for state in states], 1)  # pyright: ignore[reportPrivateImportUsage]
            pairs = list(zip(moving, states, strict=True))
            self._step_free([pair for pair in pairs if id(pair[0]) not in self._axes], group)
            for weight, state in pairs:
                if id(weight) in self._axes:
                    kernels.adam_normalise(
                        weight, weight.grad, state["exp_avg"], state["exp_avg_sq"], state["step"], group["lr"],
                        group["betas"], group["eps"], self._axes[id(weight)],
                    )  # fmt: skip
        return loss

    def _state(self, weight: Tensor, group: dict) -> dict[str, Tensor]:
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        return state

    def _step_free(self, pairs: list[tuple[Tensor, dict[str, Tensor]]], group: dict) -> None:
        """Plain Adam for what is no unit vector (scales), all in one kernel."""
        if not pairs:
            return
        weights, states = zip(*pairs, strict=True)
        columns = [[state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step")]
        gradients = [weight.grad for weight in weights]
        torch._fused_adamw_(  # pyright: ignore[reportPrivateImportUsage]
            list(weights), gradients, columns[0], columns[1], [], columns[2], lr=group["lr"], beta1=group["betas"][0],
            beta2=group["betas"][1], weight_decay=0.0, eps=group["eps"], amsgrad=False, maximize=False,
        )  # fmt: skip
