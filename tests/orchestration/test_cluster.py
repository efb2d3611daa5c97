"""Workers behave alike in this process and under Ray; what only processes can do (die, take CPUs) is tested under
Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Cluster, Unusable, first_done
from nlrl.testing.kills import victims


class Counter:
    """A worker with state."""

    def __init__(self, start=0, step=1):
        self.count, self.step = start, step

    def add(self, amount=None, twice=False):
        self.count += (self.step if amount is None else amount) * (2 if twice else 1)
        return self.count

    def square(self, item):
        return item * item

    def slow_square(self, item):
        time.sleep(1.0 if item == 0 else 0.01)
        return item * item

    def sum(self, array):
        return float(array.sum())

    def where(self):
        return os.getpid(), os.environ.get("OMP_NUM_THREADS")

    def refuse(self, kind):
        raise {"user": NLRLError("seed: must be positive"), "bug": KeyError("lost")}[kind]


class Broken:
    def __init__(self):
        raise NLRLError("model: no such folder")

    def work(self):
        return 1


@pytest.fixture(scope="module")
def ray_cluster():
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file
    with Cluster("ray", address="local", num_cpus=8) as cluster:
        yield cluster
    assert not ray.is_initialized()


@pytest.fixture(params=["inline", "ray"])
def cluster(request):
    if request.param == "inline":
        with Cluster("inline") as inline:
            yield inline
    else:
        yield request.getfixturevalue("ray_cluster")


@pytest.fixture
def spawn(cluster):
    """`cluster.spawn` whose workers end with the test."""
    handles = []

    def start(*args, **options):
        handles.append(cluster.spawn(*args, **options))
        return handles[-1]

    yield start
    for handle in handles:
        handle.close()


# -- alike -------------------------------------------------------------------------------------------------------------
def test_a_worker_keeps_its_state_and_answers_in_order(cluster, spawn):
    worker = spawn(Counter, 10, step=5)
    futures = [worker.call("add"), worker.call("add", 1), worker.call("add", 1, twice=True)]
    assert cluster.gather(futures) == [15, 16, 18]
    assert futures[0].result(timeout=30) == 15


def test_exceptions_come_back_as_themselves(spawn):
    worker = spawn(Counter)
    with pytest.raises(NLRLError) as user:
        worker.call("refuse", "user").result()
    assert str(user.value) == "seed: must be positive"
    with pytest.raises(KeyError, match="lost"):
        worker.call("refuse", "bug").result()
    with pytest.raises(AttributeError, match="nonsense"):
        worker.call("nonsense").result()
    assert worker.call("add").result() == 1


def test_a_constructor_that_fails_is_reported_by_the_first_call(spawn):
    worker = spawn(Broken)
    with pytest.raises(NLRLError, match=r"^model: no such folder$"):
        worker.call("work").result()


def test_map_keeps_the_order_of_items(cluster, spawn):
    workers = [spawn(Counter, name=f"w{n}") for n in range(2)]
    assert cluster.map(workers, "square", iter(range(20))) == [n * n for n in range(20)]
    assert cluster.map(workers, "square", []) == []


def test_map_unordered_yields_every_result_with_its_index(cluster, spawn):
    workers = [spawn(Counter) for _ in range(2)]
    found = list(cluster.map_unordered(workers, "square", range(7), max_in_flight=3))
    assert sorted(found) == [(n, n * n) for n in range(7)]


def test_map_takes_items_only_when_a_worker_is_free(cluster, spawn):
    taken = []
    results = cluster.map_unordered([spawn(Counter)], "square", (taken.append(n) or n for n in range(10)))
    next(results)
    assert len(taken) <= 3
    results.close()


def test_an_exception_in_map_comes_back_as_itself(cluster, spawn):
    with pytest.raises(NLRLError, match="seed"):
        cluster.map([spawn(Counter)], "refuse", ["user"])


def test_map_without_workers_is_a_fault(cluster):
    with pytest.raises(ValueError, match="no workers"):
        cluster.map([], "square", [1])


def test_what_is_put_arrives_as_its_value(cluster, spawn):
    array = cluster.put(np.ones(1000))
    worker = spawn(Counter, start=cluster.put(4))
    assert worker.call("sum", array).result() == 1000
    assert worker.call("add").result() == 5


def test_a_closed_worker_says_so(spawn):
    worker = spawn(Counter, name="rollout-0")
    worker.close()
    worker.close()
    with pytest.raises(NLRLError, match="'rollout-0' is closed"):
        worker.call("add")


def test_an_inline_worker_closes_its_object_once():
    """One that has processes of its own; a Ray worker's end with it."""
    closed = []

    class Holder:
        def close(self):
            closed.append(self)

    with Cluster("inline") as cluster:
        handle = cluster.spawn(Holder)
        cluster.spawn(Counter)
        handle.close()
        handle.close()
    assert len(closed) == 1


def test_unknown_kinds_are_refused():
    with pytest.raises(NLRLError, match="kind is 'slurm'"):
        Cluster("slurm")  # type: ignore[arg-type]


