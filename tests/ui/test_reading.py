from __future__ import annotations

import json
import re

from markdown_it import MarkdownIt

from nlrl.orchestration.records import record_files
from nlrl.orchestration.tracking import read_metrics
from nlrl.testing import write_run
from nlrl.ui import reading

SAMPLED = "evaluation/sampled/greedy/epsilon(0.25,minimax)/win/"


def test_runs_are_found_at_any_of_three_depths_and_nothing_else(tmp_path):
    for place in ("a", "group/b", "too/deep/down/c"):
        write_run(tmp_path / place)
    (tmp_path / "notes").mkdir()
    assert [str(run.relative_to(tmp_path)) for run in reading.find_runs(tmp_path)] == ["a", "group/b"]
    assert reading.find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_shares_are_read_with_their_intervals_and_exact_ones_without(tmp_path):
    numbers = {
        f"{SAMPLED}share": 0.5,
        f"{SAMPLED}low": 0.4,
        f"{SAMPLED}high": 0.6,
        "evaluation/exact/against/random/loss": 0.25,
    }
    run = write_run(tmp_path / "run", metrics=[{}, numbers | {"rollout/games": 9, f"{SAMPLED}high/else": 3}])
    assert reading.shares(read_metrics(run / "metrics.jsonl")) == [
        reading.Share(1, "greedy", "epsilon(0.25,minimax)", "win", 0.5, 0.4, 0.6),
        reading.Share(1, "exact", "random", "loss", 0.25, 0.25, 0.25),
    ]


def test_the_learning_table_has_a_line_an_iteration_and_opponent():
    shares = [
        reading.Share(1, "greedy", "random", "win", 0.75, 0.7, 0.8),
        reading.Share(0, "greedy", "random", "win", 0.44, 0.4, 0.48),
        reading.Share(0, "greedy", "random", "draw", 0.1, 0.1, 0.1),
    ]
    assert reading.learning_table(shares) == [
        {
            "iteration": 0,
            "opponent": "random",
            "win": "0.440 [0.400, 0.480]",
            "draw": "0.100",
            "loss": "",
            "forfeit": "",
        },
        {"iteration": 1, "opponent": "random", "win": "0.750 [0.700, 0.800]", "draw": "", "loss": "", "forfeit": ""},
    ]


def test_records_of_a_stage_that_is_still_being_written_are_read_up_to_the_torn_line(tmp_path):
    run = write_run(tmp_path / "run", records={"001/rollout": [{"n": 1}], "002/rollout": []})
    shards = run / "iterations" / "002" / "rollout" / "shards"
    (run / "iterations" / "002" / "rollout" / "manifest.json").unlink()
    shards.mkdir()
    whole = json.dumps({"schema": 1, "kind": "game", "key": "k"})
    (shards / "games.jsonl").write_text(f'{whole}\n{{"schema": 1, "ki')
    stages = reading.stages(run)
    assert list(stages) == ["001/rollout", "002/rollout"]
    assert [record["key"] for record in reading.read_stage(stages["002/rollout"])] == ["k"]


def test_a_stamp_changes_when_a_file_grows(tmp_path):
    run = write_run(tmp_path / "run", records={"001/rollout": [{"n": 1}]})
    files = record_files(run / "iterations" / "001" / "rollout")
    before = reading.stamp(files)
    assert before == reading.stamp(files)
    files[0].write_text(files[0].read_text() + "\n")
    assert reading.stamp(files) != before
    assert reading.stamp([run / "none"]) == ()


def test_the_game_is_named_by_the_config_or_not_at_all(tmp_path):
    config = '[game]\nname = "breakthrough"\n[game.params]\nrows = 5\n'
    assert reading.game_spec(write_run(tmp_path / "a", config=config)) == ("breakthrough", {"rows": 5})
    assert reading.game_spec(write_run(tmp_path / "b")) is None
    assert reading.game_spec(tmp_path / "none") is None


def test_a_models_words_make_no_html_images_links_or_formulas():
    said = "<b>x</b> ![p](http://h/p.png) [l](x) \\[m](x) \\\\[n](x) `q` ~~d~~ <http://h> a | b"
    page = f"# Title\n\n> {said}\n\n| move | text |\n|---|---|\n| 5 | {said.replace('|', chr(92) + '|')} |\n"
    html = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(reading.harmless(page))
    tags = set(re.findall(r"</?(\w+)", html))
    assert tags == {"h1", "p", "blockquote", "table", "thead", "tbody", "tr", "th", "td"}
    assert html.count("<td>") == 2
    assert "![p](" in html
    assert "a | b" in html


def test_addresses_formulas_and_colours_which_streamlit_adds_are_broken_too():
    shown = reading.harmless("> $x$ :red[c] http://h www.h.org a@h.org")
    assert "\\$x\\$ :red\\[c\\]" in shown
    assert not re.search(r"http://|(?<!\u200b)www|a@h", shown)


def test_boards_between_fences_stay_as_they_are():
    text = "```text\n[<$`>]\n```\n> ```\n> [x]"
    assert reading.harmless(text) == "```text\n[<$`>]\n```\n> \\`\\`\\`\n> \\[x\\]"
