"""What a run prints when it ends: the figures of its manifests, and the opinion that changed most."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest
from rich.console import Console

from nlrl.envs import make
from nlrl.orchestration.diary import entries_of
from nlrl.orchestration.report import evaluations, opinions, report
from nlrl.orchestration.run_folder import RunFolder


def printed(renderable, width=220):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def rows(text, title):
    """The cells of a printed table."""
    table = text[text.index(title) :].partition("└")[0].splitlines()
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in table if line.startswith("│")]


def learning_rows(text):
    """The cells of the learning table: an iteration's figures, and the intervals that stand under its shares."""
    lines = text[text.index("Greedy play") : text.index("Exact results")].splitlines()
    found = [(line.split(), below.split()) for line, below in pairwise(lines)]
    return [(cells, intervals) for cells, intervals in found if cells and cells[0].isdigit()]


@pytest.fixture
def metrics(finished):
    folder = finished / "iterations"
    return [json.loads((folder / f"{i:03d}" / "evaluation" / "manifest.json").read_text())["metrics"] for i in range(3)]


def test_the_learning_table_has_a_row_an_iteration_with_the_figures_of_its_evaluation(finished, metrics):
    table = learning_rows(printed(report(finished), 80))
    assert [cells[0] for cells, _ in table] == ["0", "1", "2"]
    for (cells, intervals), found in zip(table, metrics, strict=True):
        shares = found["sampled"]["greedy"]["random"]
        for cell, interval, result in zip(cells[1:5], intervals, ("win", "draw", "loss", "forfeit"), strict=True):
            assert cell == f"{shares[result]['share']:.3f}"
            low, high = interval.split("-")
            assert float(low) == pytest.approx(shares[result]["low"], abs=5e-4)
            assert float(high) == pytest.approx(shares[result]["high"], abs=5e-4)
        assert cells[5] == f"{found['exact']['against']['random']['win']:.3f}"
        assert cells[6] == f"{shares['failures_per_turn']:.2%}"


def test_the_error_of_the_texts_stands_beside_that_of_a_trivial_guess(finished, metrics):
    for (cells, _), found in zip(learning_rows(printed(report(finished))), metrics, strict=True):
        against = found["texts"]["against_policy"]
        trivial = min(against[name]["mae"] for name in against if name != "text")
        assert cells[7] == f"{against['text']['mae']:.3f}"
        assert cells[8] == f"{trivial:.3f}"
        assert cells[9] == f"{found['texts']['true_claims']:.1%}"


def test_exact_results_against_every_opponent_before_and_after(finished, metrics):
    table = rows(printed(report(finished)), "Exact results of the greedy actor")
    expected = [("0", name) for name in metrics[0]["exact"]["against"]] + [
        ("2", n) for n in metrics[2]["exact"]["against"]
    ]
    assert [(row[0], row[1]) for row in table] == expected
    for row in table:
        exact = metrics[int(row[0])]["exact"]
        assert row[2:6] == [f"{exact['against'][row[1]][r]:.4f}" for r in ("win", "draw", "loss", "forfeit")]
        assert row[6] == f"{exact['exploitability']:.3f}"


def test_the_texts_have_their_figures_by_iteration(finished, metrics):
    lines = [line.split() for line in printed(report(finished)).splitlines()]
    found = [cells for cells in lines if cells and cells[0] in "012" and cells[1:2] and cells[1].endswith("%")]
    for (verdicts, words), whole in zip(zip(found[:3], found[3:], strict=True), metrics, strict=True):
        texts, turns = whole["texts"], whole["turns"]
        scores = texts["against_policy"]["text"]
        assert verdicts[2] == f"{scores['sign_accuracy']:.1%}"
        assert verdicts[4] == f"{scores['ece']:.3f}"
        assert verdicts[8] == f"{scores['positivity_bias']:.3f}"
        assert words[1] == f"{texts['true_claims']:.1%}"
        assert words[4] == f"{texts['words_agree']:.1%}"
        assert words[8] == f"{turns['actor_illegal']:.1%}"
    assert len(found) == 6
    assert found[2][9] == f"{metrics[2]['texts']['choices']['policy']['regret']:.3f}"


def test_the_opinion_that_changed_most_is_shown_with_both_texts(finished):
    entries = entries_of(RunFolder(finished))
    first, last = (next(e for e in entries if e["iteration"] == i) for i in (0, 2))
    changes = [
        (abs(after["verdict"] - before["verdict"]), before, after)
        for before, after in zip(first["evaluations"], last["evaluations"], strict=True)
    ]
    _, before, after = max(changes, key=lambda change: change[0])
    text = " ".join(printed(opinions(entries, make("tictactoe"))[0], 400).replace("│", " ").split())
    assert f"iteration 0: {before['text']}" in text
    assert f"iteration 2: {after['text']}" in text
    assert f"{after['exact_policy']:+.2f}"[1:] in text


def test_a_run_says_where_its_diary_lies_and_how_to_open_it(finished):
    text = printed(report(finished), 400)
    assert f"nlrl view {finished.parent}" in text
    assert str(finished / "evaluations.md") in text


def test_an_unfinished_run_shows_what_there_is(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "run")
    for iteration in ("002", "001"):
        shutil.rmtree(copy / "iterations" / iteration)
    text = printed(report(copy))
    assert [cells[0] for cells, _ in learning_rows(text)] == ["0"]
    assert "One move, two opinions" not in text
    shutil.rmtree(copy / "iterations")
    assert "no evaluation is committed yet" in printed(report(copy))


def test_a_run_without_games_or_without_the_random_player_is_printed_too(session, watched):
    from nlrl.orchestration.stages.evaluation import run_evaluation

    one = session(evaluation={"games": 0, "opponents": ["minimax"]})
    run_evaluation(one, 0)
    assert evaluations(one.folder).keys() == {0}
    text = printed(report(one.folder.path))
    assert "minimax" in text
    assert len(rows(text, "Exact results")) == 1
