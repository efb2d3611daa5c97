"""A folder of objects in any store that fsspec reaches: `s3://bucket/runs/x`, `gs://`, `abfs://`, `memory://`, `file://`.

1. Objects are put whole and named by paths relative to the store's URL.
2. `create` puts an object only if there is none of that name: the one operation that two writers cannot both win. S3,
   Google and Azure do it by a conditional put, a folder by a hard link. Where a store has no such operation, the object
   is put and read back after a moment, which tells all but writers that collide within that moment.
3. What fails is tried again with growing pauses. A store that stays unreachable is an `NLRLError`; so is one that
   refuses. An object that is missing is an answer, and raises FileNotFoundError.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from nlrl.errors import NLRLError
from nlrl.orchestration.atomic import TEMP_PREFIX, atomic_path

T = TypeVar("T")
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts; S3's client has attempts of its own below these."""
SETTLE = 2.0
"""Seconds after which an object is read back where a store cannot create exclusively."""
CHUNK = 8 * 2**20
"""Bytes held at a time when an object is read as a stream."""
_ANSWERS = (FileNotFoundError, FileExistsError)
_FINAL = (PermissionError, NotImplementedError, TypeError, ImportError, IsADirectoryError, NotADirectoryError)
"""Errors that another attempt would not mend."""
_MARKS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
"""Fields by which stores say that an object has changed."""
_log = logging.getLogger(__name__)


