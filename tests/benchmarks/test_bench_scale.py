"""The simulation of many actors: what it must get right where the answer is known, and its programs."""

import json
from dataclasses import replace

import pytest

from nlrl.benchmarks import scale_bill, scale_costs, scale_simulation
from nlrl.benchmarks.scale_events import Plan, rates_of, simulate

PLAN = Plan(
    actors=8,
    engines=2,
    games=10,
    alive=(1.0, 1.0),
    rate={1: 1.0, 10: 10.0, 20: 20.0},
    rows=100,
    turn_s=0.0,
    call_s=0.0,
    game_s=0.0,
    job_s=0.0,
)


# -- the simulation ----------------------------------------------------------------------------------------------------
def test_engines_that_never_wait_give_their_best_rate():
    seen = simulate(replace(PLAN, spread=1), 400)
    assert seen.answered / seen.seconds == pytest.approx(2 * 20, rel=0.03)  # its rate is level beyond 20 at once
    assert seen.engine_busy == pytest.approx(1.0)


def test_a_lone_actor_s_round_is_as_long_as_its_parts():
    plan = replace(PLAN, actors=1, engines=1, turn_s=0.1, call_s=0.25, alive=(1.0,), job_s=2.0, game_s=0.05)
    seen = simulate(plan, 4000)
    job = 10 * 0.1 + 0.25 + 10 / 10 + 0.25 + 2.0 + 10 * 0.05 + 0.25  # compute, ask, write, answer, driver, next
    assert seen.turns_per_second == pytest.approx(10 / job, rel=0.01)
    assert seen.driver_busy == pytest.approx(2.5 / job, rel=0.01)


def test_rows_bound_what_is_written_at_once_and_the_rest_waits():
    seen = simulate(replace(PLAN, rows=10), 400)
    assert seen.answered / seen.seconds == pytest.approx(2 * 10, rel=0.03)
    assert 0 < seen.longest_engine_queue <= 8 * 10 - 2 * 10


def test_a_driver_that_is_full_bounds_the_rate_and_its_queue_is_bounded_by_the_actors():
    seen = simulate(replace(PLAN, job_s=10.0), 4000)
    assert seen.turns_per_second == pytest.approx(20 / 10, rel=0.03)
    assert seen.driver_busy == pytest.approx(1.0, abs=0.01)
    assert 0 < seen.longest_driver_queue < 8


def test_looking_at_all_calls_costs_the_more_the_more_there_are_unless_it_is_shared():
    plan = replace(PLAN, actors=100, engines=50, look_s=0.05)  # five seconds for each job
    alone, shared = simulate(plan, 1000), simulate(replace(plan, batched=True), 100)
    assert alone.turns_per_second == pytest.approx(20 / 5, rel=0.05)
    assert shared.turns_per_second > 20 * alone.turns_per_second


def test_more_drivers_share_the_work():
    one = simulate(replace(PLAN, job_s=10.0), 4000)
    two = simulate(replace(PLAN, job_s=10.0, drivers=2), 4000)
    assert two.turns_per_second == pytest.approx(2 * one.turns_per_second, rel=0.05)


def test_actors_on_one_machine_wait_for_its_cores():
    plan = replace(PLAN, turn_s=1.0, rate={1: 1e6})
    assert simulate(replace(plan, cores=2), 2000).turns_per_second == pytest.approx(2.0, rel=0.05)
    assert simulate(plan, 2000).turns_per_second == pytest.approx(8.0, rel=0.05)


def test_an_actor_that_knows_few_engines_makes_fewer_calls():
    plan = replace(PLAN, actors=20, engines=20)
    all_, few = simulate(plan, 100), simulate(replace(plan, spread=1), 100)
    assert few.engine_calls / few.turns == pytest.approx(0.1)
    assert all_.engine_calls / all_.turns > 0.5


