"""Between host and device without waiting: what goes up is staged in pinned memory, what comes down is looked at later.

A copy from ordinary memory makes the host wait until the device has done everything before it. Pinned blocks come from
torch's cache, which gives none out again before the copy that reads or writes it is done.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def upload(values: np.ndarray | Sequence[int], device: torch.device) -> Tensor:
    """A copy on the device, of the array's type (int64 for lists), that later work there may use."""
    tensor = torch.from_numpy(np.array(values, None if isinstance(values, np.ndarray) else np.int64, order="C"))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Download:
    """Copies of tensors on their way to the host. They hold what the tensors held when this was made, whatever is
    written to them afterwards."""

    def __init__(self, *tensors: Tensor):
        self._copies = [_begin(tensor) for tensor in tensors]
        self._done = torch.cuda.Event() if tensors[0].device.type == "cuda" else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[np.ndarray]:
        """Waits for the copies, and for nothing that the device was given to do after them."""
        if self._done is not None:
            self._done.synchronize()
        return [copy.numpy() for copy in self._copies]


def _begin(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return copy.copy_(tensor, non_blocking=True)
