"""`nlrl bench load`: what one actor does, and many against one engine."""

import json
import os
import random

import pytest

from nlrl.benchmarks import load
from nlrl.benchmarks.load_actor import measure_actor
from nlrl.benchmarks.processes import Watch, parent, resident, slope


def test_one_actor_has_rates_beside_the_rules_alone():
    found = measure_actor("breakthrough(columns=4,rows=4)", games=8, rounds=3)
    assert found["turns"] > 3 * 8
    rate = found["turns_per_cpu_second"]
    assert 0 < rate["least"] <= rate["median"] <= rate["most"]
    assert found["rules_over_actor"] > 1
    assert found["record_bytes_per_turn"] > 50


def test_a_load_of_scripted_answers_is_reported(tmp_path, capsys):
    given = "--cluster inline --kind scripted --model nlrl.testing.instant --game breakthrough(columns=4,rows=4)"
    few = "--actors 2 --games 4 --seconds 0.5 --every 0.02 --rounds 1 --straight 20"
    assert load.main([*given.split(), *few.split(), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())["load"]
    assert found["games_finished"] >= 8
    assert found["turns_finished"] > found["games_finished"]
    assert 0 < found["latency_server_ms"]["p50"] <= found["latency_server_ms"]["p99"]
    assert found["latency_actor_ms"]["requests"] > 0
    assert found["memory"]["driver"]["last"] > 10
    assert "games finished and written" in capsys.readouterr().out


def test_a_real_engine_says_how_busy_it_was(tmp_path):
    few = "--cluster inline --actors 1 --games 4 --seconds 2 --every 0.05 --straight 8"
    options = load.parse(few.split(" "))
    found = load.figures(options, load.run_load(options, tmp_path))
    assert 0 < found["engine_busy"] <= 1
    assert found["overhead"] == pytest.approx(1 - found["engine_busy"])
    assert found["queue"]["most"] <= found["queue"]["bound"] == 4
    assert found["straight"]["tokens_per_cpu_second"] > 0
    assert len((tmp_path / "games.jsonl").read_text().splitlines()) == found["games_finished"]


def test_a_slope_is_found_with_an_interval_that_holds_it():
    rng = random.Random(0)
    seconds = [i * 0.6 for i in range(500)]  # five minutes
    rising = slope(seconds, [100 + 2 * s / 60 + rng.gauss(0, 1) for s in seconds])
    flat = slope(seconds, [100 + rng.gauss(0, 1) for _ in seconds])
    assert rising is not None
    assert flat is not None
    assert rising.low < 2 < rising.high
    assert rising.low > 1
    assert flat.low < 0 < flat.high
    assert slope([0, 1], [1, 1]) is None


def test_memory_of_processes_is_sampled_while_it_is_watched():
    with Watch({"mine": [os.getpid()], "nobody": [2**22 + 1]}, every=0.01) as watch:
        while len(watch.seconds) < 3:
            pass
    assert min(watch.bytes["mine"]) > 1 << 20
    assert set(watch.bytes["nobody"]) == {0}
    assert resident(parent(os.getpid())) > 0