def test_rates_lie_on_lines_between_what_was_measured():
    rates = rates_of({2: 10.0, 4: 30.0}, 6)
    assert rates == pytest.approx([0.0, 5.0, 10.0, 20.0, 30.0, 30.0, 30.0])


# -- the programs ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def costs(tmp_path_factory):
    path = tmp_path_factory.mktemp("costs") / "costs.json"
    few = ["--game", "breakthrough(columns=4,rows=4)", "--games", "40", "--rounds", "1", "--engine", "", "--waiting"]
    assert scale_costs.main([*few, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    found["ray"] = {"call_s": 1e-4, "call_alone_s": 1e-3, "job_s": 1e-2, "request_s": 1e-4, "look_s": {"1000": 1e-3}}
    path.write_text(json.dumps(found))
    return path


def test_costs_are_positive_and_named_with_their_unit(costs):
    driver = json.loads(costs.read_text())["driver"]
    assert all(value > 0 for value in driver.values())
    seconds = {name for name in driver if name.endswith("_s")}
    assert seconds == {f"{name}_s" for name in ("task", "unpack", "write", "note", "owed", "read_ledger", "commit")}
    assert 1 < driver["turns_per_game"] < 10


def test_an_engine_s_rates_are_measured_by_rows(monkeypatch):
    monkeypatch.setattr(scale_costs, "ROWS", (1, 2))
    found = scale_costs.engine_costs("transformer-base", "tictactoe", 0.2)
    assert set(found["answers_per_cpu_second"]) == {1, 2}
    assert found["tokens_per_answer"] > 3


def test_figures_at_size_are_written_and_drawn(costs, tmp_path, capsys):
    few = ["--no-validate", "--scale", "16", "32", "--simulated", "30", "--game", "breakthrough(columns=4,rows=4)"]
    out, picture = tmp_path / "found.json", tmp_path / "scale.png"
    assert scale_simulation.main([*few, "--costs", str(costs), "--json", str(out), "--picture", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert [row["actors"] for row in found["at_size"]] == [16] * 4 + [32] * 4
    full = found["driver_is_full_at_actors"]
    assert full["as it was"] < full["one look for all that is done"] < full["actors write their own shards"]
    assert picture.stat().st_size > 1000
    assert "32 actors" in capsys.readouterr().out


def test_what_a_run_asks_is_compared_with_what_is_predicted(costs, monkeypatch):
    found = json.loads(costs.read_text())
    options = scale_simulation._options(["--games", "4", "--seconds", "0.4"])
    given = scale_simulation.load.parse
    monkeypatch.setattr(scale_simulation.load, "parse", lambda argv: given([*argv, "--cluster", "inline"]))
    instant = ("scripted", "nlrl.testing.instant", "breakthrough(columns=4,rows=4)", {1: 1e4})
    row = scale_simulation._compared(found, options, 1, *instant)
    assert row["measured_requests_per_second"] > 0
    assert row["error"] == pytest.approx(row["predicted_requests_per_second"] / row["measured_requests_per_second"] - 1)


def test_a_bill_grows_with_the_turns_and_asks_for_a_price(costs, tmp_path, capsys):
    bills = []
    for turns in ("1e6", "2e6"):
        out = tmp_path / f"{turns}.json"
        few = ["--turns", turns, "--days", "1", "--price", "3", "--costs", str(costs), "--json", str(out)]
        assert scale_bill.main(few) == 0
        bills.append(json.loads(out.read_text()))
    hours = [bill["GPU hours, at least"]["all"] for bill in bills]
    assert hours[1] == pytest.approx(2 * hours[0], rel=0.01)
    assert bills[0]["cost at the price"]["all"] == pytest.approx(3 * hours[0])
    assert bills[0]["GPUs for that many days"] == pytest.approx(hours[0] / 24)
    parts = [value for name, value in bills[0]["GPU hours, at least"].items() if name != "all"]
    assert sum(parts) == pytest.approx(hours[0])
    assert "resuming" in capsys.readouterr().out
