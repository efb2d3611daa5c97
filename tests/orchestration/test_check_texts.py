"""`nlrl check-texts`: figures of a real run, and the same run with its texts spoiled."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import orjson
import pytest

from nlrl.errors import NLRLError
from nlrl.orchestration.check_texts import PARTS, check_texts
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.reliability_svg import reliability_svg
from nlrl.orchestration.run_folder import verify
from nlrl.orchestration.text_page import shown
from nlrl.testing.by_rules import RuleModel


@pytest.fixture(scope="module")
def checked(finished, tmp_path_factory):
    """A copy of the finished run with everything checked once."""
    run = shutil.copytree(finished, tmp_path_factory.mktemp("checked") / "run")
    return run, check_texts(run, states=6, prompts=30).figures


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


def spoil(run: Path, iteration: int, change) -> None:
    """Rewrites the critic's texts of an iteration: `change(candidate)` changes one in place."""
    path = run / "iterations" / f"{iteration:03d}" / "improvement" / "records.jsonl"
    records = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    for record in records:
        for candidate in record["candidates"]:
            change(candidate)
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))


# -- a run whose texts are good ----------------------------------------------------------------------------------------
def test_every_part_is_on_the_page_and_in_the_figures(checked):
    run, figures = checked
    text = (run / "texts" / "iteration_002.md").read_text()
    stored = json.loads((run / "texts" / "iteration_002.json").read_text())
    assert [name for name in PARTS if stored.get(name)] == list(PARTS)
    assert stored["verdicts"]["against_policy"]["text"]["mae"] == figures["verdicts"]["against_policy"]["text"]["mae"]
    titles = re.findall(r"^## (\w+)", text, re.MULTILINE)
    assert titles == ["Verdicts", "Faithfulness", "Symmetry", "Counterfactual", "Sufficiency"]
    assert shown(figures["counterfactual"]["follows"], percent=True) in text
    assert "(iteration_002.svg)" in text


def test_figures_lie_in_their_intervals(checked):
    def walk(value):
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from walk(inner)

    found = [one for one in walk(checked[1]) if one["value"] is not None and one["low"] is not None]
    assert len(found) > 40
    # A percentile interval of a curved statistic (ECE, R2) may miss its own value; none is far from it.
    assert all(one["low"] - 0.1 <= one["value"] <= one["high"] + 0.1 for one in found)


def test_they_are_the_figures_of_the_evaluation(checked):
    run, figures = checked
    manifest = json.loads((run / "iterations" / "002" / "evaluation" / "manifest.json").read_text())["metrics"]["texts"]
    for known in ("against_policy", "against_optimal"):
        for name, figure in figures["verdicts"][known]["text"].items():
            assert figure["value"] == pytest.approx(manifest[known]["text"][name], abs=1e-5), name
    for name, row in manifest["choices"].items():
        assert figures["verdicts"]["choices"][name]["regret"]["value"] == pytest.approx(row["regret"], abs=1e-5)
    assert figures["verdicts"]["reliability"] == manifest["reliability"]


def test_texts_that_rules_wrote_are_true_consistent_and_obeyed(checked):
    figures = checked[1]
    critic, i = figures["faithfulness"]["critic"], figures["faithfulness"]["I"]
    assert critic["true_claims"]["value"] == 1
    assert critic["words_agree"]["value"] > 0.95  # a table of texts writes a mean into the typical one
    assert (critic["leaks"]["value"], i["illegal_suggestions"]["value"]) == (0, 0)
    assert figures["counterfactual"]["follows"]["value"] == 1
    assert figures["counterfactual"]["unmoved_by_order"]["value"] == 1
    narrative = figures["sufficiency"]["narrative"]
    assert narrative["r_squared"]["value"] > 0.6 > narrative["shuffled_r_squared"]["value"]


def test_symmetry_is_asked_of_every_image(checked):
    symmetry = checked[1]["symmetry"]
    assert symmetry["positions"] == 5  # as many as the evaluation has
    assert len(symmetry["verdicts"]) == 9  # all, seven symmetries, names exchanged
    assert symmetry["verdicts"].keys() == symmetry["moves"].keys()
    assert symmetry["verdicts"]["all"]["same_sign"]["value"] < 1  # learned by heart, prompt by prompt


def test_a_checked_run_is_still_whole(checked, finished, committed_files):
    assert verify(checked[0]) == []
    assert committed_files(checked[0]) == committed_files(finished)