def is_url(place: object) -> bool:
    """Whether a place is in a store rather than a folder: `s3://...`, or fsspec's chained `x::s3://...`."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)", str(place)) is not None


def cache_folder(url: str, cache: str | Path | None = None) -> Path:
    """Where the local copy of what lies at a URL is kept: `CACHE/s3/bucket/runs/x`.

    Args:
        cache: the folder of all copies; `runs` in `$NLRL_CACHE`, else in `~/.cache/nlrl`, if not given.
    """
    _refuse_keys(url)
    root = cache or Path(os.environ.get("NLRL_CACHE") or Path.home() / ".cache" / "nlrl") / "runs"
    parts = [re.sub(r"[^\w.=+@-]", "_", part) for part in re.split(r"/+|::", url) if part]
    if ".." in parts or "." in parts:
        raise NLRLError(f"{url}: a store's URL has no '.' or '..' in it; write where it leads")
    return Path(root).expanduser().joinpath(parts[0].rstrip("_"), *parts[1:])


class Store:
    """The objects under one URL.

    Args:
        pauses: seconds between attempts.

    Raises:
        NLRLError: on opening, no such kind of store, or its package is missing.
    """

    def __init__(self, url: str, pauses: Iterable[float] | None = None):
        _refuse_keys(url)
        self.url = url.rstrip("/")
        self.pauses = tuple(PAUSES if pauses is None else pauses)
        self._fs, root = _opened(self.url)
        self._root = root.rstrip("/")
        self._is_folder = "file" in _protocols(self._fs)

    # -- reading -------------------------------------------------------------------------------------------------------
    def sizes(self, within: str = "") -> dict[str, int]:
        """Bytes of every object below a folder of the store, by name; empty where there is none."""
        return {name: info["size"] for name, info in self.infos(within).items()}

    def infos(self, within: str = "") -> dict[str, dict[str, Any]]:
        """What the store says of each object: `size`, and `mark`, a text that changes when the object does."""

        def find() -> dict[str, Any]:
            self._fs.invalidate_cache()
            return self._fs.find(self._at(within), detail=True)

        try:
            found = self._try(f"list {within or 'it'}", find)
        except FileNotFoundError:
            return {}
        named = {path[len(self._root) :].lstrip("/"): info for path, info in found.items()}
        return {
            name: {"size": info.get("size") or 0, "mark": _mark(info)}
            for name, info in sorted(named.items())
            if info.get("type") != "directory" and not name.rpartition("/")[2].startswith(TEMP_PREFIX)
        }

    def read(self, name: str) -> bytes:
        """An object's bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._try(f"read {name}", lambda: self._fs.cat_file(self._at(name)))

    def get(self, name: str, path: Path) -> str:
        """Copies an object to a file, which appears whole; returns its sha256.

        Raises:
            FileNotFoundError: there is no such object.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path) as temp:
                self._try(f"read {name}", lambda: self._fs.get_file(self._at(name), str(temp)))
                with open(temp, "rb") as file:
                    return hashlib.file_digest(file, "sha256").hexdigest()
        except NLRLError as error:  # a file that cannot be written, as it looks from there
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise

    def stream(self, name: str) -> Iterator[bytes]:
        """An object's bytes piece by piece; nothing is kept."""
        with self._try(f"read {name}", lambda: self._fs.open(self._at(name), "rb", block_size=CHUNK)) as file:
            while piece := self._try(f"read {name}", lambda: file.read(CHUNK)):
                yield piece

    # -- writing -------------------------------------------------------------------------------------------------------
    def write(self, name: str, data: bytes) -> None:
        """Puts an object, whether or not there is one."""
        self._try(f"write {name}", lambda: self._pipe(name, data))

    def put(self, path: Path, name: str) -> None:
        """Puts a file's bytes, whether or not there is an object of that name."""
        self._try(f"write {name}", lambda: self._put(path, name))

    def put_new(self, path: Path, name: str) -> bool:
        """Puts a file's bytes unless there is an object of that name; whether it was put. (Where a store cannot do so
        for files, it looks first.)"""
        if _takes_mode(self._fs, "put_file"):
            return self._exclusively(
                f"write {name}", lambda: self._fs.put_file(str(path), self._at(name), mode="create")
            )
        if self._try(f"look for {name}", lambda: self._fs.exists(self._at(name))):
            return False
        self.put(path, name)
        return True

    def create(self, name: str, data: bytes) -> bool:
        """Puts an object if there is none of that name. Whether the store now holds these very bytes: of several
        writers with different ones, one is told True."""
        if self._is_folder:
            made = self._exclusively(f"write {name}", lambda: self._link(name, data))
        elif _takes_mode(self._fs, "pipe_file"):
            made = self._exclusively(f"write {name}", lambda: self._fs.pipe_file(self._at(name), data, mode="create"))
        else:
            made = self._put_and_look(name, data)
        return made or self.read(name) == data  # an attempt whose answer was lost may have made it

    def remove(self, names: Iterable[str]) -> None:
        """Removes objects; those that are gone already are no error."""
        if paths := [self._at(name) for name in names]:
            with suppress(FileNotFoundError):
                self._try(f"remove {len(paths)} objects", lambda: self._fs.rm(paths))

    # -- machinery -----------------------------------------------------------------------------------------------------
    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _try(self, what: str, act: Callable[[], T]) -> T:
        for pause in (*self.pauses, None):
            try:
                return act()
            except (*_ANSWERS, *_FINAL) as error:
                if isinstance(error, FileNotFoundError) and "bucket" in str(error) and "specified" in str(error):
                    raise NLRLError(f"{self.url}: {error}. Make the bucket first") from error
                if isinstance(error, _ANSWERS):
                    raise
                raise NLRLError(f"{self.url}: refused to {what}: {error or type(error).__name__}") from error
            except Exception as error:  # each store's client has its own classes
                if pause is None:
                    raise NLRLError(f"{self.url}: could not {what}: {error or type(error).__name__}") from error
                _log.warning("%s: could not %s (%s); trying again in %g s", self.url, what, error, pause)
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _exclusively(self, what: str, act: Callable[[], Any]) -> bool:
        try:
            self._try(what, act)
        except FileExistsError:
            return False
        return True

    def _pipe(self, name: str, data: bytes) -> None:
        if self._is_folder:
            with atomic_path(self._made_path(name)) as temp:
                temp.write_bytes(data)
        else:
            self._fs.pipe_file(self._at(name), data)

    def _put(self, path: Path, name: str) -> None:
        if self._is_folder:
            with atomic_path(self._made_path(name)) as temp:
                self._fs.get_file(str(path), str(temp))
        else:
            self._fs.put_file(str(path), self._at(name))

    def _made_path(self, name: str) -> Path:
        path = Path(self._at(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _link(self, name: str, data: bytes) -> None:
        """A name that exists is never linked over; the bytes are whole before they have it."""
        path = self._made_path(name)
        temp = path.with_name(f"{TEMP_PREFIX}{secrets.token_hex(8)}")
        try:
            temp.write_bytes(data)
            os.link(temp, path)
        finally:
            temp.unlink(missing_ok=True)

    def _put_and_look(self, name: str, data: bytes) -> bool:
        if self._try(f"look for {name}", lambda: self._fs.exists(self._at(name))):
            return False
        self.write(name, data)
        time.sleep(SETTLE)
        return self.read(name) == data


def _refuse_keys(url: str) -> None:
    """A URL goes into configs, logs and records; a key must not."""
    if re.search(r"://[^/@]*:[^/@]*@", url):
        shown = re.sub(r"://[^/@]*@", "://...@", url)
        raise NLRLError(f"{shown}: a URL must hold no key; set the store's own variables in the environment instead")


def _opened(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # 0.1 s that runs in folders need not pay

    try:
        return url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        hint = ": pip install 's3fs'" if url.startswith(("s3:", "s3a:")) else ""
        raise NLRLError(f"{url}: this kind of store cannot be reached: {error}{hint}") from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _takes_mode(fs: Any, method: str) -> bool:
    """Whether a file system's own `method` knows mode="create"; fsspec's default only looks first and then writes."""
    from fsspec.spec import AbstractFileSystem

    own = getattr(fs, f"_{method}", None) or getattr(fs, method)
    if getattr(own, "__func__", None) is getattr(AbstractFileSystem, method):
        return False
    return "mode" in inspect.signature(own).parameters


def _mark(info: dict[str, Any]) -> str:
    return " ".join(str(info[field]) for field in _MARKS if info.get(field))
