"""Prioritised replay: what each term does, who gets how many places, and that weights make up for the odds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from itertools import chain

import pytest

from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.config import RunConfig, TrainConfig, validated
from nlrl.orchestration.loop import run
from nlrl.orchestration.overrides import overridden
from nlrl.orchestration.replay import (
    FLOOR,
    Chosen,
    Item,
    ReplayConfig,
    allocated,
    choose,
    deduplicated,
    drawn,
    inclusion_odds,
    limited,
    priorities,
    told,
)
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import run_targets
from nlrl.orchestration.stages.training import reach, run_actor, run_critic


def config(**values):
    """Prioritised, with every term off that is not named."""
    off = {"disagreement": 0.0, "staleness": 0.0, "novelty": 0.0, "newest_share": 0.0, "importance": 0.0}
    return ReplayConfig(kind="prioritised", **off | values)


def items(iteration, count, **values):
    """Different texts about different things."""
    return [Item(f"state {i}", i, f"text {iteration}.{i}", iteration, **values) for i in range(count)]


# -- priorities --------------------------------------------------------------------------------------------------------
def test_without_any_term_all_items_are_equally_likely():
    mixed = [Item("s", 1, "a", 1, 1.0, -1.0), Item("s", 1, "b", 3), Item("t", None, "c", 2, 0.0, 0.0)]
    assert priorities(mixed, config()) == [1, 1, 1]


def test_disagreement_is_half_the_distance_between_verdict_and_outcome():
    found = priorities([Item("s", 1, "a", 1, 1.0, -1.0), Item("s", 2, "b", 1, 0.2, 0.0)], config(disagreement=1))
    assert found == pytest.approx([1 + FLOOR, 0.1 + FLOOR])
    found = priorities([Item("s", 1, "a", 1, 1.0, -1.0), Item("s", 2, "b", 1, 0.2, 0.0)], config(disagreement=-1))
    assert found[0] < found[1]


@pytest.mark.parametrize("unmeasured", [{"verdict": 0.5}, {"outcome": 0.5}, {}])
def test_where_nothing_was_measured_disagreement_decides_nothing(unmeasured):
    both = [Item("s", 1, "a", 1, 1.0, -1.0), Item("s", 2, "b", 1, 0.0, 0.0)]
    found = priorities([*both, Item("s", 3, "c", 1, **unmeasured)], config(disagreement=1))
    assert found[2] == pytest.approx((found[0] + found[1]) / 2)
    assert priorities([Item("s", 3, "c", 1, **unmeasured)], config(disagreement=1)) == [1]


def test_novelty_is_for_what_few_items_speak_about():
    found = [
        *(Item("s", 1, f"text {i}", 1) for i in range(4)),
        Item("s", None, "v", 1),
        Item("s", 1, "x", 1, None, None, "o"),
    ]
    assert priorities(found, config(novelty=0.5)) == pytest.approx([0.5] * 4 + [1, 1])


# -- places ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sizes", "count", "share", "expected"),
    [
        ({1: 10, 2: 20, 3: 30}, 12, 0.0, {1: 2, 2: 4, 3: 6}),
        ({1: 10, 2: 20, 3: 30}, 12, 0.75, {1: 1, 2: 2, 3: 9}),
        ({1: 10, 2: 20, 3: 6}, 12, 0.75, {1: 2, 2: 4, 3: 6}),  # it has no more
        ({1: 5, 2: 5, 3: 5}, 4, 0.0, {1: 1, 2: 1, 3: 2}),  # what is left over goes to the newest
        ({2: 5, 3: 1}, 6, 0.5, {2: 5, 3: 1}),
        ({1: 4}, 3, 1.0, {1: 3}),  # the newest has none
        ({3: 4}, 3, 0.1, {3: 3}),
        ({}, 0, 0.5, {}),
    ],
)
def test_places_are_in_proportion_and_the_newest_has_its_share(sizes, count, share, expected):
    assert allocated(sizes, count, 3, config(newest_share=share)) == expected


@pytest.mark.parametrize(
    ("sizes", "count", "staleness", "expected"),
    [
        ({1: 60, 2: 60, 3: 60}, 11, 1, {1: 2, 2: 3, 3: 6}),
        ({1: 60, 2: 60, 3: 60}, 49, 2, {1: 4, 2: 9, 3: 36}),
        ({1: 60, 2: 60, 3: 3}, 63, 1, {1: 24, 2: 36, 3: 3}),  # the newest is full: the others share what it leaves
        ({1: 60, 2: 2, 3: 1}, 8, 8, {1: 5, 2: 2, 3: 1}),
    ],
)
def test_stale_iterations_get_fewer_places(sizes, count, staleness, expected):
    assert allocated(sizes, count, 3, config(staleness=staleness)) == expected


def test_no_iteration_gets_more_places_than_it_has_items():
    rng = random.Random(0)
    for _ in range(300):
        sizes = {it: rng.randint(1, 9) for it in range(1, rng.randint(2, 6))}
        count = rng.randint(1, sum(sizes.values()))
        found = allocated(sizes, count, max(sizes), config(newest_share=rng.random(), staleness=rng.choice([0, 1, 8])))
        assert sum(found.values()) == count
        assert all(0 <= found[it] <= size for it, size in sizes.items())


def test_the_choice_fills_the_places():
    pool = items(1, 10) + items(2, 20) + items(3, 30)
    choice = choose(pool, config(newest_share=0.75, disagreement=1), 12, newest=3, seed=5)
    assert choice.figures["by_iteration"] == {"1": 1, "2": 2, "3": 9}
    assert Counter(one.item.iteration for one in choice.chosen) == {1: 1, 2: 2, 3: 9}
    assert len({one.item.text for one in choice.chosen}) == 12  # without replacement


# -- duplicates --------------------------------------------------------------------------------------------------------
def test_equal_texts_about_the_same_thing_are_one_and_the_newest_version_speaks():
    old, new = Item("s", 1, "same", 1, 0.5, -0.5, weight=2.0), Item("s", 1, "same", 3, 0.5, 0.5, weight=1.5)
    assert deduplicated([new, old]) == deduplicated([old, new]) == [replace(new, weight=3.5)]
    others = [replace(old, state="t"), replace(old, action=None), replace(old, text="x"), replace(old, against="o")]
    assert len(deduplicated([old, *others])) == 5
    merged = deduplicated([replace(new, outcome=outcome) for outcome in (0.0, 1.0, None)])
    assert [item.outcome for item in merged] == [0.5]  # of the newest, as far as it was measured


def test_of_too_many_texts_about_one_thing_the_newest_stay():
    crowd = [Item("s", 1, f"text {i}", 1 + i // 4) for i in range(12)]
    other = Item("t", 1, "alone", 1)
    kept = limited([other, *crowd], 5, Rng(1))
    assert kept[0] == other
    assert Counter(item.iteration for item in kept[1:]) == {2: 1, 3: 4}
    assert limited(crowd, 0, Rng(1)) == crowd
    assert {limited(crowd, 1, Rng(seed))[0].text for seed in range(40)} == {f"text {i}" for i in range(8, 12)}


def test_figures_count_what_was_left_out():
    pool = [*items(1, 3), *items(1, 3), *(Item("s", 1, f"v{i}", 2) for i in range(5))]
    figures = choose(pool, config(per_state=2), 4, newest=2, seed=0).figures
    assert figures["duplicates"] == 3
    assert figures["crowded"] == 3
    assert figures["pool"] == 5
    assert figures["chosen"] == 4


def test_the_effective_sample_size_and_the_mean_age():
    three = [Chosen(item, weight) for item, weight in zip(items(1, 3), (1.0, 1.0, 2.0), strict=True)]
    assert told(three, newest=3) == {"chosen": 3, "by_iteration": {"1": 3}, "mean_age": 2.0, "effective": 2.667}
    assert told([], newest=3)["effective"] == 0


# -- draws -------------------------------------------------------------------------------------------------------------
def test_odds_are_in_proportion_and_never_above_one():
    assert inclusion_odds([1, 2, 3, 4], 2) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert inclusion_odds([1, 1, 8], 2) == pytest.approx([0.5, 0.5, 1])
    assert inclusion_odds([1, 1], 5) == [1, 1]
    assert inclusion_odds([1, 2], 0) == [0, 0]
    rng = random.Random(3)
    for _ in range(200):
        weights = [rng.random() ** 20 + 1e-9 for _ in range(rng.randint(1, 30))]
        count = rng.randint(0, len(weights))
        odds = inclusion_odds(weights, count)
        assert sum(odds) == pytest.approx(count)
        assert max(odds) <= 1
        assert len(set(drawn(odds, Rng(rng.randint(0, 9**9))))) == count


def test_items_are_drawn_as_often_as_their_odds_say():
    odds, rounds = inclusion_odds([1, 2, 3, 4, 5, 30], 3), 4000
    counts = Counter(index for seed in range(rounds) for index in drawn(odds, Rng("draws", seed)))
    assert [counts[i] / rounds for i in range(6)] == pytest.approx(odds, abs=0.03)


def test_the_same_seed_gives_the_same_choice_in_whatever_order_items_come():
    pool = [*items(1, 30, verdict=0.5, outcome=0.0), *items(2, 30), *items(2, 10)]
    settings = config(per_state=1, importance=1, disagreement=1)
    first = choose(pool, settings, 20, newest=2, seed=1)
    assert choose(random.Random(0).sample(pool, len(pool)), settings, 20, newest=2, seed=1) == first
    assert choose(pool, settings, 20, newest=2, seed=2).chosen != first.chosen


# -- weights -----------------------------------------------------------------------------------------------------------
def skewed():
    """Items whose value depends on everything that priorities look at."""
    rng = random.Random(7)
    pool = []
    for iteration, count in ((1, 12), (2, 9), (3, 15)):
        for item in items(iteration, count, verdict=0.0):
            pool.append(replace(item, outcome=rng.uniform(-1, 1), weight=rng.choice([0.5, 1.0, 3.0])))
    return pool


def value(item):
    return item.iteration + abs(item.outcome)


def mean_weighted_sum(importance, rounds=3000):
    """Of the values of what is chosen, per place that a plain sample would have."""
    settings = config(disagreement=1, staleness=1, newest_share=0.6, importance=importance)
    pool, size, found = skewed(), 10, 0.0
    for seed in range(rounds):
        chosen = choose(pool, settings, size, newest=3, seed=seed).chosen
        found += sum(one.weight * value(one.item) for one in chosen)
    return found / rounds / (size / len(pool))


def test_with_full_correction_weighted_sums_are_those_of_all_items():
    truth = sum(item.weight * value(item) for item in skewed())
    assert mean_weighted_sum(importance=1.0) == pytest.approx(truth, rel=0.01)
    assert abs(mean_weighted_sum(importance=0.0, rounds=500) / truth - 1) > 0.03  # the surprising are favoured


def test_corrections_average_to_one():
    pool = [replace(item, weight=1.0) for item in skewed()]
    settings, rounds = config(disagreement=1, staleness=1, newest_share=0.6, importance=1), 3000
    weights = [one.weight for seed in range(rounds) for one in choose(pool, settings, 10, 3, seed).chosen]
    assert sum(weights) / len(weights) == pytest.approx(1, rel=0.01)
    plain = choose(pool, settings.model_copy(update={"importance": 0.0}), 10, 3, 0).chosen
    assert {one.weight for one in plain} == {1.0}
    everything = choose(pool, settings, 99, 3, 0).chosen
    assert [one.weight for one in everything] == [1.0] * len(pool)  # nothing was left to chance


# -- settings ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("kind", "newest"),
        ("size", -1),
        ("disagreement", 9.0),
        ("disagreement", float("nan")),
        ("staleness", -1.0),
        ("novelty", -0.1),
        ("newest_share", 1.5),
        ("per_state", -2),
        ("importance", 1.1),
    ],
)
def test_bad_values_are_refused_by_field(field, bad):
    with pytest.raises(NLRLError, match=rf"critic\.replay\.{field}: .*\(got "):
        validated(RunConfig, {"critic": {"replay": {field: bad}}}, "config.toml")


def test_bad_values_on_the_command_line_are_refused_by_field():
    with pytest.raises(NLRLError, match=r"actor\.replay\.size: .*\(got -1\)"):
        overridden(RunConfig(), ["--actor.replay.size", "-1"])


@pytest.mark.parametrize(
    ("method", "network"),
    [("rejection_sampling", "actor"), ("scalar_q", "critic"), ("dpo", "actor"), ("value_td", "actor")],
)
def test_methods_that_would_not_heed_it_refuse_it(small_config, tmp_path, method, network):
    settings = {network: {"replay": {"kind": "prioritised"}}}
    with pytest.raises(NLRLError, match=rf"{network}\.replay\.kind is 'prioritised', but method '{method}'"):
        check(small_config(tmp_path, method=method, **settings))


def test_it_reaches_back_to_where_the_policy_settled():
    settings = TrainConfig(short_buffer_until=2, buffer_iterations=2)
    assert [list(reach(settings, iteration)) for iteration in (1, 2, 5)] == [[1], [2], [2, 3, 4, 5]]


# -- in a run ----------------------------------------------------------------------------------------------------------
STAGES = (run_rollout, run_targets, run_policy_table, run_critic, run_improvement, run_actor)
PRIORITISED = {
    network: {
        "short_buffer_until": 0,
        "buffer_iterations": 1,
        "replay_fraction": 0,
        "replay": {"kind": "prioritised", "newest_share": 0.4, "importance": 1.0},
    }
    for network in ("critic", "actor")
}


def test_a_run_learns_what_was_chosen_and_says_so(session, watched):
    one = session(model=watched.config, **PRIORITISED)
    for iteration in (1, 2):
        for stage in STAGES:
            stage(one, iteration)
    for network, source in (("critic", "targets"), ("actor", "improvement")):
        written = [list(one.folder.stage(it, source).records()) for it in (1, 2)]
        metrics = one.folder.stage(2, network).load()["metrics"]
        figures = metrics["replay"]
        (fit,) = [fit for fit in watched.fits[2:] if fit.network == network]
        assert metrics["texts"] == figures["chosen"] == len(fit.examples)
        different = {(r["state"], r["action"] if network == "critic" else None, r["target"]) for r in chain(*written)}
        assert figures["chosen"] == min(len(written[1]), len(different))  # as many as the newest set alone
        assert set(figures["by_iteration"]) == {"1", "2"}
        assert 0 < figures["mean_age"] < 1
        assert len({(e.messages[-1].content, e.completion) for e in fit.examples}) == len(fit.examples)


def test_targets_say_what_was_measured_only_where_it_is_asked_for(session):
    for settings, measured in (({}, False), (PRIORITISED, True), (PRIORITISED | {"targets": {"kind": "td"}}, False)):
        one = session(**settings)
        run_rollout(one, 1)
        run_targets(one, 1)
        found = list(one.folder.stage(1, "targets").records())
        assert {"outcome" in record for record in found} == {measured}
        if measured:  # this model counts without mistakes
            assert all(record["verdict"] == pytest.approx(record["outcome"], abs=0.005) for record in found)


def test_recent_is_all_of_the_last_sets_in_their_order_and_its_manifest_says_nothing_new(session, watched):
    fits = {}
    for kind in ("recent", "prioritised"):
        settings = {"short_buffer_until": 0, "replay_fraction": 0, "replay": {"kind": kind}}
        one = session(model=watched.config, critic=settings, actor=settings)
        watched.fits.clear()
        for iteration in (1, 2):
            for stage in STAGES:
                stage(one, iteration)
        fits[kind] = [[(e.messages[-1].content, e.completion, e.weight) for e in fit.examples] for fit in watched.fits]
        if kind == "recent":
            for network, source, found in zip(
                ("critic", "actor"), ("targets", "improvement"), fits[kind][2:], strict=True
            ):
                expected = [r["target"] for it in (1, 2) for r in one.folder.stage(it, source).records()]
                assert [text for _, text, _ in found] == expected
                assert {heavy for _, _, heavy in found} == {1.0}
                metrics = one.folder.stage(2, network).load()["metrics"]
                assert metrics.keys() - {"budget"} == {"loss", "examples", "steps", "texts", "replayed"}
    assert len(fits["prioritised"][2]) < len(fits["recent"][2]), "equal texts are trained on once"


def test_a_stopped_run_makes_the_same_choice_again(small_config, tmp_path, monkeypatch, committed_files):
    quick = PRIORITISED | {
        "rollout": {"games": 6},
        "evaluation": {"games": 0, "value_states": 1, "opponents": ["random"]},
    }
    whole = run(small_config(tmp_path / "whole", **quick)).path
    calls = []

    def breaks(*args, **kwargs):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return choose(*args, **kwargs)

    monkeypatch.setattr("nlrl.orchestration.stages.training.choose", breaks)
    with pytest.raises(KeyboardInterrupt):
        run(small_config(tmp_path / "stopped", **quick))
    monkeypatch.undo()
    stopped = run(small_config(tmp_path / "stopped", **quick)).path
    assert committed_files(stopped) == committed_files(whole)
    chosen = RunFolder(whole).stage(2, "actor").load()["metrics"]["replay"]["by_iteration"]
    assert chosen.keys() == {"1", "2"}
