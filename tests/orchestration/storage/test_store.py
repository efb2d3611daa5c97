"""Stores: objects put whole, created once, found again after trouble."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.store import Store, cache_folder, is_url


def test_objects_are_put_read_listed_and_removed(url, tmp_path):
    store = Store(url)
    assert store.sizes() == {}
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    store.put(tmp_path / "big", "a/big")
    store.write("a/small", b"1")
    store.write("a/small", b"22")
    assert store.sizes() == {"a/big": 100_000, "a/small": 2}
    assert store.sizes("a") == store.sizes()
    assert store.read("a/small") == b"22"
    assert b"".join(store.stream("a/big")) == b"x" * 100_000
    assert store.get("a/big", tmp_path / "copy") == hashlib.sha256(b"x" * 100_000).hexdigest()
    store.remove(["a/big", "a/small"])
    assert store.sizes() == {}
    with pytest.raises(FileNotFoundError):
        store.read("a/small")


def test_what_changed_is_told_from_what_did_not(url):
    store = Store(url)
    store.write("one", b"1")
    before = store.infos()["one"]["mark"]
    assert store.infos()["one"]["mark"] == before != ""
    store.write("one", b"2")
    assert store.infos()["one"]["mark"] != before


def test_of_many_writers_exactly_one_creates_an_object(url):
    answers: list[bool] = []
    stores = [Store(url) for _ in range(8)]
    start = threading.Barrier(len(stores))

    def race(number: int) -> None:
        start.wait()
        answers.append(stores[number].create("manifest", b"%d" % number))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(stores))]
    if url.startswith("memory"):  # fsspec's own is for one thread
        threads = threads[:1]
        start = threading.Barrier(1)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.count(True) == 1
    winner = stores[0].read("manifest")
    assert stores[0].create("manifest", winner), "the same bytes are what the store holds"
    assert not stores[0].create("manifest", b"other")
    assert stores[0].read("manifest") == winner


def test_a_file_is_put_only_where_nothing_is(url, tmp_path):
    store, path = Store(url), tmp_path / "file"
    path.write_bytes(b"first")
    assert store.put_new(path, "x")
    path.write_bytes(b"other")
    assert not store.put_new(path, "x")
    assert store.read("x") == b"first"


def test_a_store_without_exclusive_creation_is_written_and_read_back(url, tmp_path, monkeypatch):
    monkeypatch.setattr("nlrl.orchestration.store._takes_mode", lambda fs, method: False)
    monkeypatch.setattr("nlrl.orchestration.store.SETTLE", 0.0)
    store = Store(url)
    store._is_folder = False
    Path(tmp_path / "store" / "run").mkdir(parents=True)
    assert store.create("x", b"1")
    assert not store.create("x", b"2")
    assert store.read("x") == b"1"


class Flaky:
    """A file system whose network fails for some calls."""

    def __init__(self, fs, failures, error):
        self._fs, self.failures, self._error = fs, failures, error

    def __getattr__(self, name):
        found = getattr(self._fs, name)
        if name not in ("cat_file", "pipe_file", "find", "put_file", "get_file", "exists", "rm"):
            return found

        def call(*args, **kwargs):
            if self.failures:
                self.failures -= 1
                raise self._error
            return found(*args, **kwargs)

        return call


def test_what_fails_is_tried_again(url):
    store = Store(url, pauses=(0.0, 0.0))
    store.write("x", b"1")
    store._fs = Flaky(store._fs, 2, ConnectionError("reset"))
    assert store.read("x") == b"1"
    store._fs.failures = 3
    with pytest.raises(NLRLError, match=r"could not read x: reset"):
        store.read("x")


def test_what_would_fail_again_is_not_tried_again(url):
    store = Store(url, pauses=(0.0, 0.0))
    store._fs = Flaky(store._fs, 1, PermissionError("access denied"))
    with pytest.raises(NLRLError, match=r"refused to read x: access denied"):
        store.read("x")
    with pytest.raises(FileNotFoundError):
        store.read("x")


def test_an_attempt_whose_answer_was_lost_counts_as_made(url, monkeypatch):
    store = Store(url, pauses=(0.0,))
    real, calls = store._exclusively, []

    def losing(what, act):
        calls.append(real(what, act))
        return real(what, act)  # the client's second attempt, after the first one's answer was lost

    monkeypatch.setattr(store, "_exclusively", losing)
    assert store.create("x", b"1")
    assert calls == [True]


def test_a_missing_bucket_and_an_unknown_kind_of_store_are_named(request):
    with pytest.raises(NLRLError, match=r"nosuch://x: this kind of store cannot be reached"):
        Store("nosuch://x")
    request.getfixturevalue("s3")
    with pytest.raises(NLRLError, match="Make the bucket first"):
        Store("s3://absent/run").write("x", b"")


@pytest.mark.parametrize(
    ("place", "expected"),
    [("s3://b/x", True), ("memory://x", True), ("file:///x", True), ("simplecache::s3://b/x", True)]
    + [(place, False) for place in ("runs/x", "/abs/x", "s3:/b/x", "./s3", "C:x", Path("s3:/b"))],
)
def test_urls_are_told_from_paths(place, expected):
    assert is_url(place) is expected


def test_local_copies_lie_where_the_url_says(tmp_path):
    assert cache_folder("s3://b/runs/x", tmp_path) == tmp_path / "s3/b/runs/x"
    assert cache_folder("file:///data//runs/x/", tmp_path) == tmp_path / "file/data/runs/x"
    assert cache_folder("s3://b/a b?c", tmp_path) == tmp_path / "s3/b/a_b_c"
    with pytest.raises(NLRLError, match=r"no '.' or '..'"):
        cache_folder("s3://b/../../etc", tmp_path)


def test_a_key_in_a_url_is_refused_and_not_repeated(tmp_path):
    for use in (Store, lambda url: cache_folder(url, tmp_path)):
        with pytest.raises(NLRLError, match=r"s3://\.\.\.@b/x: a URL must hold no key") as refused:
            use("s3://AKIA:planted-secret@b/x")
        assert "planted" not in str(refused.value)
