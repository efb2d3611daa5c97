"""Who writes a run: one at a time, a dead writer's right passes on, a sleeper notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration import lease as lease_module
from nlrl.orchestration.lease import Lease, holder_of, latest
from nlrl.orchestration.store import Store

SECONDS = 0.6


@pytest.fixture
def elsewhere(monkeypatch):
    """Makes processes of this machine look like those of many: nobody can see whether another lives."""
    monkeypatch.setattr(lease_module, "_machine", lambda: f"machine {time.monotonic_ns()}")


def silent(lease):
    """A holder that is killed, or asleep: no more heartbeats, no farewell."""
    lease._stopped.set()
    lease._thread.join()


def test_a_second_writer_is_refused_by_the_name_of_the_first(url):
    store = Store(url)
    held = Lease.take(store, SECONDS)
    with pytest.raises(NLRLError, match=rf"is being written by process {os.getpid()} on"):
        Lease.take(Store(url), SECONDS)
    assert holder_of(store) is not None
    held.check()
    held.release()


def test_a_writer_that_said_farewell_is_not_waited_for(url):
    store = Store(url)
    first = Lease.take(store, 60)
    first.release()
    first.release()
    started = time.monotonic()
    second = Lease.take(store, 60)
    assert time.monotonic() - started < 5
    assert (second.term, second.previous) == (first.term + 1, first.term)
    assert holder_of(store) is not None
    second.release()
    assert holder_of(store) is None


def test_a_silent_writer_is_replaced_after_its_time_and_not_before(url, elsewhere):
    store = Store(url)
    first = Lease.take(store, SECONDS)
    silent(first)
    started = time.monotonic()
    second = Lease.take(store, SECONDS)
    assert SECONDS <= time.monotonic() - started < SECONDS + 5
    with pytest.raises(NLRLError, match=r"was taken over by process \d+ on"):
        first.check()
    second.check()
    first.release()
    second.check()
    second.release()


def test_a_process_that_died_on_this_machine_is_not_waited_for(tmp_path):
    url = f"file://{tmp_path}/run"
    code = "import sys, os; from nlrl.orchestration.lease import Lease; from nlrl.orchestration.store import Store\n"
    code += "Lease.take(Store(sys.argv[1]), 600); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code, url], timeout=60)
    assert latest(Store(url)) == 1
    started = time.monotonic()
    held = Lease.take(Store(url), 600)
    assert (held.term, time.monotonic() - started < 5) == (2, True)
    held.release()


def test_a_process_that_got_the_number_of_a_dead_one_is_not_taken_for_it(tmp_path):
    store = Store(f"file://{tmp_path}/run")
    held = Lease.take(store, 600)
    silent(held)
    told = json.loads(store.read(".nlrl/terms/000001.json"))
    store.write(".nlrl/terms/000001.json", json.dumps(told | {"started": "1"}).encode())
    Lease.take(store, 600).release()


def test_a_term_from_long_ago_is_not_waited_for(url, elsewhere, monkeypatch):
    store = Store(url)
    silent(Lease.take(store, 600))
    later = time.time() + 2 * lease_module.LONG_AGO
    monkeypatch.setattr(time, "time", lambda: later)
    Lease.take(store, 600).release()


def test_of_many_that_want_a_dead_writers_run_one_gets_it(tmp_path, elsewhere):
    url = f"file://{tmp_path}/run"
    silent(Lease.take(Store(url), SECONDS))
    got, refused = [], []

    def want():
        try:
            got.append(Lease.take(Store(url), SECONDS))
        except NLRLError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 5)
    got[0].check()
    got[0].release()


def test_a_torn_term_is_waited_for_and_then_passed(url):
    store = Store(url)
    store.write(".nlrl/terms/000007.json", b'{"holder": "proc')
    before = lease_module._watch
    lease_module._watch = lambda store, term, told: before(store, term, told | {"seconds": 0.2})
    try:
        held = Lease.take(store, SECONDS)
    finally:
        lease_module._watch = before
    assert held.term == 8
    held.release()
