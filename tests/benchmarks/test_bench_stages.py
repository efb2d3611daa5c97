"""`nlrl bench stages` prints what stages took beside a model that answers at once."""

from nlrl.benchmarks import stages


def test_every_stage_gets_a_line_for_each_number_of_workers(capsys):
    few = ["--inline", "--rounds", "1", "--games", "4", "--states", "2", "--stages", "targets", "improvement"]
    assert stages.main([*few, "--workers", "1", "2"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [[s, w] for s in ("improvement", "targets") for w in "12"]
    assert all("texts/s" in line and not line.split("(s)")[1].startswith("  0 ") for line in lines)
