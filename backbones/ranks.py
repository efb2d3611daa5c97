"""Processes that train one model together: each holds all of it and reads a share of every batch.

1. A step's loss is the sum over the whole batch divided by the whole batch's weight, whoever read what, so its gradient
   is that of one process up to the rounding of sums, whatever the number of processes.
2. Gradients are added up once a step, and every process then clips and steps alike, from equal weights to equal ones.
   `check_equal` proves it at the end of a round.
3. A process whose share is empty takes part with zeros.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import torch
from torch import Tensor

from nlrl.errors import NLRLError

Made = TypeVar("Made")
Example = TypeVar("Example", bound=Sized)
BUCKET = 1 << 25
"""Numbers that are added up in one call, at least one tensor: 128 MiB in float32."""


class Ranks:
    """This process among those that train together.

    Args:
        rank: which one this is, from 0.
        size: how many there are; 1 communicates nothing. With more, torch.distributed must be initialised.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, rank: int, size: int, host: str, port: int, device: torch.device | str = "cpu") -> Ranks:
        """Meets the others at a `TCPStore` and joins them; returns when all are there."""
        import torch.distributed as dist
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

        backend = "nccl" if torch.device(device).type == "cuda" else "gloo"
        store = TCPStore(host, port, size, is_master=False)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        return cls(rank, size)

    @classmethod
    def of_environment(cls) -> Ranks:
        """The processes that `torchrun` has started, joined, each on its own GPU where there are GPUs; without it, this
        one alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        import torch.distributed as dist

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if on_gpu else "gloo")
        return cls(dist.get_rank(), size)

    def leave(self) -> None:
        """Ends the connection to the others."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    def from_first(self, make: Callable[[], Made]) -> Made:
        """What `make` gives in the first process; the others are sent it."""
        if self.size == 1:
            return make()
        import torch.distributed as dist

        box: list[Any] = [make() if self.rank == 0 else None]
        dist.broadcast_object_list(box)
        return box[0]

    def share(self, batch: Sequence[Example]) -> list[Example]:
        """This process's part of a batch: the longest examples first, each to whom has the fewest tokens so far. All
        parts together are the batch."""
        if self.size == 1:
            return list(batch)
        loads = [0] * self.size
        mine = []
        for example in sorted(batch, key=len, reverse=True):
            to = min(range(self.size), key=loads.__getitem__)
            loads[to] += len(example)
            if to == self.rank:
                mine.append(example)
        return mine

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self._reduced(values, "SUM")

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Adds up gradients in place. One that nobody has stays None, so that optimizers pass over it, as they would in
        one process."""
        if self.size == 1:
            return
        had = [float(p.grad is not None) for p in parameters]
        anyone = self.sum(torch.tensor(had, device=parameters[0].device)).tolist()
        moving = [p for p, count in zip(parameters, anyone, strict=True) if count]
        for p in moving:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        for bucket in _buckets([p.grad for p in moving if p.grad is not None]):
            flat = self.sum(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            for gradient, part in zip(bucket, flat.split([each.numel() for each in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def same(self, number: float) -> bool:
        """Whether all processes give the same number."""
        if self.size == 1:
            return True
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, number)
        return len(set(found)) == 1

    def check_equal(self, model: torch.nn.Module) -> None:
        """Compares the weights of all processes.

        Raises:
            NLRLError: they differ.
        """
        if self.size == 1:
            return
        named = dict(model.named_parameters())
        sums = torch.stack([_fingerprint(p.detach()) for p in named.values()])
        apart = (self._reduced(sums, "MAX") != self._reduced(sums, "MIN")).tolist()
        if any(apart):
            name = list(named)[apart.index(True)]
            raise NLRLError(
                f"the {self.size} training processes ended with different weights ({name}, {sum(apart)} of {len(named)}"
                " tensors). They must run on equal hardware with equal software; train with cluster.trainers = 1"
            )

    def _reduced(self, values: Tensor, how: str) -> Tensor:
        if self.size == 1:
            return values
        import torch.distributed as dist

        values = values.clone()
        dist.all_reduce(values, getattr(dist.ReduceOp, how))
        return values


ALONE = Ranks()


def meeting_point(host: str, size: int) -> Any:
    """Where `size` processes can `join` each other, while this object lives, at its `port`, a free one of this
    machine's."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    return TCPStore(host, 0, size, is_master=True, wait_for_workers=False)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, cut where a bucket is full."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(each.numel() for each in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _fingerprint(weight: Tensor) -> Tensor:
    """The sum of its numbers' bits: equal for equal tensors, and next to never otherwise."""
    bits = {4: torch.int32, 2: torch.int16, 8: torch.int64}[weight.element_size()]
    return weight.contiguous().view(bits).sum(dtype=torch.int64)
