"""Two Ray nodes on one machine, to kill one of them or cut it off.

    with TwoNodes() as nodes:
        nodes.run(["nlrl", "run", "config.toml"])          # a driver on the head's machine
        nodes.kill(nodes.worker)

1. Where the operating system allows it (root, network namespaces), each node has a network of its own, joined by one
   cable, and `drop_network` pulls that cable: nothing is refused, nothing answers.
2. Elsewhere (an unprivileged container) both share this machine's network, and `drop_network` stops the node's
   processes: to everybody else that looks alike. `separate` says which of the two it is.
3. Both forms share the file system, as nodes with a shared folder do; but of the folder `local` a worker node with a
   network of its own has its own, too.
4. `kill` sends SIGKILL to everything that the node runs, drivers of jobs included. Only processes that descend from
   those started here are ever touched.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nlrl.testing.network import Cable, inside
from nlrl.testing.processes import family

RAY = str(Path(sys.executable).with_name("ray"))
QUICK_DEATH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A head that was started with these gives up on a silent node after some 6 s; with Ray's own, after about a minute."""
_ADDRESSES = "10.213.0.1", "10.213.0.2"
_MEMORY = 100_000_000
"""Bytes of each node's object store."""
_PR_SET_PDEATHSIG = 1
_STARTED = "Ray runtime started."
"""What `ray start` writes once the head knows the node."""


@dataclass
class Node:
    """One of the two."""

    name: str
    ip: str
    namespace: str | None
    """Of its network; None is this machine's."""
    process: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        """A command line that runs on this node."""
        return inside(self.namespace, arguments)