def test_inline_needs_no_ray():
    code = (
        "import sys; from nlrl.orchestration.cluster import Cluster; Cluster('inline'); assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- Ray only ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def ray_worker(ray_cluster):
    worker = ray_cluster.spawn(Counter, name="rollout-3", num_cpus=2)
    yield worker
    worker.close()


def test_a_killed_worker_is_named_and_the_way_on_is_shown(ray_cluster, ray_worker):
    pid, _ = ray_worker.call("where").result()
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(NLRLError, match=r"'rollout-3' died .*rerun the same command") as death:
        ray_cluster.map([ray_worker], "square", range(3))
    assert "\n" not in str(death.value)


def test_a_restarted_worker_answers_again(ray_cluster):
    worker = ray_cluster.spawn(Counter, ray_cluster.put(4), step=ray_cluster.put(2), max_restarts=1, name="rollout-7")
    pid, _ = worker.call("where").result()
    assert victims(os.getpid())["rollout"] == [pid]
    os.kill(pid, signal.SIGKILL)
    assert worker.call("add").result(timeout=60) == 6
    worker.close()


def test_a_process_that_has_lost_its_raylet_cannot_go_on_and_says_how(ray_worker, monkeypatch):
    """It raises what makes a worker end itself, so that Ray gives its work to another."""
    import ray

    def gone(*args, **options):
        raise ConnectionResetError("Connection reset by peer")

    future = ray_worker.call("add")
    monkeypatch.setattr(ray, "get", gone)
    monkeypatch.setattr(ray, "wait", gone)
    for use in (future.result, lambda: first_done([future])):
        with pytest.raises(Unusable, match=r"'raylet', died .*rerun the same command"):
            use()


def test_a_slow_item_does_not_hold_up_the_others(ray_cluster):
    workers = [ray_cluster.spawn(Counter, num_cpus=0.5) for _ in range(2)]
    order = [index for index, _ in ray_cluster.map_unordered(workers, "slow_square", range(6), max_in_flight=1)]
    assert sorted(order) == list(range(6))
    assert order[-1] == 0
    for worker in workers:
        worker.close()


class Meeting:
    """Calls that end only when as many of them run at once as there are places."""

    def __init__(self, places):
        self._met = threading.Barrier(places)

    def attend(self):
        return self._met.wait(timeout=20)


def test_calls_of_a_worker_made_for_it_run_at_once(ray_cluster):
    worker = ray_cluster.spawn(Meeting, 3, num_cpus=0, concurrency=3)
    assert sorted(ray_cluster.gather([worker.call("attend") for _ in range(3)])) == [0, 1, 2]
    worker.close()


def test_one_look_finds_all_that_is_done(ray_cluster):
    worker, asleep = (ray_cluster.spawn(Counter, num_cpus=0) for _ in range(2))
    futures = [worker.call("square", n) for n in range(5)]
    ray_cluster.gather(futures)
    late = asleep.call("slow_square", 0)
    assert set(first_done([*futures, late], block=False)) == set(futures)
    assert first_done([late]) == [late]
    worker.close()
    asleep.close()


def test_a_late_answer_is_a_timeout(ray_worker):
    with pytest.raises(TimeoutError, match="rollout-3"):
        ray_worker.call("slow_square", 0).result(timeout=0.01)


def test_threads_can_be_chosen(ray_cluster):
    worker = ray_cluster.spawn(Counter, threads=3)
    assert worker.call("where").result()[1] == "3"
    worker.close()


@pytest.mark.parametrize(
    ("wanted", "message"), [({"num_cpus": 100}, "needs 100 CPU"), ({"num_gpus": 9}, "needs 9 GPU")]
)
def test_what_the_machine_lacks_is_refused_instead_of_awaited(ray_cluster, wanted, message):
    with pytest.raises(NLRLError, match=f"'big' {message}"):
        ray_cluster.spawn(Counter, name="big", **wanted)


def test_a_cluster_that_is_already_there_is_used_and_left_running(ray_cluster):
    import ray

    with Cluster("ray") as second:
        assert second.spawn(Counter).call("add").result() == 1
    assert ray.is_initialized()


_JOB = """
import os, sys
os.environ["RAY_ADDRESS"] = sys.argv[1]
from nlrl.errors import NLRLError
from nlrl.orchestration.cluster import Cluster, first_done
class Worker:
    def node(self):
        import ray
        return ray.get_runtime_context().gcs_address
try:
    with Cluster("ray", num_cpus=1) as cluster:
        print(cluster.spawn(Worker, num_cpus=0.1).call("node").result())
except NLRLError as error:
    print("refused:", error)
"""


def run_as_job(address):
    child = subprocess.run(
        [sys.executable, "-c", _JOB, address], capture_output=True, text=True, timeout=120, check=True
    )
    return child.stdout.strip()


def test_inside_a_job_the_job_s_cluster_is_used(ray_cluster):
    import ray

    address = ray.get_runtime_context().gcs_address
    assert run_as_job(address) == address


def test_an_address_for_submitting_jobs_is_explained():
    assert "ray job submit" in run_as_job("http://127.0.0.1:8265")


def test_a_ray_that_does_not_start_is_tried_once_more_and_then_one_error(monkeypatch):
    import ray

    tried = []

    def never(*args, **named):
        tried.append(named)
        raise Exception("The current node timed out during startup.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, stub in (("init", never), ("is_initialized", lambda: False), ("shutdown", lambda: None)):
        monkeypatch.setattr(ray, name, stub)  # other tests of this file may have a Ray that lives on
    with pytest.raises(NLRLError, match=r"Ray did not start on this machine: The current node timed out.*inline"):
        Cluster("ray", "local")
    assert len(tried) == 2
