"""Who holds which page and which row: the engine's book-keeping on the host, no tensors."""

from __future__ import annotations

from collections.abc import Iterable


class Pages:
    """Pages 1 .. count - 1 with holders counted; page 0 is scratch and nobody's."""

    def __init__(self, count: int):
        self._free = list(range(count - 1, 0, -1))
        self._holders = [0] * count
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
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._holders[page] = 1
        return taken

    def share(self, pages: Iterable[int]) -> None:
        """One more holder for each."""
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """One holder less for each; a page without holders is free."""
        for page in pages:
            self._holders[page] -= 1
            if self._holders[page] == 0:
                self._free.append(page)
            assert self._holders[page] >= 0, f"page {page} was released more often than held"