class TwoNodes:
    """A head and a worker node; a context manager.

    Args:
        num_cpus: that each says it has; besides, each has 1 of a resource by its name, "head" or "worker".
        jobs: whether the head takes jobs (its dashboard needs some seconds).
        separate: networks of their own; None takes them where they can be had.
        env: more environment variables for both nodes.

    Raises:
        OSError: separate networks were asked for and cannot be had.
        RuntimeError: a node did not come up.
    """

    def __init__(
        self,
        num_cpus: int = 2,
        jobs: bool = False,
        separate: bool | None = None,
        env: Mapping[str, str] | None = None,
    ):
        self._cpus, self._jobs, self._env = num_cpus, jobs, {**QUICK_DEATH, **(env or {})}
        self._folder = Path(tempfile.mkdtemp(prefix="2n", dir="/tmp"))  # short: Ray's sockets are below it
        self._cable = self._lay(separate)
        spaces = self._cable.namespaces if self._cable else (None, None)
        ips = _ADDRESSES if self._cable else ("127.0.0.1", "127.0.0.1")
        self.head, self.worker = Node("head", ips[0], spaces[0]), Node("worker", ips[1], spaces[1])
        self._port, self._dashboard_port = free_port(), free_port()
        self.local = self._folder / "local"
        self.local.mkdir()

    @property
    def separate(self) -> bool:
        """Whether each node has a network of its own."""
        return self.head.namespace is not None

    @property
    def address(self) -> str:
        """Of the cluster, for drivers."""
        return f"{self.head.ip}:{self._port}"

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted, from the head's network."""
        return f"http://{self.head.ip}:{self._dashboard_port}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a user's shell on the head: a driver started in it finds this cluster and no other."""
        return outside(self._folder) | {"RAY_ADDRESS": self.address}

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts a command on the head, stdout and stderr in one pipe; the caller ends it."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": self.env, **options}
        return subprocess.Popen(self.head.command(*command), **given)

    def run(self, command: Sequence[str], timeout: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on the head, when it is over; what it wrote is in `stdout`.

        Raises:
            subprocess.TimeoutExpired: it was killed; what it had written is in `output`.
        """
        process = self.popen(command, **options)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            process.kill()
            late.output = process.communicate()[0]
            raise
        return subprocess.CompletedProcess(command, process.returncode, out)

    def start(self, node: Node) -> None:
        """Starts a node, or starts it again after `kill`; returns when the head counts on it."""
        if node is self.head:
            self._launch(node, ["--head", f"--port={self._port}", *self._dashboard_options()])
            if self._jobs:
                self._wait_for(self._takes_connections, "the head's dashboard did not come up")
        else:
            self._launch(node, [f"--address={self.address}"])

    def kill(self, node: Node) -> None:
        """SIGKILL to every process of the node, the job drivers among them."""
        while node.process is not None:
            processes = family(node.process.pid)
            for pid in processes:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if not processes:
                node.process.wait()
                node.process = None
            time.sleep(0.01)

    def drop_network(self, node: Node) -> None:
        """From now on nothing reaches the node, and nothing leaves it."""
        if node.namespace and self._cable:
            self._cable.switch(node.namespace, "down")
        else:
            self._signal(node, signal.SIGSTOP)

    def restore_network(self, node: Node) -> None:
        """Undoes `drop_network`. A node that was given up in the meantime ends itself; `kill` and `start` renew it."""
        if node.namespace and self._cable:
            self._cable.switch(node.namespace, "up")
        else:
            self._signal(node, signal.SIGCONT)

    def close(self) -> None:
        """Kills both nodes and removes what they left; a second call does nothing."""
        for node in (self.worker, self.head):
            self.kill(node)
        if self._cable:
            self._cable.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> TwoNodes:
        try:
            self.start(self.head)
            self.start(self.worker)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _lay(self, separate: bool | None) -> Cable | None:
        if separate is False:
            return None
        try:
            return Cable(self._folder.name, _ADDRESSES)
        except OSError:
            if separate:
                shutil.rmtree(self._folder)
                raise
            return None

    def _dashboard_options(self) -> list[str]:
        if not self._jobs:
            return ["--include-dashboard=false"]
        return [f"--dashboard-host={self.head.ip}", f"--dashboard-port={self._dashboard_port}"]

    def _launch(self, node: Node, options: Sequence[str]) -> None:
        command = [RAY, "start", "--block", *options, f"--node-ip-address={node.ip}", f"--num-cpus={self._cpus}"]
        command += [f"--object-store-memory={_MEMORY}", "--disable-usage-stats", f'--resources={{"{node.name}": 1}}']
        command += [f"--dashboard-agent-listen-port={free_port()}"]  # its default is one port for all nodes
        # Nodes that share Ray's files take each other's working directories away.
        command += [f"--temp-dir={self._folder / node.name[0]}"]
        env, log = outside(self._folder) | self._env, self._folder / f"{node.name}.log"
        with open(log, "wb") as file:
            node.process = subprocess.Popen(
                node.command(*self._hiding(node), *command),
                start_new_session=True,
                env=env,
                stdout=file,
                stderr=file,
                preexec_fn=_end_with_parent,
            )
        self._wait_for(lambda: _STARTED in log.read_text(), f"the {node.name} node did not come up")

    def _hiding(self, node: Node) -> list[str]:
        """Begins a command of the worker: `ip netns exec` gives it mounts of its own."""
        if node is self.head or not self.separate:
            return []
        return ["sh", "-c", 'mount -t tmpfs local "$0" && exec "$@"', str(self.local)]

    def _takes_connections(self) -> bool:
        code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
        command = self.head.command(sys.executable, "-c", code, self.head.ip, str(self._dashboard_port))
        return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=30).returncode == 0

    def _wait_for(self, condition: Callable[[], bool], complaint: str, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in self._folder.glob("*.log"))
                raise RuntimeError(f"{complaint} within {seconds:g} s:\n{logs}")
            time.sleep(0.1)

    def _signal(self, node: Node, number: int) -> None:
        assert node.process is not None, f"the {node.name} node does not run"
        for pid in family(node.process.pid):
            os.kill(pid, number)


def _end_with_parent() -> None:
    """A test that is killed cannot clean up: then Ray is told to end."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def outside(folder: Path | str) -> dict[str, str]:
    """This process's environment without what its own use of Ray has set, and with its commands on the path.

    Args:
        folder: where Ray keeps its files, and the note on the newest cluster, which nobody else must find.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", os.defpath)])
    return kept | {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder), "PATH": path}


def free_port() -> int:
    """A port that nobody listens on, beyond those that Ray's workers take."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
