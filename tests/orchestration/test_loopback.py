"""What listens, and where."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nlrl.orchestration.cluster import Cluster
from nlrl.orchestration.serve import ServeSettings
from nlrl.ui.launch import command_for

LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")
LISTENS = "0A"


class Adder:
    def add(self, a: int, b: int) -> int:
        return a + b


def listening() -> dict[str, str]:
    """Inode -> address of every listening TCP socket of the machine."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[9]: row[1].partition(":")[0] for row in rows if row[3] == LISTENS}


def sockets_of(process: int) -> set[str]:
    links = [os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir() if link.is_symlink()]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def descendants(process: int) -> list[int]:
    found, parents = [process], {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs Linux's list of sockets")
def test_a_runs_own_ray_listens_on_loopback_alone():
    before = set(listening())
    with Cluster("ray", num_cpus=1) as cluster:
        worker = cluster.spawn(Adder, name="adder")
        assert worker.call("add", 2, 3).result(60) == 5
        addresses = listening()
        ours = {inode for process in descendants(os.getpid()) for inode in sockets_of(process)} & addresses.keys()
        fresh = {inode: addresses[inode] for inode in ours - before}
    assert len(fresh) >= 4, "the head, its node, the driver and the worker listen"
    assert set(fresh.values()) <= set(LOOPBACK)


def test_servers_bind_loopback_unless_they_are_told_otherwise(tmp_path):
    assert ServeSettings(model="m").host == "127.0.0.1"
    assert "--server.address=127.0.0.1" in command_for(tmp_path, 8599)
