"""Who holds which page and which row: the engine's book-keeping on the host, no tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Pages:
    """Pages 1 .. count - 1 with holders counted; page 0 is scratch and nobody's."""

    def __init__(self, count: int):
        self._free = list(range(count - 1, 0, -1))
        self._holders = np.zeros(count, np.int32)
        self.total = count - 1

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.total - len(self._free)

    def take(self, count: int) -> list[int]:
        """Fresh pages with one holder each.

        Raises:
            IndexError: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise IndexError(f"{count} pages wanted, {len(self._free)} free")
        if not count:
            return []
        taken = self._free[: -count - 1 : -1]
        del self._free[-count:]
        self._holders[taken] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """One more holder for each of these different pages."""
        if pages:
            self._holders[pages] += 1

    def release(self, pages: Sequence[int]) -> None:
        """One holder less for each of these different pages; a page without holders is free."""
        if not pages:
            return
        held = np.array(pages)
        self._holders[held] -= 1
        left = self._holders[held]
        assert left.min() >= 0, f"a page of {pages} was released more often than held"
        self._free += held[left == 0].tolist()
