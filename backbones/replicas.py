"""Data-parallel gradients in the threads of one process.

Small models on a CPU gain little from threads inside an operation: the operations are too short. Here each thread
runs whole forward and backward passes, single-threaded, on a replica whose weights are the model's own memory and
whose gradients are its own. The gradients are added up in the order of the replicas, so that a step's result does
not depend on which thread was quick.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Share = Callable[[Any, Any], Tensor]
"""(replica, part) -> the part's loss, detached, after its backward pass."""


class Replicas:
    """Replicas of a CPU model, one a thread."""

    def __init__(self, model: torch.nn.Module, threads: int):
        self.model = model
        self._replicas = [_sharing(model) for _ in range(threads)]
        self._pool = ThreadPoolExecutor(threads, initializer=_one_thread)

    def __len__(self) -> int:
        return len(self._replicas)

    def gradients(self, parts: Sequence[Any], share: Share) -> Tensor:
        """Runs `share` on every part and leaves the sum of the gradients in the model; returns the sum of the
        losses."""
        used = min(len(parts), len(self._replicas))
        lanes = [list(parts[lane::used]) for lane in range(used)]
        futures = [
            self._pool.submit(_run, replica, lane, share) for replica, lane in zip(self._replicas, lanes, strict=False)
        ]
        losses = [future.result() for future in futures]
        for parameters in zip(self.model.parameters(), *(r.parameters() for r in self._replicas[:used]), strict=True):
            found = [p.grad for p in parameters[1:] if p.grad is not None]
            parameters[0].grad = torch.stack(found).sum(0) if len(found) > 1 else (found[0] if found else None)
        return torch.stack(losses).sum()


def _run(replica: torch.nn.Module, parts: Sequence[Any], share: Share) -> Tensor:
    replica.zero_grad(set_to_none=True)
    return torch.stack([share(replica, part) for part in parts]).sum()


def _sharing(model: torch.nn.Module) -> torch.nn.Module:
    replica = copy.deepcopy(model)
    for own, shared in zip(replica.parameters(), model.parameters(), strict=True):
        own.data = shared.data
        own.grad = None
    return replica


def _one_thread() -> None:
    torch.set_num_threads(1)  # of this Python thread's operations
