"""The games in other people's libraries: `openspiel`, `gymnasium` and `pettingzoo`, one module each.

OpenSpiel and Gymnasium make games by name, so they must be told the names. Importing `nlrl.envs.adapters.openspiel` or
`nlrl.envs.adapters.gymnasium` does that. `import nlrl.envs` does it too, without importing either library: for one that
is imported already at once, for one that is imported later at that moment.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_ADAPTERS = {"pyspiel": "nlrl.envs.adapters.openspiel", "gymnasium": "nlrl.envs.adapters.gymnasium"}


def register_when_imported() -> None:
    """Tells each library the names of the games, now or as soon as it is imported."""
    for library in _ADAPTERS:
        if library in sys.modules:
            _register(library)
        elif not any(isinstance(finder, _Watcher) and finder.library == library for finder in sys.meta_path):
            sys.meta_path.insert(0, _Watcher(library))


def _register(library: str) -> None:
    """Warns where it fails: whoever imports a library must get it, whatever ails its adapter."""
    try:
        import_module(_ADAPTERS[library])
    except Exception as error:
        warnings.warn(f"nlrl's games are not registered with {library}: {error!r}", RuntimeWarning, stacklevel=2)


class _Watcher:
    """A finder that finds what the others find, and sees to it that the games are registered once `library` has run."""

    def __init__(self, library: str):
        self.library = library
        self._busy = False

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        if name != self.library or self._busy:  # another finder may ask all finders too
            return None
        self._busy = True
        try:
            others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
            specs = (finder.find_spec(name, path, target) for finder in others)
            spec = next((spec for spec in specs if spec is not None), None)
        finally:
            self._busy = False
        if spec is not None and spec.loader is not None:
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
            run(module)
            _register(self.library)

        loader.exec_module = exec_module
