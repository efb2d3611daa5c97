"""The benchmark of threads that wait for each other."""

from __future__ import annotations

import json

import pytest

from nlrl.benchmarks import threads


@pytest.mark.parametrize(
    ("spins", "expected"),
    [("default", {}), ("2000", {"GOMP_SPINCOUNT": "2000"}), ("passive", {"OMP_WAIT_POLICY": "PASSIVE"})],
)
def test_processes_wait_as_asked_whatever_the_shell_says(monkeypatch, spins, expected):
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    found = threads.environment(spins)
    assert {key: found[key] for key in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY") if key in found} == expected
    assert found["PATH"]


def test_one_process_and_two_are_measured(tmp_path, capsys):
    out = tmp_path / "threads.json"
    threads.main(["--spins", "2000", "--threads", "1", "--seconds", "0.1", "--rounds", "1", "--json", str(out)])
    rates = json.loads(out.read_text())["tokens_per_second"]["2000"]
    assert [len(rates[n][0]) for n in ("1", "2")] == [1, 2]
    assert all(rate > 0 for n in rates.values() for found in n for rate in found)
    assert "2000 spins: alone 1.00" in capsys.readouterr().out