def test_checking_again_gives_the_same_bytes(checked, tmp_path):
    run = shutil.copytree(checked[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (run / "texts").iterdir()}
    stored = json.loads(before["iteration_002.json"])
    check_texts(run, states=6, prompts=30)
    again = json.loads((run / "texts" / "iteration_002.json").read_text())
    assert {**again, "run": ""} == {**stored, "run": ""}
    assert (run / "texts" / "iteration_002.svg").read_bytes() == before["iteration_002.svg"]


# -- the same run with spoiled texts -----------------------------------------------------------------------------------
def test_verdicts_turned_around_lose_sides_order_and_consistency(copy, checked):
    def turn(candidate):
        candidate["verdict"] = -candidate["verdict"]

    spoil(copy, 2, turn)
    found = check_texts(copy, parts=("verdicts", "faithfulness")).figures
    good, bad = (f["verdicts"]["against_policy"]["text"] for f in (checked[1], found))
    for name in ("sign_accuracy", "side_accuracy", "order_accuracy", "rank_correlation"):
        assert bad[name]["value"] < good[name]["value"] - 0.1, name
    assert bad["ece"]["value"] > good["ece"]["value"] + 0.1
    critic = found["faithfulness"]["critic"]
    assert critic["words_agree"]["value"] < 0.5
    assert critic["numbers_agree"]["value"] < 0.5


def test_false_illegal_and_leaking_texts_are_counted(copy):
    spoil(copy, 2, lambda c: c.update(text="O wins at 1 2 3 4 5 6 7 8 9. In 8 games O won 5. You should play 12."))
    critic = check_texts(copy, parts=("faithfulness",)).figures["faithfulness"]["critic"]
    assert critic["true_claims"]["value"] < 0.2
    assert critic["illegal_suggestions"]["value"] == 1
    assert critic["leaks"]["value"] == 1
    assert critic["words_silent"]["value"] == 1
    shown_texts = critic["examples"]
    assert len(shown_texts) == 3
    assert "illegal: You should play 12" in shown_texts[0]["wrong"]
    assert shown_texts[0]["position"].splitlines()[1] == "---+---+---"
    assert shown_texts[0]["text"] in (copy / "texts" / "iteration_002.md").read_text()


def test_narratives_that_say_nothing_are_not_sufficient(copy):
    def mute(candidate):
        candidate["text"] = f"A position, {candidate['verdict']:+.2f}."

    spoil(copy, 2, mute)
    rows = check_texts(copy, parts=("sufficiency",)).figures["sufficiency"]["narrative"]
    assert rows["r_squared"]["value"] < 0.1


def test_an_i_that_does_not_read_evaluations_is_found_out(copy, monkeypatch):
    def stubborn(self, prompt, state, rng):
        return f"I prefer it.\nbest_move: {min(int(move) for move in re.findall(r'move ([0-9]):', prompt))}"

    monkeypatch.setattr(RuleModel, "_improvement", stubborn)
    found = check_texts(copy, parts=("counterfactual",), prompts=60).figures["counterfactual"]
    assert found["first_best"]["value"] < 1
    assert found["follows"]["value"] == 0
    assert found["stays"]["value"] == found["unmoved_by_order"]["value"] == 1


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_prints_the_page_and_where_it_is(copy, capsys):
    assert run_cli(["check-texts", str(copy), "--iteration", "0", "--parts", "verdicts", "faithfulness"]) == 0
    out = capsys.readouterr().out
    assert "# Texts of iteration 0" in out
    assert "## Faithfulness" in out
    assert "## Symmetry" not in out
    assert str(copy / "texts" / "iteration_000.md") in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"iteration": 9}, "no texts of iteration 9; there are 0, 1, 2"), ({"parts": ("poetry",)}, "poetry")],
)
def test_what_is_not_there_is_refused_with_what_is(copy, arguments, message):
    with pytest.raises(NLRLError, match=message):
        check_texts(copy, **arguments)


def test_a_run_without_a_critic_has_its_actors_arguments_checked(copy):
    shutil.rmtree(copy / "iterations" / "002" / "improvement")
    shutil.rmtree(copy / "iterations" / "002" / "targets")
    found = check_texts(copy, states=4).figures
    assert found["faithfulness"].keys() == {"actor"}
    assert found["symmetry"]["moves"]["all"]["equivariant"]["n"] > 0
    assert not any(found[part] for part in ("verdicts", "counterfactual", "sufficiency"))
    text = (copy / "texts" / "iteration_002.md").read_text()
    assert re.findall(r"^## (\w+)", text, re.MULTILINE) == ["Faithfulness", "Symmetry"]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(NLRLError, match="not a run's folder"):
        check_texts(tmp_path)


def test_the_code_of_the_documentation_runs():
    page = Path(__file__).resolve().parents[2] / "docs/texts.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    exec(block, {})


# -- the picture -------------------------------------------------------------------------------------------------------
def test_the_diagram_has_a_point_and_a_count_for_each_bar():
    bars = [
        {"low": 0.0, "high": 0.1, "count": 3, "probability": 0.05, "outcome": 0.1},
        {"low": 0.9, "high": 1.0, "count": 40, "probability": 0.95, "outcome": 0.5},
        {"low": 0.4, "high": 0.5, "count": 0, "probability": None, "outcome": None},
    ]
    root = ET.fromstring(reliability_svg(bars, "Iteration 1: a < b"))
    kind = "{http://www.w3.org/2000/svg}"
    points = root.findall(f"{kind}circle")
    assert len(points) == 2
    assert float(points[1].get("cy")) - float(points[0].get("cy")) == pytest.approx(-120)  # 0.4 of the side
    texts = [element.text for element in root.findall(f"{kind}text")]
    assert {"3", "40", "Iteration 1: a < b"} <= set(texts)
