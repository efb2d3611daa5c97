"""`nlrl bench transfer` prints what a transfer of weights takes and what the check after it finds."""

import json

from nlrl.benchmarks import transfer


def test_both_ways_are_timed_and_the_transfer_is_checked(capsys, tmp_path):
    out = tmp_path / "figures.json"
    assert transfer.main(["--inline", "--rounds", "1", "--threads", "1", "--json", str(out)]) == 0
    lines = capsys.readouterr().out
    assert all(part in lines for part in (*transfer.WAYS, "taken", "installed", "answered"))
    figures = {figure["name"]: figure for figure in json.loads(out.read_text())["figures"]}
    assert all(figures[way]["value"] > 0 for way in transfer.WAYS)
    assert figures["KL(engine, trainer), 1e-12 nats a token"]["value"] < 1e4
    assert figures["largest difference of a log-probability, 1e-6"]["value"] < 100
