"""The plugin as other projects meet it: a pytest of their own, in a folder of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

DOCS = Path(__file__).resolve().parents[2] / "docs" / "testing.md"
BLOCKS = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def test_a_project_that_uses_no_fixture_notices_nothing(pytester):
    pytester.makepyfile(
        """
        import sys

        def test_nothing_was_imported():
            heavy = {"torch", "ray", "transformers", "numpy", "nlrl.testing.models", "nlrl.orchestration"}
            assert not heavy & sys.modules.keys()
        """
    )
    pytester.runpytest_subprocess("-p", "no:hypothesispytest").assert_outcomes(passed=1)


def test_the_fixtures_are_listed_with_what_they_do(pytester):
    listed = pytester.runpytest_subprocess("--fixtures").stdout.str()
    for name, words in {
        "scripted_model": "answers by rules",
        "faulty_model": "wrong in chosen ways",
        "scripted_game": "tiny game from data",
        "nlrl_run_dir": "run folder with made-up content",
    }.items():
        assert re.search(rf"^{name}\b.*(\n .*)*{words}", listed, re.MULTILINE), name


def test_the_plugin_can_be_left_out(pytester):
    pytester.makepyfile("def test_it(scripted_model): ...")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    pytester.runpytest_subprocess("-p", "no:nlrl").assert_outcomes(errors=1)


def test_run_folders_of_one_test_do_not_meet(pytester):
    pytester.makepyfile(
        """
        def test_two(nlrl_run_dir):
            first, second = nlrl_run_dir(), nlrl_run_dir(name="second")
            assert first != second and first.parent == second.parent

        def test_another(nlrl_run_dir):
            assert [path.name for path in nlrl_run_dir().parent.iterdir()] == ["run"]
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=2)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_code_block_of_the_page_is_true(pytester, number):
    pytester.makepyfile(BLOCKS[number])
    result = pytester.runpytest("-p", "no:cacheprovider")
    assert result.parseoutcomes().keys() == {"passed"}, result.stdout.str()


def test_the_page_has_code_for_every_fixture():
    assert len(BLOCKS) >= 5
    for fixture in ("scripted_model", "faulty_model", "scripted_game", "nlrl_run_dir"):
        assert any(fixture in block for block in BLOCKS), fixture


def test_names_are_imported_on_first_use_and_unknown_ones_refused():
    code = """
import sys, nlrl.testing as t
assert "nlrl.testing.models" not in sys.modules
assert all(getattr(t, name).__name__ == name for name in t.__all__)
try: t.NoSuchThing
except AttributeError as error: assert "NoSuchThing" in str(error)
else: raise SystemExit("no error")
assert not {"torch", "ray", "transformers"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
