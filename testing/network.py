"""Two networks on one machine, joined by one cable that can be pulled (Linux, root, `ip`)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence


class Cable:
    """Two network namespaces and a pair of virtual interfaces between them.

    Args:
        name: begins the namespaces' names; at most 10 letters, as interfaces allow 15.
        addresses: of the two ends, in one network of 256.

    Raises:
        OSError: no right to change networks here, or no `ip`.
    """

    def __init__(self, name: str, addresses: tuple[str, str]):
        self.namespaces = f"{name}-a", f"{name}-b"
        if shutil.which("ip") is None:
            raise FileNotFoundError("ip: not installed")
        try:
            for namespace in self.namespaces:
                _ip("netns", "add", namespace)
                _ip("link", "set", "lo", "up", inside=namespace)
            a, b = self.namespaces
            _ip("link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", b, inside=a)
            for namespace, address in zip(self.namespaces, addresses, strict=True):
                _ip("addr", "add", f"{address}/24", "dev", "cable", inside=namespace)
                self.switch(namespace, "up")
        except BaseException:
            self.close()
            raise

    def switch(self, namespace: str, state: str) -> None:
        """Pulls (`down`) or plugs in (`up`) one end of the cable. The other end then only notices silence."""
        _ip("link", "set", "cable", state, inside=namespace)

    def close(self) -> None:
        """Removes both networks; a second call does nothing."""
        for namespace in self.namespaces:
            subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def inside(namespace: str | None, command: Sequence[str]) -> list[str]:
    """A command that runs in a network namespace; None is the machine's own network."""
    return ["ip", "netns", "exec", namespace, *command] if namespace else list(command)


def _ip(*arguments: str, inside: str | None = None) -> None:
    place = ["-n", inside] if inside else []
    done = subprocess.run(["ip", *place, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
