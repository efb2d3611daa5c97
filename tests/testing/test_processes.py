"""Who belongs to a process: children, orphans of its session, and those that opened a session of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from nlrl.testing.network import Cable, inside
from nlrl.testing.processes import family

_TREE = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
orphan = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid, flush=True)"
child = subprocess.Popen(sleep)
own = subprocess.Popen(sleep, start_new_session=True)
left = subprocess.run([sys.executable, "-c", orphan, *sleep], stdout=subprocess.PIPE, text=True).stdout
print(child.pid, own.pid, left, flush=True)
time.sleep(60)
"""


def test_a_family_is_all_descendants_and_the_whole_session():
    leader = subprocess.Popen([sys.executable, "-c", _TREE], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    expected = {leader.pid, *map(int, leader.stdout.readline().split())}
    try:
        found = family(leader.pid)
        assert set(found) == expected
        assert len(expected) == 4
        assert os.getpid() not in found
    finally:
        for pid in expected:
            os.kill(pid, signal.SIGKILL)
        leader.communicate()
    late = time.monotonic() + 10  # a signal is sent before it has done its work
    while expected & set(family(leader.pid)):
        assert time.monotonic() < late
        time.sleep(0.01)


def test_a_pulled_cable_is_silence_until_it_is_plugged_in_again():
    try:
        cable = Cable(f"tc{os.getpid()}", ("10.215.0.1", "10.215.0.2"))
    except OSError as error:
        pytest.skip(f"no rights to make networks here: {error}")
    a, b = cable.namespaces
    code = (
        "import socket; s = socket.create_server(('10.215.0.2', 4000)); print('on', flush=True)\nwhile s.accept(): pass"
    )
    knock = inside(a, [sys.executable, "-c", "import socket; socket.create_connection(('10.215.0.2', 4000), 0.5)"])
    server = subprocess.Popen(inside(b, [sys.executable, "-c", code]), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        assert server.stdout.readline() == "on\n"
        assert subprocess.run(knock).returncode == 0
        cable.switch(b, "down")
        failed = subprocess.run(knock, capture_output=True, text=True)
        assert "Timeout" in failed.stderr or "No route" in failed.stderr
        cable.switch(b, "up")
        assert subprocess.run(knock).returncode == 0
    finally:
        server.kill()
        server.communicate()
        cable.close()
