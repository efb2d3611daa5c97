"""A disk with little room, to see what a run does when it is full.

Needs root, as on a test machine or in a container: it is a tmpfs. Its size counts whole pages of 4 KiB.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType


def can_mount() -> bool:
    """Whether this process may make such a disk."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


class SmallDisk:
    """`with SmallDisk(folder, 200_000) as disk: ...; disk.resize(400_000)`; what is on it is lost at the end.

    Args:
        folder: where it is to be; made if it is not there.
        size: bytes.

    Raises:
        OSError: this process may not mount.
    """

    def __init__(self, folder: Path, size: int):
        self.folder, self._size = folder, size

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", self.folder)
        return self

    def resize(self, size: int) -> None:
        """Makes room, or takes it: never less than is used."""
        _mount("-o", f"remount,size={size}", self.folder)

    @property
    def used(self) -> int:
        """Bytes."""
        found = os.statvfs(self.folder)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


def _mount(*arguments: str | Path) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"cannot mount: {done.stderr.strip()}")
