"""`nlrl bench kills` kills, compares, and fails if anything differs."""

from __future__ import annotations

import json

from nlrl.benchmarks import kills


def test_a_run_that_differs_is_told_and_fails(tmp_path, monkeypatch, capsys):
    compared = []
    monkeypatch.setattr(kills, "differences", lambda *folders: compared.append(folders) or ["a record is gone"])
    report = tmp_path / "kills.json"
    assert kills.main(["--kills", "1", "--scenes", "inline", "--out", str(report)]) == 1
    found = json.loads(report.read_text())
    assert (found["kills"], found["runs"], found["runs_equal"]) == (1, 1, 0)
    assert found["problems"] == ["run 0 (inline): a record is gone"]
    assert "DIFFERS" in capsys.readouterr().out
    ((folder, reference),) = compared
    assert folder != reference
