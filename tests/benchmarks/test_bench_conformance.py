"""`nlrl bench conformance` asks what is installed, and its stored answers print as a table."""

import json
from pathlib import Path

import pytest

from nlrl.benchmarks import conformance
from nlrl.benchmarks.conformance_ours import BreakthroughEnv
from nlrl.envs import make_from_spec

RESULTS = Path(conformance.__file__).parent / "results"


def test_it_asks_what_is_chosen_and_writes_what_it_prints(tmp_path, capsys):
    file = tmp_path / "found.json"
    conformance.main(["--only", "nlrl tictactoe", "--out", str(file)])
    printed = capsys.readouterr().out
    found = json.loads(file.read_text())
    assert [result["environment"] for result in found["results"]] == ["nlrl tictactoe"]
    assert {check["ok"] for check in found["results"][0]["checks"]} == {True, None}
    conformance.main(["--read", str(file)])
    assert capsys.readouterr().out in printed


def test_through_gymnasium_the_last_observation_survives(tmp_path, capsys):
    file = tmp_path / "found.json"
    conformance.main(["--only", "gymnasium nlrl/TicTacToe-v0", "--out", str(file)])
    (result,) = json.loads(file.read_text())["results"]
    answers = {check["promise"]: check["ok"] for check in result["checks"]}
    assert answers["the terminal observation survives auto-reset"] is True
    assert False not in answers.values()


def test_openspiel_is_the_second_opinion_on_breakthrough():
    env = BreakthroughEnv(make_from_spec("breakthrough(rows=8,columns=8)"))
    env.reset(0)
    assert set(env.legal_by_the_rules()) == set(env.moves())
    assert len(env.moves()) == 22


def test_the_stored_answers_print_as_a_table(capsys):
    """Every environment of ours keeps every promise, and what the peers break is said in words."""
    newest = max(RESULTS.glob("conformance_*.json"))
    conformance.main(["--read", str(newest)])
    lines = capsys.readouterr().out.splitlines()
    ours = [line for line in lines if line.startswith(("nlrl ", "gymnasium nlrl/"))]
    assert len(ours) == 9
    assert not any("FAILS" in line for line in ours)
    results = json.loads(newest.read_text())["results"]
    broken = [check["message"] for result in results for check in result["checks"] if check["ok"] is False]
    assert sum(line.count("FAILS") for line in lines) == len(broken) > 0
    assert not any("raised" in message for message in broken)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["textarena", "gem"])
def test_peers_can_be_asked_where_they_are_installed(package, capsys):
    pytest.importorskip(package)
    conformance.main(["--only", f"{package} "])
    assert "raised" not in capsys.readouterr().out
