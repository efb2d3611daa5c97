"""Importing `nlrl.envs` tells other libraries the games' names, whenever those libraries are imported."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("imports", ["import nlrl.envs, pyspiel", "import pyspiel, nlrl.envs"])
def test_games_load_by_name_in_either_order_of_imports(imports):
    check = "assert pyspiel.load_game('nlrl_breakthrough(rows=5,columns=5)').rules.rows == 5"
    subprocess.run([sys.executable, "-W", "error", "-c", f"{imports}\n{check}"], check=True, timeout=60)


def test_importing_envs_imports_no_library_and_its_watch_ends_when_they_are_imported():
    code = """
import importlib.util, sys, nlrl.envs
assert importlib.util.find_spec("pyspiel") and not importlib.util.find_spec("no_such_module")
assert not {"numpy", "numba", "pyspiel", "gymnasium", "pettingzoo"} & set(sys.modules)
import pyspiel, gymnasium
assert "exec_module" not in vars(pyspiel.__loader__)
assert not [finder for finder in sys.meta_path if "nlrl.envs" in type(finder).__module__]
assert "nlrl/Maze-v0" in gymnasium.registry
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_several_watches_for_one_library_do_not_get_into_each_others_way():
    code = """
import sys, nlrl.envs
from nlrl.envs import adapters
adapters.register_when_imported()
watchers = [finder for finder in sys.meta_path if isinstance(finder, adapters._Watcher)]
assert sorted(watcher.library for watcher in watchers) == ["gymnasium", "pyspiel"], watchers
sys.meta_path.insert(0, adapters._Watcher("pyspiel"))  # as a reloaded module would
import pyspiel
assert "exec_module" not in vars(pyspiel.__loader__)
assert pyspiel.load_game("nlrl_maze")
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_a_library_can_be_imported_even_if_its_adapter_fails():
    code = """
import sys, warnings, nlrl.envs
sys.modules["nlrl.envs.adapters.openspiel"] = None
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import pyspiel
assert pyspiel.load_game("tic_tac_toe")
assert "not registered with pyspiel" in str(caught[0].message), caught
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
